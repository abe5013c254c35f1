"""What stands still is named: handlers that do not end, and an event loop that is blocked."""

from __future__ import annotations

import asyncio
import logging
import threading
from queue import SimpleQueue
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, Socket, SyncSocket, on
from spa_dat.errors import ConfigurationError
from support.waiting import eventually


def make(**options: Any) -> DistributedApplication:
    options = {"slow_after": 0.2, "blocked_after": None, "stop_timeout": 1, **options}
    return DistributedApplication("memory://", name="plant", **options)


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if text in r.getMessage()]


# Handlers that do not end.


def _async(app: DistributedApplication, go_on: asyncio.Event, **options: Any) -> None:
    @app.application("a", name="worker", **options)
    async def work(payload: str) -> None:
        await _inner(go_on)


async def _inner(go_on: asyncio.Event) -> None:
    await go_on.wait()


def _in_thread(app: DistributedApplication, go_on: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    @app.application("a", name="worker")
    def work(payload: str) -> None:
        asyncio.run_coroutine_threadsafe(_inner(go_on), loop).result()


def _batch(app: DistributedApplication, go_on: asyncio.Event) -> None:
    @app.application("a", name="worker", batch=(1, 0.1))
    async def work(payload: list[str]) -> None:
        await _inner(go_on)


def _tick(app: DistributedApplication, go_on: asyncio.Event) -> None:
    @app.producer(name="worker", every=0.05)
    async def work() -> None:
        await _inner(go_on)


def _waits_for_a_reply(app: DistributedApplication, go_on: asyncio.Event) -> None:
    @app.application("a", name="worker")
    def work(payload: str, socket: SyncSocket) -> None:
        socket.request("other", payload, reply=str, timeout=60)

    @app.application("other", deadline=100)
    async def answer(payload: str) -> str:
        await go_on.wait()
        return payload


@pytest.mark.parametrize("kind", [_async, _in_thread, _waits_for_a_reply, _batch, _tick])
async def test_a_handler_at_work_for_too_long_is_named_and_seen_as_long_as_it_lasts(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = make()
    go_on = asyncio.Event()
    kind(app, go_on)
    async with app:
        app.socket().post("a", "x")
        await eventually(lambda: not app.healthy)
        assert list(app.problems) == ["worker"]
        assert app.problems["worker"].startswith("running for ")
        # Named again, after twice the time.
        await eventually(lambda: len(lines(caplog, "other messages are waiting")) == 2)
        assert app.stats["handlers.slow"] == 1
        line = lines(caplog, "other messages are waiting")[0]
        assert line.startswith("actor 'worker': running for ")
        assert "work at " in line
        assert "test_watchdog.py:" in line
        go_on.set()
        await eventually(lambda: app.healthy)
        assert lines(caplog, "has ended")


async def test_a_deadline_that_is_longer_says_how_long_a_handler_may_take(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make()
    go_on = asyncio.Event()
    _async(app, go_on, deadline=100)

    @app.application("b")
    async def other(payload: str) -> None:
        await go_on.wait()

    async with app:
        app.socket().post("a", "x")
        app.socket().post("b", "x")
        await eventually(lambda: list(app.problems) == ["other"])
        await eventually(lambda: len(lines(caplog, "other messages are waiting")) == 3)
        assert "worker" not in app.problems
        go_on.set()


async def test_what_waits_for_something_else_is_not_at_work() -> None:
    app = make()
    looks = 0

    @app.producer()
    async def for_ever() -> None:
        await asyncio.Event().wait()

    @app.application("fails", retry=RetryPolicy(first=100, hold=1000))
    async def between_attempts(payload: str) -> None:
        raise ValueError("no")

    @app.application("batch", batch=(10, 100.0))
    async def waits_for_more(payload: list[str]) -> None: ...

    @app.application("idle")
    async def idle(payload: str) -> None: ...

    @app.application("many")
    async def many(payload: str) -> None:
        await asyncio.sleep(0.01)

    @app.producer(every=0.02)
    async def counts(socket: Socket) -> None:
        nonlocal looks
        looks += 1
        await socket.publish("many", "x")

    async with app:
        for topic in ("fails", "batch", "idle"):
            app.socket().post(topic, "x")
        await eventually(lambda: looks > 50)
        assert app.stats["handlers.slow"] == 0
        assert app.problems == {}


async def test_both_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    app = make(slow_after=None)
    go_on = asyncio.Event()
    _async(app, go_on)
    other = make(slow_after=0.01)
    _async(other, go_on)
    async with app, other:
        app.socket().post("a", "x")
        other.socket().post("a", "x")
        await eventually(lambda: not other.healthy)
        await eventually(lambda: len(lines(caplog, "other messages are waiting")) >= 3)
        assert app.healthy
        go_on.set()
    for wrong in (0, -1, "5"):
        with pytest.raises(ConfigurationError, match="slow_after"):
            make(slow_after=wrong)
        with pytest.raises(ConfigurationError, match="blocked_after"):
            make(blocked_after=wrong)


# A loop that is blocked.


class Waiter(logging.Handler):
    """Sets an event when a line with this text is logged, in whatever thread."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.came.set()


async def test_what_blocks_the_loop_is_named_while_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(blocked_after=0.2, slow_after=None)
    waiter = Waiter("has blocked the event loop")
    logging.getLogger("spa_dat").addHandler(waiter)
    seen: list[dict[str, str]] = []

    @app.application("a")
    async def rude(payload: str) -> None:
        assert waiter.came.wait(30)
        seen.append(app.problems)

    try:
        async with app:
            app.socket().post("a", "x")
            await eventually(lambda: seen, 60.0)
            await eventually(lambda: app.healthy)
    finally:
        logging.getLogger("spa_dat").removeHandler(waiter)
    assert list(seen[0]) == ["rude"]
    assert seen[0]["rude"].startswith("the event loop is blocked: ")
    assert "rude at " in seen[0]["rude"]
    (line,) = lines(caplog, "has blocked the event loop")
    assert line.startswith("actor 'rude' has blocked the event loop for ")
    assert "test_watchdog.py:" in line
    assert lines(caplog, "was blocked for")
    assert app.stats["loop.blocked"] == 1


async def test_a_handler_that_only_posts_is_named_with_its_own_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(blocked_after=0.2, slow_after=None)
    told: SimpleQueue[object] = SimpleQueue()

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has blocked the event loop" in record.getMessage():
                told.put(record)

    watcher = Watcher()
    logging.getLogger("spa_dat").addHandler(watcher)
    limit = threading.Timer(60, told.put, (None,))
    limit.start()

    @app.application("a")
    async def flood(payload: str, socket: Socket) -> None:
        # It is looked at while it is inside post(), where nothing is the handler's own code.
        its: Any = socket
        its._post = told.get
        socket.post("b", payload)

    try:
        async with app:
            app.socket().post("a", "x")
            await eventually(lambda: app.stats["messages.handled"] == 1, 60.0)
    finally:
        limit.cancel()
        logging.getLogger("spa_dat").removeHandler(watcher)
    (line,) = lines(caplog, "has blocked the event loop")
    assert line.startswith("actor 'flood' has blocked the event loop for ")
    assert "flood at " in line
    assert "test_watchdog.py:" in line


async def test_what_blocks_the_loop_outside_of_actors_is_named_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(blocked_after=0.2, slow_after=None)
    waiter = Waiter("has blocked the event loop")
    logging.getLogger("spa_dat").addHandler(waiter)
    try:
        async with app:
            assert waiter.came.wait(30)
            await eventually(lambda: lines(caplog, "was blocked for"))
    finally:
        logging.getLogger("spa_dat").removeHandler(waiter)
    (line,) = lines(caplog, "has blocked the event loop")
    assert line.startswith("application 'plant' has blocked the event loop for ")


async def test_what_blocks_the_loop_while_the_application_starts_is_named_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make(blocked_after=0.2, slow_after=None)
    waiter = Waiter("has blocked the event loop")

    class Rude(Actor):
        async def on_start(self) -> None:
            assert waiter.came.wait(30)

        @on("a")
        async def handle(self, payload: str) -> None: ...

    app.add(Rude)
    logging.getLogger("spa_dat").addHandler(waiter)
    try:
        async with app:
            await eventually(lambda: app.healthy)
    finally:
        logging.getLogger("spa_dat").removeHandler(waiter)
    (line,) = lines(caplog, "has blocked the event loop")
    assert line.startswith("actor 'Rude' has blocked the event loop for ")
    assert "on_start at " in line


# A deadline, and a handler that does not mind.


@pytest.mark.virtual
async def test_a_handler_that_swallows_its_deadline_does_not_keep_its_actor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)
    got: list[str] = []
    freed = asyncio.Event()

    @app.application("a", deadline=5, retry=RetryPolicy(attempts=1))
    async def work(payload: str) -> None:
        got.append(payload)
        while payload == "stubborn" and not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue

    loop = asyncio.get_running_loop()
    async with app:
        began = loop.time()
        for payload in ("stubborn", "next"):
            app.socket().post("a", payload)
        await eventually(lambda: app.stats["messages.handled"] == 1)
        assert got == ["stubborn", "next"]
        assert 6 <= loop.time() - began < 7
        assert app.stats["actors.abandoned"] == app.stats["messages.cut_off"] == 1
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
    (line,) = lines(caplog, "keeps running although it was cancelled")
    assert "work at " in line
    assert "test_watchdog.py:" in line
    freed.set()


@pytest.mark.virtual
async def test_cancelling_and_errors_pass_through_a_deadline_as_without() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)
    events: list[str] = []

    class Work(Actor):
        deadline = 5
        retry = RetryPolicy(attempts=1)

        @on("a")
        async def work(self, payload: str, context: Context) -> None:
            if payload == "error":
                raise ValueError("no")
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
                events.append(f"{payload} cleaned up")
                raise

        async def on_stop(self) -> None:
            events.append("stopped")

    app.add(Work)
    async with app:
        app.socket().post("a", "error")
        await eventually(lambda: app.stats["messages.failed"] == 1)
        app.socket().post("a", "late")
        await eventually(lambda: app.stats["messages.failed"] == 2)
        assert events == ["late cleaned up"]
        app.socket().post("a", "cut")
        await asyncio.sleep(0.1)
    assert events == ["late cleaned up", "cut cleaned up", "stopped"]
    assert app.stats["actors.abandoned"] == 0
