"""Resources of an actor with `def` handlers are opened, used and left in its thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from spa_dat import Actor, DistributedApplication, RestartPolicy, RetryPolicy, SyncSocket, on
from spa_dat.errors import ActorStopped, ConfigurationError, RestartLimitReached
from spa_dat.runtime.handling import _handler_thread
from spa_dat.testing import Harness
from support.waiting import eventually


@pytest.fixture
def app() -> DistributedApplication:
    return DistributedApplication("memory://", name="plant", stop_timeout=0.5)


@contextlib.contextmanager
def open_db() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("create table readings (value integer)")
        yield db


def total(db: sqlite3.Connection) -> int:
    (result,) = db.execute("select total(value) from readings").fetchone()
    return int(result)


class Threads:
    """Says in which thread what happened: ``loop``, or the first, second ... other one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._loop = threading.get_ident()
        self._seen: list[int] = []

    def note(self, what: str) -> None:
        ident = threading.get_ident()
        if ident == self._loop:
            self.events.append(f"{what} loop")
            return
        if ident not in self._seen:
            self._seen.append(ident)
        self.events.append(f"{what} {self._seen.index(ident) + 1}")

    def resource(self, name: str) -> Callable[[], contextlib.AbstractContextManager[str]]:
        @contextlib.contextmanager
        def opened() -> Iterator[str]:
            self.note(f"open {name}")
            try:
                yield name
            finally:
                self.note(f"leave {name}")

        return opened


@pytest.fixture
def threads() -> Threads:
    return Threads()


def test_sqlite_works_in_a_def_handler_a_def_producer_and_a_batch(
    app: DistributedApplication,
) -> None:
    @app.application("reading", ressources={"db": open_db}, replies=True)
    def store(value: int, db: sqlite3.Connection) -> int:
        db.execute("insert into readings values (?)", (value,))
        return total(db)

    @app.application("many", ressources={"db": open_db}, batch=(2, 0.1))
    def store_all(values: list[int], db: sqlite3.Connection, socket: SyncSocket) -> None:
        db.executemany("insert into readings values (?)", [(value,) for value in values])
        socket.post("sum", total(db))

    @app.producer(ressources={"db": open_db})
    def produce(db: sqlite3.Connection, socket: SyncSocket) -> None:
        socket.post("produced", total(db))

    with Harness(app) as harness:
        assert [harness.request("reading", n, reply=int) for n in (1, 2, 3)] == [1, 3, 6]
        harness.publish("many", 4)
        harness.publish("many", 5)
        harness.settle()
    assert harness.published("sum") == [9]
    assert harness.published("produced") == [0]


async def test_sqlite_works_on_an_ordinary_event_loop(app: DistributedApplication) -> None:
    @app.application("reading", ressources={"db": open_db})
    def store(value: int, db: sqlite3.Connection) -> int:
        db.execute("insert into readings values (?)", (value,))
        return total(db)

    for _ in range(2):
        async with app:
            assert await app.socket().request("reading", 2, reply=int) == 2
    assert app.stats["messages.failed"] == 0


def test_they_are_open_before_on_start_and_left_after_on_stop_in_the_same_thread(
    app: DistributedApplication, threads: Threads
) -> None:
    app.resource("shared", threads.resource("shared"))

    @contextlib.asynccontextmanager
    async def asynchronous() -> AsyncIterator[str]:
        threads.note("open asynchronous")
        yield "asynchronous"
        threads.note("leave asynchronous")

    class Store(Actor):
        ressources = {  # noqa: RUF012
            "one": threads.resource("one"),
            "asynchronous": partial(asynchronous),
            "two": threads.resource("two")(),
        }

        def on_start(self) -> None:
            threads.note("start")

        @on("a")
        def handle(self, payload: str, one: str, asynchronous: str, two: str, shared: str) -> None:
            threads.note(f"handle {one} {asynchronous} {two} {shared}")

        def on_stop(self, one: str) -> None:
            threads.note(f"stop {one}")

    app.add(Store)
    with Harness(app) as harness:
        harness.publish("a", "x")
    assert threads.events == [
        "open shared loop",
        "open asynchronous loop",
        "open one 1",
        "open two 1",
        "start loop",
        "handle one asynchronous two shared 1",
        "stop one 1",
        "leave two 1",
        "leave one 1",
        "leave asynchronous loop",
        "leave shared loop",
    ]


def test_a_def_hook_that_asks_for_one_runs_in_the_thread(app: DistributedApplication) -> None:
    class Store(Actor):
        ressources = {"db": open_db}  # noqa: RUF012

        def on_start(self, db: sqlite3.Connection) -> None:
            db.execute("insert into readings values (40)")

        @on("reading")
        def store(self, value: int, db: sqlite3.Connection) -> int:
            db.execute("insert into readings values (?)", (value,))
            return total(db)

        def on_stop(self, db: sqlite3.Connection) -> None:
            totals.append(total(db))

    totals: list[int] = []
    app.add(Store)
    with Harness(app) as harness:
        assert harness.request("reading", 2, reply=int) == 42
    assert totals == [42]


@pytest.mark.parametrize("kind", ["lanes", "mixed", "shared", "async"])
def test_elsewhere_they_are_opened_on_the_event_loop(
    app: DistributedApplication, threads: Threads, kind: str
) -> None:
    resource = threads.resource("one")
    if kind == "lanes":
        app.application("a", concurrency=2, ressources={"one": resource})(_plain)
    elif kind == "shared":
        app.resource("one", resource)
        app.application("a")(_plain)
    elif kind == "async":
        app.application("a", ressources={"one": resource})(_asynchronous)
    else:

        class Mixed(Actor):
            ressources = {"one": resource}  # noqa: RUF012

            @on("a")
            def plain(self, payload: str, one: str) -> None: ...

            @on("b")
            async def asynchronous(self, payload: str, one: str) -> None: ...

        app.add(Mixed)
    with Harness(app) as harness:
        harness.publish("a", "x")
    assert threads.events == ["open one loop", "leave one loop"]


def _plain(payload: str, one: str) -> None: ...


async def _asynchronous(payload: str, one: str) -> None: ...


def test_where_a_connection_is_used_in_another_thread_the_log_says_what_to_do(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture
) -> None:
    app.resource("db", open_db)

    @app.application("reading", retry=RetryPolicy(attempts=1))
    def store(value: int, db: sqlite3.Connection) -> None:
        db.execute("insert into readings values (?)", (value,))

    with Harness(app, allow_failures=sqlite3.ProgrammingError) as harness:
        harness.publish("reading", 1)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "message on 'reading' failed" in line
    assert "opened in their thread if its ressources= has a callable" in line
    assert "check_same_thread=False" in line


async def test_an_async_hook_that_uses_a_connection_is_told_what_to_do() -> None:
    app = DistributedApplication("memory://", name="plant", restart=RestartPolicy(intensity=0))

    class Store(Actor):
        ressources = {"db": open_db}  # noqa: RUF012

        async def on_start(self, db: sqlite3.Connection) -> None:
            total(db)

        @on("reading")
        def store(self, value: int) -> None: ...

    app.add(Store)
    with pytest.raises(RestartLimitReached) as caught:
        await app.__aenter__()
    assert caught.value.__cause__ is not None
    assert "def hooks" in caught.value.__cause__.__notes__[0]


async def test_a_thread_that_is_given_up_keeps_its_own_and_leaves_them_when_it_is_free(
    app: DistributedApplication, threads: Threads
) -> None:
    wedged, free = threading.Event(), threading.Event()

    @app.application(
        "a",
        ressources={"one": threads.resource("one")},
        deadline=0.05,
        retry=RetryPolicy(attempts=2, first=0.0),
    )
    def handle(payload: str, one: str) -> None:
        threads.note(f"handle {payload}")
        if not wedged.is_set():
            wedged.set()
            assert free.wait(30)
            threads.note("free")

    async with app:
        await app.socket().publish("a", "x")
        await eventually(lambda: "handle x 2" in threads.events)
        assert threads.events == ["open one 1", "handle x 1", "open one 2", "handle x 2"]
        free.set()
        await eventually(lambda: "leave one 1" in threads.events)
        await app.socket().publish("a", "y")
        await eventually(lambda: "handle y 2" in threads.events)
    assert threads.events[4:] == ["free 1", "leave one 1", "handle y 2", "leave one 2"]


def test_an_actor_that_is_started_again_in_a_new_thread_opens_them_anew(
    app: DistributedApplication, threads: Threads
) -> None:
    @app.application("a", ressources={"one": threads.resource("one"), "db": open_db})
    def handle(payload: str, one: str, db: sqlite3.Connection) -> None:
        threads.note(f"handle {total(db)}")

    with Harness(app) as harness:
        harness.publish("a", "x")
        harness.settle()
        harness.restart_actor("handle")
        harness.publish("a", "x")
        harness.settle()
    assert threads.events == [
        "open one 1",
        "handle 0 1",
        "leave one 1",
        "open one 2",
        "handle 0 2",
        "leave one 2",
    ]


def test_a_thread_whose_resources_do_not_open_again_is_an_actor_that_does_not_start(
    app: DistributedApplication,
) -> None:
    opened = 0

    @contextlib.contextmanager
    def flaky() -> Iterator[int]:
        nonlocal opened
        opened += 1
        if opened in (2, 3):
            raise OSError("locked")
        yield opened

    seen: list[tuple[str, int]] = []

    @app.application("a", ressources={"number": flaky}, retry=RetryPolicy(attempts=1))
    def handle(payload: str, number: int) -> None:
        seen.append((payload, number))

    with Harness(app, allow_failures=ConfigurationError) as harness:
        harness.publish("a", "x")
        harness.settle()
        harness.restart_actor("handle")
        harness.publish("a", "y")
        harness.advance(30)
    assert seen == [("x", 1), ("y", 4)]
    assert harness.dead_letters() == []


async def test_when_one_fails_to_open_the_application_does_not_start(
    app: DistributedApplication, threads: Threads
) -> None:
    @contextlib.contextmanager
    def bad() -> Iterator[None]:
        raise OSError("no such file")
        yield

    app.resource("shared", threads.resource("shared"))

    @app.application("a", ressources={"one": threads.resource("one"), "bad": bad})
    def handle(payload: str) -> None: ...

    with pytest.raises(
        ConfigurationError, match="'handle': resource 'bad' failed to open: OSError: no such file"
    ) as caught:
        await app.__aenter__()
    assert isinstance(caught.value.__cause__, OSError)
    assert threads.events == ["open shared loop", "open one 1", "leave one 1", "leave shared loop"]


async def test_a_callable_that_makes_an_asynchronous_one_is_told_where_it_can_be(
    app: DistributedApplication,
) -> None:
    @contextlib.asynccontextmanager
    async def asynchronous() -> AsyncIterator[None]:
        yield

    @app.application("a", ressources={"one": lambda: asynchronous()})
    def handle(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'one' failed to open.*app\.resource"):
        await app.__aenter__()


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(3)])
async def test_one_that_fails_to_close_is_reported_and_the_others_are_left(
    app: DistributedApplication,
    threads: Threads,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    @contextlib.contextmanager
    def bad() -> Iterator[None]:
        yield
        raise error

    @app.application("a", ressources={"one": threads.resource("one"), "bad": bad})
    def handle(payload: str) -> None: ...

    exits = pytest.raises(SystemExit) if isinstance(error, SystemExit) else contextlib.nullcontext()
    with exits:
        async with app:
            pass
    assert threads.events == ["open one 1", "leave one 1"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "resource 'bad' of actor 'handle' failed to close"
    ]


async def test_one_that_hangs_while_it_is_closed_is_named_and_so_is_what_stays_open(
    threads: Threads, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_handler_thread, "LEAST_FOR_RESOURCES", 0.2)
    app = DistributedApplication("memory://", name="plant", stop_timeout=0.1)
    over = threading.Event()

    @contextlib.contextmanager
    def hanging() -> Iterator[None]:
        yield
        over.wait()

    @app.application(
        "a",
        ressources={
            "one": threads.resource("one"),
            "two": hanging,
            "three": threads.resource("three"),
        },
    )
    def handle(payload: str) -> None: ...

    try:
        async with app:
            pass
        told = "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
        assert "plant: resource 'two' of actor 'handle': a thread cannot be ended" in told
        assert "hanging at " in told
        assert "plant: not closed, and left as they are: resource 'one' of actor 'handle'" in told
        assert "three" not in told
    finally:
        over.set()


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(3)])
async def test_one_that_fails_to_close_is_no_failure_of_the_others(
    app: DistributedApplication, error: BaseException
) -> None:
    left: list[str] = []

    @contextlib.contextmanager
    def unguarded() -> Iterator[None]:
        yield
        left.append("unguarded")

    @contextlib.contextmanager
    def bad() -> Iterator[None]:
        yield
        raise error

    @app.application("a", ressources={"one": unguarded, "bad": bad})
    def handle(payload: str) -> None: ...

    with contextlib.suppress(SystemExit):
        async with app:
            pass
    assert left == ["unguarded"]


async def test_one_that_fails_to_open_is_not_suppressed_by_the_others(
    app: DistributedApplication,
) -> None:
    @contextlib.contextmanager
    def bad() -> Iterator[None]:
        raise OSError("no such table")
        yield

    quiet = contextlib.suppress(Exception)

    @app.application("a", ressources={"one": quiet, "bad": bad})
    def handle(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match="'bad' failed to open: OSError: no such table"):
        await app.__aenter__()


async def test_a_stop_while_one_hangs_in_opening_ends_the_start_and_says_where(
    app: DistributedApplication, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    opening, free = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def hanging() -> Iterator[None]:
        opening.set()
        assert free.wait(30)
        yield
        threads.note("leave hanging")

    @app.application("a", ressources={"one": hanging})
    def handle(payload: str) -> None: ...

    starting = asyncio.ensure_future(app.__aenter__())
    await eventually(opening.is_set)
    async with asyncio.timeout(20):
        await app.aclose()
    with pytest.raises(ActorStopped, match="stopped"):
        await starting
    free.set()
    await eventually(lambda: threads.events == ["leave hanging 1"])


def test_a_context_variable_can_be_taken_back(app: DistributedApplication) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    @contextlib.contextmanager
    def bound() -> Iterator[None]:
        token = variable.set("bound")
        yield
        variable.reset(token)

    @app.application("a", ressources={"one": bound})
    def handle(payload: str, one: None) -> None: ...

    with Harness(app) as harness:
        harness.publish("a", "x")


async def test_one_that_hangs_in_leaving_does_not_hang_the_stop(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spa_dat.runtime.handling._handler_thread.LEAST_FOR_RESOURCES", 0.1)
    free = threading.Event()

    @contextlib.contextmanager
    def hanging() -> Iterator[None]:
        yield
        free.wait(30)

    @app.application("a", ressources={"one": hanging})
    def handle(payload: str) -> None: ...

    async with asyncio.timeout(20):
        async with app:
            pass
    free.set()
    assert app.stats["actors.cut_off"] == 1
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []
