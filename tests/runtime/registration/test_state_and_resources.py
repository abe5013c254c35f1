"""State belongs to one actor; resources are open from the first message to the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, Socket, on
from spa_dat.errors import ActorStopped, ConfigurationError
from spa_dat.testing import Harness
from support.waiting import eventually


@pytest.fixture
def app() -> DistributedApplication:
    return DistributedApplication("memory://", name="plant")


@dataclass
class Tally:
    count: int = 0


# State.


@pytest.mark.parametrize("state", [Tally, lambda: Tally(), partial(Tally, 0), Tally()])
def test_state_is_one_object_from_message_to_message(
    app: DistributedApplication, state: Any
) -> None:
    seen: list[int] = []

    @app.application("a", state=state)
    async def handler(payload: str, state: Tally) -> None:
        state.count += 1
        seen.append(state.count)

    with Harness(app) as harness:
        for _ in range(3):
            harness.publish("a", "x")
    assert seen == [1, 2, 3]
    assert harness.state("handler") == Tally(3)


def test_a_factory_makes_a_state_for_each_actor_and_each_run(app: DistributedApplication) -> None:
    seen: list[tuple[str, Tally]] = []
    for name in ("first", "second"):

        @app.application("a", name=name, state=Tally)
        async def handler(payload: str, state: Tally, context: Context) -> None:
            seen.append((context.actor, state))

    with Harness(app) as harness:
        harness.publish("a", "x")
        harness.settle()
        harness.restart()
        harness.publish("a", "x")
    assert len({id(state) for _, state in seen}) == 4
    assert sorted(name for name, _ in seen) == ["first", "first", "second", "second"]


def test_a_callable_object_is_a_value_not_a_factory(app: DistributedApplication) -> None:
    class Model:
        def __call__(self, x: float) -> float:
            return 2 * x

    @app.application("a", state=Model())
    async def predict(x: float, state: Model, socket: Socket) -> None:
        socket.post("b", state(x))

    with Harness(app) as harness:
        harness.publish("a", 1.5)
    assert harness.published("b") == [3.0]


def test_state_is_replaced_through_the_context(app: DistributedApplication) -> None:
    seen: list[int] = []

    @app.application("a", state=0)
    async def handler(payload: str, state: int, context: Context) -> None:
        seen.append(state)
        context.state = state + 1
        assert context.state == state + 1

    with Harness(app) as harness:
        for _ in range(3):
            harness.publish("a", "x")
    assert seen == [0, 1, 2]
    assert harness.state("handler") == 3


def test_state_is_not_rolled_back_when_a_handler_fails(app: DistributedApplication) -> None:
    @app.application("a", state=Tally, retry=RetryPolicy(attempts=3, first=0.0))
    async def handler(payload: str, state: Tally) -> None:
        state.count += 1
        if state.count < 3:
            raise ValueError("not yet")

    with Harness(app, allow_failures=ValueError) as harness:
        harness.publish("a", "x")
    assert harness.state("handler") == Tally(3)
    assert harness.dead_letters() == []


async def test_a_state_factory_that_fails_is_named_and_nothing_is_left(
    app: DistributedApplication, events: Events
) -> None:
    class NeedsArguments:
        def __init__(self, size: int) -> None: ...

    @app.application("a", state=NeedsArguments, ressources={"db": events.resource("db")})
    async def handler(payload: str, state: NeedsArguments, db: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'handler': its state.*NeedsArguments.*size"):
        await app.__aenter__()
    assert events == ["open db", "close db"]


# Resources.


class Events(list[str]):
    """What happened to resources, in order."""

    def resource(
        self, name: str, *, fail: BaseException | None = None, close: BaseException | None = None
    ) -> Callable[[], contextlib.AbstractAsyncContextManager[str]]:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[str]:
            if fail is not None:
                self.append(f"fail {name}")
                raise fail
            self.append(f"open {name}")
            try:
                yield name
            finally:
                self.append(f"close {name}")
                if close is not None:
                    raise close

        return opened

    def sync(self, name: str) -> contextlib.AbstractContextManager[str]:
        @contextlib.contextmanager
        def opened() -> Iterator[str]:
            self.append(f"open {name}")
            yield name
            self.append(f"close {name}")

        return opened()


@pytest.fixture
def events() -> Events:
    return Events()


def test_resources_are_open_from_before_the_first_message_until_after_the_last(
    app: DistributedApplication, events: Events
) -> None:
    app.resource("shared", events.resource("shared"))

    @app.application("a", ressources={"one": events.resource("one"), "two": events.sync("two")})
    async def handler(payload: str, one: str, two: str, shared: str) -> None:
        events.append(f"handle {one} {two} {shared}")

    class Boiler(Actor):
        async def on_start(self) -> None:
            events.append("on_start")

        @on("b")
        async def measured(self, payload: str, shared: str) -> None: ...

        async def on_stop(self) -> None:
            events.append("on_stop")

    app.add(Boiler)
    with Harness(app) as harness:
        harness.publish("a", "x")
    assert events == [
        "open shared",
        "open one",
        "open two",
        "on_start",
        "handle one two shared",
        "on_stop",
        "close two",
        "close one",
        "close shared",
    ]


async def test_what_is_no_resource_is_refused_with_what_would_be_one(
    app: DistributedApplication,
) -> None:
    async def open_it() -> int:
        return 1

    for given, kind in ((open_it, "coroutine"), (dict, "dict")):

        @app.application("a", ressources={"it": given}, replace=True)  # type: ignore[dict-item]
        async def handler(payload: str, it: object) -> None: ...

        with pytest.raises(
            ConfigurationError, match=f"returned {kind}.*@contextlib.contextmanager"
        ):
            await app.start()


async def test_when_a_resource_fails_to_open_the_others_are_left_in_reverse_order(
    app: DistributedApplication, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    app.resource("one", events.resource("one"))

    @app.application(
        "a",
        ressources={
            "two": events.resource("two"),
            "bad": events.resource("bad", fail=OSError("no such host")),
            "never": events.resource("never"),
        },
    )
    async def handler(payload: str) -> None: ...

    class Boiler(Actor):
        async def on_start(self) -> None:
            events.append("on_start")

        @on("b")
        async def measured(self, payload: str) -> None: ...

    app.add(Boiler)
    with pytest.raises(ConfigurationError) as caught:
        await app.__aenter__()
    assert "actor 'handler': resource 'bad' failed to open: OSError: no such host" in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert events == ["open one", "open two", "fail bad", "close two", "close one"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not app.healthy


async def test_a_resource_that_cancels_itself_while_opening_is_a_failure_not_a_hang(
    app: DistributedApplication, events: Events
) -> None:
    @app.application("a", ressources={"bad": events.resource("bad", fail=asyncio.CancelledError())})
    async def handler(payload: str) -> None: ...

    async with asyncio.timeout(60):
        with pytest.raises(ConfigurationError, match="'bad' failed to open: CancelledError"):
            await app.__aenter__()


async def test_a_callable_that_returns_no_context_manager_is_named(
    app: DistributedApplication,
) -> None:
    @app.application("a", ressources={"db": lambda: 5})  # type: ignore[dict-item,return-value]
    async def handler(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'db' failed to open.*int, not a"):
        await app.__aenter__()


def sync_generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [sync_generator, async_generator])
def test_a_forgotten_decorator_of_a_resource_is_named(
    app: DistributedApplication, function: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"'db' is a function with `yield`.*@contextlib\."):
        app.resource("db", function)


@pytest.mark.parametrize(
    "once",
    [
        contextlib.contextmanager(sync_generator),
        contextlib.asynccontextmanager(async_generator),
    ],
)
async def test_a_resource_that_cannot_be_entered_again_says_what_to_give(
    app: DistributedApplication, once: Any
) -> None:
    @app.application("a", ressources={"db": once()})
    async def handler(payload: str, db: int) -> None: ...

    async with app:
        pass
    with pytest.raises(ConfigurationError, match=r"'db' failed to open.*give the function itself"):
        await app.__aenter__()


@pytest.mark.parametrize("error", [OSError("disk full"), GeneratorExit()], ids=["error", "exit"])
async def test_a_resource_that_fails_to_close_is_reported_and_the_others_are_closed(
    app: DistributedApplication,
    events: Events,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    @app.application(
        "a",
        ressources={
            "one": events.resource("one"),
            "bad": events.resource("bad", close=error),
        },
    )
    async def handler(payload: str) -> None: ...

    async with app:
        pass
    assert events == ["open one", "open bad", "close bad", "close one"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "resource 'bad' of actor 'handler' failed to close"
    ]


async def test_a_resource_that_fails_to_close_is_no_failure_of_the_others(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[str] = []

    def resource(name: str, error: BaseException) -> Any:
        @contextlib.asynccontextmanager
        async def unguarded() -> AsyncIterator[None]:
            yield
            left.append(name)
            raise error

        return unguarded

    class Outermost:
        def __enter__(self) -> None: ...

        def __exit__(self, *exception: object) -> bool:
            left.append(f"outermost {exception[1]}")
            return True

    @app.application(
        "a",
        ressources={
            "outermost": Outermost(),
            "one": resource("one", OSError("disk full")),
            "two": resource("two", SystemExit(3)),
        },
    )
    async def handler(payload: str) -> None: ...

    with pytest.raises(SystemExit) as exited:
        async with app:
            pass
    assert exited.value.code == 3
    assert left == ["two", "one", "outermost None"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "resource 'two' of actor 'handler' failed to close",
        "resource 'one' of actor 'handler' failed to close",
    ]


@pytest.mark.virtual
async def test_a_start_that_is_cancelled_while_a_resource_hangs_leaves_the_others(
    app: DistributedApplication, events: Events
) -> None:
    @contextlib.asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        events.append("hangs")
        await asyncio.get_running_loop().create_future()
        yield

    @app.application("a", ressources={"one": events.resource("one"), "two": hanging})
    async def handler(payload: str) -> None: ...

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await app.__aenter__()
    assert events == ["open one", "hangs", "close one"]


@pytest.mark.virtual
async def test_a_resource_that_hangs_while_closing_does_not_hang_the_stop(
    app: DistributedApplication, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().create_future()

    @app.application("a", ressources={"one": events.resource("one"), "two": hanging})
    async def handler(payload: str) -> None: ...

    async with asyncio.timeout(100):
        async with app:
            pass
    assert events == ["open one", "close one"]
    assert "did not close within" in caplog.text


@pytest.mark.virtual
async def test_resources_that_hang_while_closing_are_named_and_the_others_are_closed_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=20)
    left: list[str] = []

    @contextlib.asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        yield
        # Just after the yield: a cancellation that was meant for another one would skip it.
        await asyncio.sleep(1.0)
        left.append("pool")

    @contextlib.asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        try:
            yield
            await asyncio.get_running_loop().create_future()
        finally:
            # Its cleanup hangs as well.
            await asyncio.get_running_loop().create_future()

    class Outer:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exception: object) -> None:
            left.append(f"outer {exception[1]}")

    app.resource("outer", Outer)
    app.resource("pool", pool)

    @app.application("a", ressources={"one": hanging, "two": hanging})
    async def handler(payload: str) -> None: ...

    loop = asyncio.get_running_loop()
    async with app:
        began = loop.time()
    assert left == ["pool", "outer None"]
    # Of virtual time, which passes as the runtime decides.
    assert loop.time() - began < 20
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "resource 'two' of actor 'handler' did not close within 10 s and is cut off",
        "resource 'one' of actor 'handler' did not close within 4.5 s and is cut off",
    ]


@pytest.mark.virtual
async def test_a_resource_that_awaits_a_cancelled_task_of_its_own_does_not_cancel_the_others(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[str] = []

    @contextlib.asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        yield
        left.append("pool")

    @contextlib.asynccontextmanager
    async def refreshing() -> AsyncIterator[None]:
        task = asyncio.ensure_future(asyncio.sleep(1000))
        yield
        task.cancel()
        await task

    @app.application("a", ressources={"pool": pool, "refreshing": refreshing})
    async def handler(payload: str) -> None: ...

    async with app:
        pass
    assert left == ["pool"]
    assert "resource 'refreshing' of actor 'handler' failed to close" in caplog.text


@pytest.mark.virtual
async def test_what_is_left_open_behind_a_resource_that_cannot_be_cancelled_is_named(
    app: DistributedApplication, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        yield
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    app.resource("db", events.resource("db"))

    @app.application("a", ressources={"one": events.resource("one"), "two": stubborn})
    async def handler(payload: str) -> None: ...

    async with app:
        pass
    assert events == ["open db", "open one"]
    assert (
        "plant: not closed, and left as they are:"
        " resource 'db' of application, resource 'one' of actor 'handler'"
    ) in caplog.text
    assert (
        "resource 'two' of actor 'handler' keeps running although it was cancelled" in caplog.text
    )
    over.set()
    await eventually(lambda: len(events) == 4)


@pytest.mark.virtual
async def test_a_resource_that_cannot_be_cancelled_while_it_is_opened_is_named(
    app: DistributedApplication, caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
        yield

    app.resource("db", stubborn)

    @app.application("a")
    async def handler(payload: str) -> None: ...

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await app.__aenter__()
    assert "resource 'db' of application (stubborn at " in caplog.text
    assert "resource 'db' of application keeps running although it was cancelled" in caplog.text
    over.set()
    await asyncio.sleep(0.1)


async def test_resources_are_entered_and_left_in_the_same_task(
    app: DistributedApplication,
) -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    @contextlib.asynccontextmanager
    async def group() -> AsyncIterator[asyncio.TaskGroup]:
        tasks.append(asyncio.current_task())
        async with asyncio.TaskGroup() as tg:
            yield tg
        tasks.append(asyncio.current_task())

    @app.application("a", ressources={"group": group})
    async def handler(payload: str, group: asyncio.TaskGroup) -> None: ...

    async with app:
        pass
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


def test_resources_survive_restarts_of_the_actor(
    app: DistributedApplication, events: Events
) -> None:
    starts = Counter[str]()

    class Boiler(Actor):
        ressources = {"db": events.resource("db")}  # noqa: RUF012

        async def on_start(self) -> None:
            starts["all"] += 1
            if starts["all"] < 3:
                raise ConnectionError("not yet")

        @on("a")
        async def measured(self, payload: str, db: str) -> None: ...

    app.add(Boiler)
    with Harness(app, allow_failures=ConnectionError) as harness:
        assert starts["all"] == 3
        harness.restart_actor("Boiler")
        harness.settle()
        assert starts["all"] == 4
        assert events == ["open db"]


async def test_factories_are_opened_again_in_a_further_run_and_one_use_managers_are_named(
    app: DistributedApplication, events: Events
) -> None:
    @app.application("a", ressources={"one": events.resource("one"), "two": events.sync("two")})
    async def handler(payload: str, one: str, two: str) -> None: ...

    async with app:
        pass
    with pytest.raises(ConfigurationError, match="'two' failed to open"):
        await app.__aenter__()
    assert events == ["open one", "open two", "close two", "close one", "open one", "close one"]


def test_producers_have_resources_and_state_too(
    app: DistributedApplication, events: Events
) -> None:
    @app.producer(state=Tally, ressources={"db": events.resource("db")})
    async def produce(socket: Socket, state: Tally, db: str, context: Context) -> None:
        state.count += 1
        events.append(f"{db} {state.count} {context.app} {context.actor} {context.instance}")

    with Harness(app):
        pass
    assert events == ["open db", "db 1 plant produce 0", "close db"]


def test_keyword_arguments_get_everything_injectable(
    app: DistributedApplication, events: Events
) -> None:
    seen: list[dict[str, Any]] = []

    @app.application("plant/{machine}", state=5, ressources={"db": events.resource("db")})
    async def handler(**everything: Any) -> None:
        seen.append(everything)

    with Harness(app) as harness:
        harness.publish("plant/boiler", "x")
    (everything,) = seen
    assert everything["machine"] == "boiler"
    assert everything["db"] == "db"
    assert everything["state"] == 5
    assert everything["payload"] == b"x"
    assert everything["message"].topic == "plant/boiler"
    assert set(everything) == {
        "machine", "db", "state", "payload", "message", "socket", "context", "message_builder"
    }  # fmt: skip


@pytest.mark.virtual
async def test_stopping_while_resources_open_ends_the_start(
    app: DistributedApplication, events: Events
) -> None:
    opening = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        opening.set()
        await asyncio.get_running_loop().create_future()
        yield

    @app.application("a", ressources={"one": events.resource("one"), "two": hanging})
    async def handler(payload: str) -> None: ...

    starting = asyncio.ensure_future(app.__aenter__())
    await opening.wait()
    async with asyncio.timeout(1.0):
        await app.aclose()
    with pytest.raises(ActorStopped, match="stopped while"):
        await starting
    assert events == ["open one", "close one"]


@contextlib.asynccontextmanager
async def ending_early(
    how: str, background: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[None]:
    """Be ended from inside: by a task that fails, by a timeout, else by being cancelled."""
    if how == "error":
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(background())
            yield
    elif how == "timeout":
        async with asyncio.timeout(0.05):
            yield
    else:
        keeper = asyncio.current_task()
        assert keeper is not None
        asyncio.get_running_loop().call_later(0.05, keeper.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            yield


@pytest.mark.parametrize("how", ["error", "timeout", "swallowed"])
async def test_a_resource_that_ends_while_it_is_used_ends_the_application_with_a_reason(
    app: DistributedApplication, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[str] = []
    go = asyncio.Event()

    @contextlib.contextmanager
    def other() -> Iterator[str]:
        try:
            yield "other"
        finally:
            left.append("other")

    @contextlib.asynccontextmanager
    async def scope() -> AsyncIterator[None]:
        async def background() -> None:
            await go.wait()
            raise ValueError("the background failed")

        async with ending_early(how, background):
            yield

    @app.application("a", ressources={"other": other, "scope": scope})
    async def handler(payload: str, other: str) -> None: ...

    async with app:
        assert app.healthy
        go.set()
        with pytest.raises(ConfigurationError, match="a resource ended while"):
            await app.wait()
        assert "a resource ended" in app.problems["plant"]
    assert left == ["other"]
    assert any("a resource ended while" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("how", ["error", "timeout", "cancel"])
async def test_a_resource_that_ends_while_others_are_opened_is_why_the_start_fails(
    how: str,
) -> None:
    app = DistributedApplication("memory://", name="plant")
    left: list[str] = []

    @contextlib.asynccontextmanager
    async def scope() -> AsyncIterator[None]:
        async def background() -> None:
            await asyncio.sleep(0.05)
            raise ValueError("the background failed")

        async with ending_early(how, background):
            yield
        left.append("scope")

    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await asyncio.sleep(10)
        yield

    @app.application("a", ressources={"scope": scope, "slow": slow})
    async def handler(payload: str) -> None: ...

    told = "a resource ended while resource 'slow' of actor 'handler' was being opened"
    with pytest.raises(ConfigurationError, match=told):
        async with app:
            pass
    assert left == (["scope"] if how == "cancel" else [])
