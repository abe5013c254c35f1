"""Plain functions as handlers: a thread of their own and a socket that blocks."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, Socket, SyncSocket, on
from spa_dat.errors import (
    ActorStopped,
    ConfigurationError,
    DecodeError,
    NoResponder,
    PublishRefused,
    RemoteError,
)
from spa_dat.testing import Harness
from spa_dat.transports.memory import MemoryProvider
from support.elsewhere import threads, threads_end
from support.memory import Site
from support.probe import talking
from support.waiting import eventually, threads_have_left


@pytest.fixture
def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
def app(provider: MemoryProvider) -> DistributedApplication:
    return DistributedApplication(provider, name="plant", stop_timeout=5.0)


async def test_each_actor_has_one_thread_of_its_own_which_ends_with_it(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    seen: dict[str, set[int]] = {"one": set(), "two": set(), "async": set()}
    count = 0

    def handler(payload: str, context: Context) -> None:
        nonlocal count
        seen[context.actor].add(threading.get_ident())
        count += 1

    app.application("a", name="one")(handler)
    app.application("a", name="two")(handler)
    before = threads()
    async with app, talking(provider) as socket:
        assert len(threads() - before) == 2
        for _ in range(3):
            await socket.publish("a", "x")
        await eventually(lambda: count == 6)
    assert {len(seen["one"]), len(seen["two"])} == {1}
    assert threading.get_ident() not in seen["one"] | seen["two"]
    assert seen["one"] != seen["two"]
    threads_end(before)


async def test_the_event_loop_goes_on_while_a_handler_blocks(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    blocked, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    @app.application("a")
    def handler(payload: str) -> None:
        blocked.set()
        assert go_on.wait(10)
        order.append("thread")

    @app.application("b")
    async def other(payload: str) -> None:
        order.append("loop")
        go_on.set()

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(blocked.is_set)
        await socket.publish("b", "x")
        await eventually(lambda: order == ["loop", "thread"])


async def test_messages_are_handled_one_at_a_time_and_in_order(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    seen: list[int] = []
    running = 0

    @app.application("a", state=list)
    def handler(number: int, state: list[int]) -> None:
        nonlocal running
        running += 1
        assert running == 1
        time.sleep(0.001)
        state.append(number)
        seen[:] = state
        running -= 1

    async with app, talking(provider) as socket:
        for number in range(20):
            socket.post("a", number)
        await eventually(lambda: len(seen) == 20)
    assert seen == list(range(20))


async def test_the_sync_socket_publishes_posts_and_requests(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    results: list[Any] = []
    published: list[str] = []

    @app.application("start")
    def handler(payload: str, socket: SyncSocket) -> None:
        socket.publish("out", "published", headers={"n": "1"})
        socket.post("out", "posted")
        results.append(socket.request("double", 21, reply=int))
        results.append(socket.request("double", 21))
        results.append(socket.request_many("double", 4, reply=int, count=1))
        for topic, kind in (("nobody", NoResponder), ("double/bad", RemoteError)):
            try:
                socket.request(topic, "x", timeout=5.0)
            except kind as error:
                results.append(type(error).__name__)
        try:
            socket.publish("refused", "x")
        except PublishRefused as error:
            results.append(type(error).__name__)
        try:
            socket.request("double", 1, reply=list[str])
        except DecodeError as error:
            results.append(type(error).__name__)

    @app.application(["double", "double/bad"])
    def double(number: int) -> int:
        return number * 2

    @app.application("out")
    async def collect(payload: str) -> None:
        published.append(payload)

    provider.broker.faults.refuse_publish("refused")
    async with app, talking(provider) as socket:
        await socket.publish("start", "x")
        await eventually(lambda: len(results) == 7)
        await eventually(lambda: len(published) == 2)
    assert results == [
        42, b"42", [8], "NoResponder", "RemoteError", "PublishRefused", "DecodeError",
    ]  # fmt: skip
    assert published == ["published", "posted"]


def test_the_sync_socket_subscribes_and_unsubscribes() -> None:
    app = DistributedApplication("memory://", name="plant")
    seen: list[str] = []

    @app.application("control")
    def handler(payload: str, socket: SyncSocket) -> None:
        seen.append(payload)
        if payload == "subscribe":
            socket.subscribe("more/+")
        if payload == "unsubscribe":
            socket.unsubscribe("more/+")

    with Harness(app) as harness:
        harness.publish("more/1", "early")
        for topic, payload in (
            ("control", "subscribe"),
            ("more/1", "between"),
            ("control", "unsubscribe"),
            ("more/1", "late"),
            ("control", "end"),
        ):
            harness.publish(topic, payload)
            harness.settle()
    assert seen == ["subscribe", "between", "unsubscribe", "end"]


async def test_the_message_is_settled_after_what_its_thread_posted(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    @app.application("a", retry=RetryPolicy(attempts=1))
    def handler(payload: str, socket: SyncSocket) -> None:
        socket.post("refused", "x")

    provider.broker.faults.refuse_publish("refused")
    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)


async def test_a_sync_socket_on_the_event_loop_is_refused_instead_of_blocking_it(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    sockets: list[SyncSocket] = []

    @app.application("a")
    def handler(payload: str, socket: SyncSocket) -> None:
        sockets.append(socket)

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        (sync_socket,) = await eventually(lambda: sockets)
        with pytest.raises(ConfigurationError, match="use Socket in async functions"):
            sync_socket.publish("a", "x")
        with pytest.raises(ConfigurationError, match="on the event loop"):
            sync_socket.request("a", "x")


def test_a_thread_handler_that_raises_is_retried_and_its_requester_answered() -> None:
    app = DistributedApplication("memory://", name="plant")
    attempts: list[int] = []

    @app.application("a", retry=RetryPolicy(attempts=3, first=0.0))
    def handler(payload: str, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError("no")

    @app.application("ask")
    def answer(payload: str) -> str:
        raise KeyError("nothing")

    with Harness(app) as harness:
        harness.expect_failure(ValueError, KeyError)
        harness.publish("a", "x")
        harness.settle()
        assert len(harness.dead_letters()) == 1
        with pytest.raises(RemoteError, match="KeyError") as caught:
            harness.request("ask", "x")
        assert caught.value.code == "failed"
    assert attempts == [1, 2, 3]


def test_a_plain_function_may_return_the_coroutine_of_another() -> None:
    app = DistributedApplication("memory://", name="plant")

    async def really(number: int) -> int:
        return number + 1

    @app.application("ask")
    def answer(number: int) -> int:
        return really(number)  # type: ignore[return-value]

    with Harness(app) as harness:
        assert harness.request("ask", 1, reply=int) == 2


async def test_a_hung_thread_is_given_up_with_its_socket_and_state(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    release = threading.Event()
    after: list[str] = []
    states: list[dict[str, int]] = []

    @app.application("a", state=dict, deadline=0.2, retry=RetryPolicy(attempts=2, first=0.0))
    def handler(payload: str, socket: SyncSocket, state: dict[str, int], context: Context) -> None:
        states.append(state)
        if context.attempt == 1:
            release.wait(10)
            try:
                socket.publish("never", "x")
            except ActorStopped as error:
                after.append(str(error))
            return
        socket.publish("done", "x", retain=True)

    try:
        async with app, talking(provider) as socket:
            await socket.publish("a", "x")
            await eventually(lambda: "done" in provider.broker.retained)
            await eventually(lambda: app.stats["messages.handled"] == 1)
    finally:
        release.set()
    await eventually(lambda: after)
    assert "has ended" in after[0]
    assert states[0] is not states[1]
    assert app.stats["messages.cut_off"] == 1


async def test_a_thread_that_hangs_when_the_application_stops_does_not_hang_the_stop(
    provider: MemoryProvider,
) -> None:
    app = DistributedApplication(provider, name="plant", stop_timeout=0.2)
    started, release = threading.Event(), threading.Event()
    errors: list[Exception] = []

    @app.application("a")
    def handler(payload: str, socket: SyncSocket) -> None:
        started.set()
        release.wait(10)
        try:
            socket.publish("never", "x")
        except Exception as error:
            errors.append(error)

    try:
        async with app, talking(provider) as socket:
            await socket.publish("a", "x")
            await eventually(started.is_set)
    finally:
        release.set()
    await eventually(lambda: errors)
    assert isinstance(errors[0], ActorStopped)
    assert app.stats["actors.cut_off"] == 1
    assert len(provider.broker.queues["plant.0.handler"]) == 1


async def test_stopping_waits_for_a_thread_that_is_about_to_end(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    started = threading.Event()
    ended: list[str] = []

    @app.application("a")
    def handler(payload: str, socket: SyncSocket) -> None:
        started.set()
        time.sleep(0.2)
        socket.publish("out", "x", retain=True)
        ended.append("ended")

    async with talking(provider) as socket, app:
        await socket.publish("a", "x")
        await eventually(started.is_set)
    assert ended == ["ended"]
    assert app.stats["messages.handled"] == 1
    assert len(provider.broker.queues["plant.0.handler"]) == 0


CALLS: dict[str, Callable[[SyncSocket], object]] = {
    "request": lambda socket: socket.request("silent", timeout=1000),
    "request_many": lambda socket: socket.request_many("silent", timeout=1000),
    "publish": lambda socket: socket.publish("silent", timeout=1000),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_producer_in_a_thread_that_waits_for_its_socket_holds_no_stop_up(call: str) -> None:
    site = Site()
    silent = site.watch("silent")
    app = site.app("plant", stop_timeout=1000)
    ended: list[BaseException] = []

    @app.producer()
    def produce(socket: SyncSocket) -> None:
        site.faults.drop_confirmations()
        try:
            CALLS[call](socket)
        except BaseException as error:
            ended.append(error)
            raise

    async with asyncio.timeout(60), app:
        await eventually(lambda: bool(silent.envelopes))
    assert [type(error) for error in ended] == [ActorStopped]
    assert app.stats["actors.cut_off"] == 0


@pytest.mark.parametrize("call", CALLS)
async def test_a_thread_that_is_given_up_waits_for_its_socket_no_more(call: str) -> None:
    site = Site()
    site.watch("silent")
    app = site.app("plant")
    ended: list[BaseException] = []

    @app.application("n", name="actor", deadline=0.2, retry=RetryPolicy(attempts=1))
    def handle(number: int, socket: SyncSocket) -> None:
        site.faults.drop_confirmations()
        try:
            CALLS[call](socket)
        except BaseException as error:
            ended.append(error)
            raise

    async with app:
        site.number("n", 1)
        await eventually(lambda: bool(ended), 60)
    assert [type(error) for error in ended] == [ActorStopped]


async def test_what_a_thread_handler_puts_off_runs_in_its_thread(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    seen: list[tuple[str, int]] = []

    @app.application("a")
    def handler(payload: str, socket: SyncSocket, context: Context) -> None:
        def later(word: str) -> None:
            seen.append((word, threading.get_ident()))
            socket.publish("out", word, retain=True)

        async def coroutine() -> None:
            seen.append(("coroutine", threading.get_ident()))

        seen.append(("handler", threading.get_ident()))
        context.later(0.05, later, "later")
        context.later(0.01, coroutine)
        context.later(0.02, later, "never").cancel()

    # The loop refuses calls from other threads that are not safe.
    asyncio.get_running_loop().set_debug(True)
    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: "out" in provider.broker.retained)
    here = threading.get_ident()
    assert app.stats["messages.failed"] == 0
    assert [word for word, _ in seen] == ["handler", "coroutine", "later"]
    assert seen[0][1] == seen[2][1] != here
    assert seen[1][1] == here


async def test_a_thread_handler_may_stop_its_actor_and_the_application(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    @app.application("actor")
    def one(payload: str, context: Context) -> None:
        context.stop()

    @app.application("application")
    def two(payload: str) -> None:
        app.stop()

    asyncio.get_running_loop().set_debug(True)
    async with app, talking(provider) as socket:
        await socket.publish("actor", "x")
        await eventually(lambda: app.stats["messages.handled"] == 1)
        await socket.publish("application", "x")
        async with asyncio.timeout(60):
            await app.wait()
    assert app.stats["messages.failed"] == 0


def test_a_class_may_have_both_kinds_of_handlers() -> None:
    app = DistributedApplication("memory://", name="plant")
    here = threading.get_ident()
    seen: list[tuple[str, bool]] = []

    def note(word: str) -> None:
        seen.append((word, threading.get_ident() == here))

    class Boiler(Actor):
        @on("a")
        async def first(self, payload: str, socket: Socket) -> None:
            note(payload)
            await socket.publish("b", "from a")

        @on("b")
        def second(self, payload: str, socket: SyncSocket) -> None:
            note(payload)
            socket.publish("c", "from b")

        @on("c")
        async def third(self, payload: str) -> None:
            note(payload)

    app.add(Boiler)
    with Harness(app) as harness:
        harness.publish("a", "x")
    assert seen == [("x", True), ("from a", False), ("from b", True)]


@pytest.mark.virtual
async def test_virtual_time_waits_for_threads(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[float] = []

    @app.application("a")
    def handler(number: float) -> None:
        time.sleep(0.05)
        got.append(number)

    async with app, talking(provider) as socket:
        await socket.publish("a", 1.5)
        await asyncio.sleep(1000)
        assert got == [1.5]


@pytest.mark.parametrize("kind", ["async", "deadline", "def", "def deadline"])
@pytest.mark.parametrize("topic", ["failing", "nobody", "slow"])
async def test_requests_that_fail_keep_nothing_of_their_handler_alive(
    kind: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, logger="spa_dat")
    app = DistributedApplication("memory://", name="app")
    held: list[weakref.ref[threading.Event]] = []
    options: dict[str, Any] = {
        "retry": RetryPolicy(attempts=1),
        "deadline": 5.0 if "deadline" in kind else None,
    }

    free = asyncio.Event()

    def large() -> threading.Event:
        made = threading.Event()
        held.append(weakref.ref(made))
        return made

    if kind.startswith("def"):

        @app.application("n", **options)
        def plain(number: int, socket: SyncSocket) -> None:
            kept = large()
            socket.request(topic, number, reply=int, timeout=0.1)
            kept.set()

    else:

        @app.application("n", **options)
        async def handle(number: int, socket: Socket) -> None:
            kept = large()
            await socket.request(topic, number, reply=int, timeout=0.1)
            kept.set()

    @app.application("failing")
    async def failing(number: int) -> int:
        raise ValueError("x")

    @app.application("slow")
    async def slow(number: int) -> int:
        await free.wait()
        return number

    async with app:
        gc.collect()
        gc.disable()
        try:
            for number in range(5):
                await app.socket().publish("n", number)
            await eventually(lambda: len(held) == 5)
            # The last one may still be in the thread that has raised it.
            await threads_have_left(lambda: sum(one() is not None for one in held) <= 1)
        finally:
            gc.enable()
            free.set()


async def test_what_a_thread_puts_off_may_give_a_coroutine(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    done: list[str] = []

    async def note(text: str) -> None:
        done.append(text)

    @app.application("a")
    def handler(payload: str, context: Context) -> None:
        context.later(0, lambda: note(payload))

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: done == ["x"])


async def test_what_another_thread_puts_off_runs_on_the_loop_where_the_actor_has_no_thread(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    done: list[int] = []

    @app.application("a")
    async def handler(payload: str, context: Context) -> None:
        await asyncio.to_thread(context.later, 0, lambda: done.append(threading.get_ident()))

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: done == [threading.get_ident()])
    assert app.stats["timers.failed"] == 0


async def test_the_deadline_holds_for_a_coroutine_that_a_plain_function_returns(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    begun: list[str] = []

    async def work(payload: str) -> None:
        begun.append(payload)
        if payload == "hang":
            await asyncio.Event().wait()

    @app.application("a", deadline=0.2, retry=RetryPolicy(attempts=1))
    def handler(payload: str) -> Any:
        return work(payload)

    async with app, talking(provider) as socket:
        await socket.publish("a", "hang")
        await socket.publish("a", "next")
        await eventually(lambda: app.stats["messages.handled"] == 1)
    assert begun == ["hang", "next"]
    assert app.stats["messages.cut_off"] == 1


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_no_more_threads_are_left_behind_than_an_actor_may_have(
    app: DistributedApplication,
    provider: MemoryProvider,
    concurrency: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.runtime.handling._handler_thread._MOST_HUNG", 3)
    release = threading.Event()
    begun: list[int] = []

    @app.application("a", deadline=0.05, concurrency=concurrency)
    def handler(payload: int) -> int:
        begun.append(payload)
        release.wait(60)
        return payload

    before = threads()
    async with app, talking(provider) as socket:
        for number in range(6):
            expected = "its deadline" if number < 3 else "was not called: 3 of its threads"
            with pytest.raises(RemoteError, match=expected):
                await socket.request("a", number, reply=int, key="always the same lane")
        assert begun == [0, 1, 2]
        assert "still hang" in app.problems["handler"]
        assert not app.healthy
        release.set()
        await eventually(lambda: app.healthy)
        assert await socket.request("a", 7, reply=int, key="always the same lane") == 7
    threads_end(before)
