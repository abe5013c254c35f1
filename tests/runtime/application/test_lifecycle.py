"""The order of starting and stopping, and what is left when either goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    MemoryConfig,
    RestartPolicy,
    RetryPolicy,
    Socket,
    SocketProviderFactory,
    on,
)
from spa_dat.errors import ActorStopped, ConfigurationError, ConnectFailed, RestartLimitReached
from spa_dat.harness import VirtualEnvironment
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.application._lifecycle import RunState
from spa_dat.transports.memory import MemoryProvider
from support.elsewhere import threads, threads_end
from support.probe import talking
from support.scripted import Peer, ScriptedBroker
from support.waiting import eventually


@pytest.fixture
def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
def app(provider: MemoryProvider) -> DistributedApplication:
    return DistributedApplication(provider, name="plant", environment=VirtualEnvironment())


def now() -> float:
    return asyncio.get_running_loop().time()


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Starting.


async def test_everything_starts_and_stops_in_order(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    events: list[str] = []
    broker = provider.broker

    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        events.append(f"resource opens, connected: {list(broker.links)}")
        yield
        events.append(f"resource closes, connected: {list(broker.links)}")

    class Boiler(Actor):
        ressources = {"db": resource}  # noqa: RUF012

        async def on_start(self) -> None:
            events.append(f"on_start, subscribed: {list(broker.queues['plant.0.Boiler'].filters)}")

        @on("a")
        async def measured(self, payload: str) -> None:
            events.append(payload)

        async def on_stop(self) -> None:
            events.append("on_stop")

    app.add(Boiler)

    @app.producer(every=1000)
    async def produce(socket: Socket) -> None:
        events.append(f"producer, subscribed: {list(broker.queues['plant.0.Boiler'].filters)}")
        await socket.publish("a", "message")

    async with app:
        await eventually(lambda: "message" in events)
        assert app.healthy
    assert not app.healthy
    assert events == [
        "resource opens, connected: ['plant.0']",
        "on_start, subscribed: ['a']",
        "producer, subscribed: ['a']",
        "message",
        "on_stop",
        "resource closes, connected: ['plant.0']",
    ]
    assert dict(broker.links) == {}


@pytest.mark.virtual
async def test_an_actor_whose_start_fails_is_started_again(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    made: list[Actor] = []
    got: list[str] = []

    class Boiler(Actor):
        def __init__(self) -> None:
            made.append(self)

        async def on_start(self) -> None:
            if len(made) < 3:
                raise ConnectionError("no boiler yet")

        @on("a")
        async def measured(self, payload: str) -> None:
            assert self is made[-1]
            got.append(payload)

    app.add(Boiler)
    async with app, talking(provider) as socket:
        assert app.healthy
        await socket.publish("a", "x")
        await eventually(lambda: got == ["x"])
    assert len(made) == 3
    assert app.stats["actors.failed"] == 2


@pytest.mark.virtual
async def test_an_actor_that_never_starts_ends_the_start_and_leaves_nothing(
    provider: MemoryProvider,
) -> None:
    events: list[str] = []
    app = DistributedApplication(
        provider, name="plant", restart=RestartPolicy(intensity=2, period=60.0)
    )

    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        events.append("open")
        yield
        events.append("close")

    class Good(Actor):
        ressources = {"db": resource}  # noqa: RUF012

        @on("a")
        def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            events.append("on_stop of the other")

    class Bad(Actor):
        async def on_start(self) -> None:
            events.append("try")
            raise ConnectionError("no boiler")

        @on("b")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            events.append("never")

    app.add(Good)
    bad = app.add(Bad)
    before = threads()
    with pytest.raises(RestartLimitReached, match=r"Bad.*no boiler"):
        await app.__aenter__()
    assert events == ["open", "try", "try", "try", "on_stop of the other", "close"]
    assert dict(provider.broker.links) == {}
    threads_end(before)
    with pytest.raises(ActorStopped):
        _ = bad.ref


async def test_a_constructor_that_raises_is_named_and_nothing_is_left(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    class First(Actor):
        @on("a")
        def measured(self, payload: str) -> None: ...

    class Boiler(Actor):
        def __init__(self, limit: float) -> None:
            raise ValueError(f"{limit} is too high")

        @on("a")
        def measured(self, payload: str) -> None: ...

    app.add(First)
    app.add(Boiler, limit=90.0)
    before = threads()
    with pytest.raises(ConfigurationError, match=r"'Boiler' could not be made: ValueError: 90\.0"):
        await app.__aenter__()
    assert problems(caplog) == []
    assert dict(provider.broker.links) == {}
    threads_end(before)


@pytest.mark.virtual
async def test_a_bus_that_can_not_be_reached_ends_the_start(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    @app.application("a")
    async def handler(payload: str) -> None: ...

    provider.broker.faults.refuse_connections()
    with pytest.raises(ConnectFailed, match=r"plant\.0.*within 10 s"):
        await app.__aenter__()
    assert problems(caplog) == []
    provider.broker.faults.allow()
    async with app:
        assert app.healthy


@pytest.mark.virtual
async def test_a_start_can_be_cancelled_at_any_point(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        await asyncio.sleep(1.0)
        try:
            yield
        finally:
            await asyncio.sleep(0.01)

    class Boiler(Actor):
        ressources = {"db": slow}  # noqa: RUF012

        async def on_start(self) -> None:
            await asyncio.sleep(1.0)

        @on("a")
        def measured(self, payload: str) -> None: ...

    app.add(Boiler)
    app.producer(name="tick", every=1.0)(lambda: None)
    for seconds in (0.0, 0.3, 1.0, 1.5, 1.9999999):
        before = threads()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await app.__aenter__()
        assert dict(provider.broker.links) == {}
        assert not app.healthy
        threads_end(before)
    assert app.stats["producers.called"] == 0
    async with app:
        assert app.healthy


@pytest.mark.virtual
async def test_stop_during_the_start_lets_it_end_right_after(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        async def on_start(self) -> None:
            app.stop()

        @on("a")
        async def measured(self, payload: str) -> None: ...

    app.add(Boiler)
    async with app:
        await asyncio.wait_for(app.wait(), 1.0)


@pytest.mark.virtual
async def test_closing_while_an_actor_starts_ends_the_start(app: DistributedApplication) -> None:
    events: list[str] = []

    class Boiler(Actor):
        async def on_start(self) -> None:
            await asyncio.sleep(1.0)

        @on("a")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            events.append("on_stop")

    app.add(Boiler)
    app.producer(name="produce")(lambda: events.append("produced"))
    starting = asyncio.ensure_future(app.__aenter__())
    await asyncio.sleep(0.5)
    await app.aclose()
    with pytest.raises(ActorStopped):
        await starting
    assert "produced" not in events


# Identity.


async def test_one_name_instance_and_bus_twice_in_a_process_is_refused(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        deliver = "all"

        @on("a")
        async def measured(self, payload: str) -> None: ...

    copy = DistributedApplication(provider, name="plant")
    further = DistributedApplication(provider, name="plant", instance="1")
    elsewhere = DistributedApplication("memory://", name="plant")
    for each in (app, copy, further, elsewhere):
        each.add(Boiler)
    async with app:
        with pytest.raises(ConfigurationError, match=r"'plant' instance '0' is already running"):
            await copy.__aenter__()
        async with further, elsewhere:
            assert app.healthy
            assert further.healthy
    async with copy:
        assert copy.healthy


async def test_a_further_instance_has_to_say_how_messages_are_spread(
    provider: MemoryProvider,
) -> None:
    got: list[str] = []

    async def handler(payload: str, context: Context) -> None:
        got.append(context.instance)

    unsaid = DistributedApplication(provider, name="plant", instance="1")
    unsaid.application("a")(handler)
    with pytest.raises(ConfigurationError, match=r"deliver='share'.*deliver='all'"):
        await unsaid.__aenter__()
    for deliver, count in (("all", 2), ("share", 1)):
        apps = []
        for instance in ("0", "1"):
            app = DistributedApplication(provider, name="plant", instance=instance)
            app.application("a", deliver=deliver, name=deliver)(handler)  # type: ignore[call-overload]
            apps.append(app)
        got.clear()
        async with apps[0], apps[1], talking(provider) as socket:
            await socket.publish("a", "x")
            await eventually(lambda count=count: len(got) >= count)  # type: ignore[misc]
            await socket.publish("a", "x")
            await eventually(lambda count=count: len(got) >= 2 * count)  # type: ignore[misc]
        assert len(got) == 2 * count


async def test_an_ephemeral_application_leaves_nothing_and_says_so(
    provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = DistributedApplication(provider)
    got: list[str] = []

    @app.application("a")
    async def handler(payload: str) -> None:
        got.append(payload)

    async with talking(provider) as socket:
        async with app:
            await socket.publish("a", "while it runs")
            await eventually(lambda: got == ["while it runs"])
        assert not any("handler" in name for name in provider.broker.queues)
        await socket.publish("a", "while it is away")
        async with app:
            await socket.publish("a", "again")
            await eventually(lambda: len(got) == 2)
    assert got == ["while it runs", "again"]
    assert "no messages are kept for it while it is away" in caplog.text


async def test_a_named_application_gets_what_came_while_it_was_away(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[str] = []

    @app.application("a")
    async def handler(payload: str) -> None:
        got.append(payload)

    async with talking(provider) as socket:
        for number in range(3):
            async with app:
                await eventually(lambda number=number: len(got) == number)  # type: ignore[misc]
            await socket.publish("a", str(number))
        async with app:
            await eventually(lambda: got == ["0", "1", "2"])


# Stopping.


@pytest.mark.virtual
async def test_stopping_lets_the_running_handler_end_and_leaves_the_rest_to_the_bus(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    @app.application("a")
    async def handler(number: int, socket: Socket) -> None:
        await asyncio.sleep(3.0)
        await socket.publish("out", number, retain=True)
        done.append(number)

    async with talking(provider) as socket:
        async with app:
            for number in range(5):
                await socket.publish("a", number)
            await asyncio.sleep(4.0)
        assert done == [0, 1]
        assert len(provider.broker.queues["plant.0.handler"]) == 3
        assert problems(caplog) == []
        async with app:
            await eventually(lambda: done == [0, 1, 2, 3, 4], timeout=30)


@pytest.mark.virtual
async def test_a_handler_that_takes_longer_than_the_stop_is_cut_off_and_its_message_comes_again(
    provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    app = DistributedApplication(provider, name="plant", stop_timeout=2.0)
    events: list[str] = []

    @app.application("a")
    async def slow(payload: str) -> None:
        try:
            await asyncio.sleep(1000 if not events else 0)
            events.append("handled")
        except asyncio.CancelledError:
            events.append("cut off")
            raise

    class Other(Actor):
        @on("a")
        async def handler(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            events.append("other stopped")

    app.add(Other)
    async with talking(provider) as socket:
        begin = now()
        async with app:
            await socket.publish("a", "x")
            await eventually(lambda: app.stats["messages.handled"] == 1)
        assert 2.0 <= now() - begin < 4.0
        assert events == ["other stopped", "cut off"]
        assert app.stats["actors.cut_off"] == 1
        cut_off, stopped = problems(caplog)
        assert cut_off == "actor 'slow': it did not finish in time and is cut off"
        assert stopped.endswith("given up: actor 'slow' did not finish in time and was cut off")
        async with app:
            await eventually(lambda: events[2:3] == ["handled"])
    assert app.stats["messages.failed"] == 0


@pytest.mark.virtual
async def test_a_stop_timeout_of_zero_does_not_cut_idle_actors_off(
    provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    app = DistributedApplication(provider, name="plant", stop_timeout=0)
    stopped: list[str] = []

    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            stopped.append("on_stop")

    app.add(Boiler)
    async with app:
        pass
    assert stopped == ["on_stop"]
    assert problems(caplog) == []


async def test_closing_again_and_without_a_start_does_nothing(app: DistributedApplication) -> None:
    await app.aclose()
    app.stop()
    with pytest.raises(ConfigurationError, match="not running"):
        await app.wait()
    async with app:
        await app.aclose()
        await app.aclose()


async def test_what_on_stop_raises_is_reported_and_the_rest_is_stopped(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str) -> None: ...

        async def on_stop(self) -> None:
            raise ValueError("cannot stop")

    app.add(Boiler)
    async with app:
        pass
    assert dict(provider.broker.links) == {}
    assert any("cannot stop" in text for text in problems(caplog))


async def test_an_actor_that_stops_itself_ends_its_message_first_and_leaves_the_others(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []

    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str, context: Context, socket: Socket) -> None:
            context.stop()
            context.stop()
            await asyncio.sleep(0.05)
            await socket.publish("out", "x")
            events.append(payload)

        async def on_stop(self) -> None:
            events.append("on_stop")

    @app.application("out")
    async def other(payload: str) -> None:
        events.append(payload)

    spec = app.add(Boiler)
    async with app, talking(provider) as socket:
        await socket.publish("a", "first")
        await socket.publish("a", "second")
        await eventually(lambda: "plant.0.Boiler" not in provider.broker.links)
        assert len(provider.broker.queues["plant.0.Boiler"]) == 1
        assert [event for event in events if event != "x"] == ["first", "on_stop"]
        await socket.publish("out", "y")
        await eventually(lambda: events[-1] == "y")
        with pytest.raises(ActorStopped):
            _ = spec.ref
        assert app.healthy
    assert problems(caplog) == []
    async with app:
        await eventually(lambda: "second" in events)


async def test_an_application_whose_last_actor_stops_itself_has_nothing_left_to_do(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    @app.application("a")
    async def handler(payload: str, context: Context) -> None:
        context.stop()

    @app.producer()
    async def produce(socket: Socket) -> None:
        await socket.publish("a", "x")

    async with app:
        await asyncio.wait_for(app.wait(), 60)


@pytest.mark.virtual
async def test_an_actor_leaves_a_shared_subscription_to_the_others(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[str] = []

    @app.application("a", subscription="both")
    async def first(payload: str, context: Context) -> None:
        got.append(f"first {payload}")
        context.stop()

    @app.application("a", subscription="both")
    async def second(payload: str) -> None:
        got.append(f"second {payload}")

    async with app, talking(provider) as socket:
        await socket.publish("a", "1")
        await eventually(lambda: "second 1" in got and "first 1" in got)
        await eventually(lambda: app.stats["messages.handled"] == 2)
        await asyncio.sleep(0.05)
        for number in ("2", "3"):
            await socket.publish("a", number)
        await eventually(lambda: "second 3" in got)
        await eventually(lambda: len(provider.broker.queues["plant.0.both"]) == 0)
    assert got.count("first 1") == 1
    assert "first 2" not in got


# Context.


@pytest.mark.virtual
async def test_what_is_put_off_runs_between_messages_at_its_time(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[tuple[str, float]] = []

    def note(word: str) -> None:
        events.append((word, now() - begin))

    async def fail() -> None:
        note("fail")
        raise ValueError("later")

    @app.application("a", state=0)
    async def handler(payload: str, context: Context) -> None:
        note("begin")
        context.later(1.0, note, "between")
        context.later(2.0, fail)
        context.later(3.0, note, "cancelled").cancel()
        waiting = context.later(1.5, note, "cancelled in the mailbox")
        context.later(1.4, waiting.cancel)
        context.later(1000.0, note, "too late")
        with pytest.raises(ConfigurationError, match="seconds"):
            context.later(-1.0, note, "x")
        with pytest.raises(ConfigurationError, match="function"):
            context.later(1.0, "x")  # type: ignore[arg-type]
        await asyncio.sleep(5.0)
        note("end")

    begin = now()
    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await asyncio.sleep(10.0)
    assert [word for word, _ in events] == ["begin", "end", "between", "fail"]
    assert app.stats["timers.failed"] == 1
    assert len([text for text in problems(caplog) if "context.later" in text]) == 1


async def test_cancelled_timers_are_forgotten(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Function:
        def __call__(self) -> None: ...

    kept: list[weakref.ref[Function]] = []

    @app.application("a")
    async def handler(payload: str, context: Context) -> None:
        function = Function()
        kept.append(weakref.ref(function))
        context.later(3600.0, function).cancel()

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: kept and kept[0]() is None)


async def test_the_context_knows_where_it_is(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[object, ...]] = []

    @app.application("a", deadline=5.0)
    async def handler(payload: str, context: Context) -> None:
        context.log.info("hello")
        context.stats["mine"] += 1
        seen.append((context.app, context.actor, context.instance, context.attempt))
        assert context.deadline is not None
        assert 0 < context.deadline - now() <= 5.0
        assert context.now() == app.environment.now()
        assert context.random is app.environment.random

    app.environment.now = lambda: 1_700_000_000.0  # type: ignore[method-assign]
    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: app.stats["messages.handled"] == 1)
    assert seen == [("plant", "handler", "0", 1)]
    assert app.stats["mine"] == 1
    assert any(
        getattr(r, "spa_dat_actor", None) == "handler" and r.getMessage() == "hello"
        for r in caplog.records
    )


@pytest.mark.virtual
async def test_an_attempt_over_its_deadline_is_cut_off_and_tried_again(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    attempts: list[int] = []

    @app.application("a", deadline=1.0, retry=RetryPolicy(attempts=3, first=0.1))
    async def handler(payload: str, context: Context) -> None:
        attempts.append(context.attempt)
        await asyncio.sleep(0.5 if context.attempt == 3 else 30)

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: app.stats["messages.handled"] == 1)
    assert attempts == [1, 2, 3]
    assert app.stats["messages.cut_off"] == 2


async def test_a_timeout_of_the_handlers_own_is_not_taken_for_the_deadline(
    app: DistributedApplication, provider: MemoryProvider, caplog: pytest.LogCaptureFixture
) -> None:
    @app.application("a", deadline=60.0, retry=RetryPolicy(attempts=1))
    async def handler(payload: str) -> None:
        raise TimeoutError("the sensor")

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
    assert app.stats["messages.cut_off"] == 0
    assert any("the sensor" in text for text in problems(caplog))


# Several of them.


async def test_one_application_runs_again_and_again(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[str] = []
    before = threads()

    @app.application("a")
    def handler(payload: str) -> None:
        got.append(payload)

    @app.producer()
    async def produce(socket: Socket) -> None:
        await socket.publish("a", "x")

    for number in range(3):
        async with app:
            await eventually(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
    threads_end(before)


async def test_applications_exchange_messages_over_a_named_bus() -> None:
    sender = DistributedApplication("memory://hall", name="sender")
    receiver = DistributedApplication(MemoryConfig(name="hall"), name="receiver")
    stranger = DistributedApplication("memory://", name="stranger")
    got: list[tuple[str, str]] = []

    for app in (receiver, stranger):

        @app.application("a")
        async def consume(payload: str, context: Context) -> str:
            got.append((context.app, payload))
            return payload.upper()

    @sender.producer()
    async def produce(socket: Socket) -> None:
        await socket.publish("a", "published")
        got.append(("sender", await socket.request("a", "asked", reply=str)))

    async with stranger, receiver, sender:
        await sender.wait()
        await eventually(lambda: len(got) == 3)
    assert got == [("receiver", "published"), ("receiver", "asked"), ("sender", "ASKED")]


async def test_actors_of_one_application_use_several_buses() -> None:
    hall = SocketProviderFactory.from_url("memory://")
    yard = SocketProviderFactory.from_url("memory://")
    app = DistributedApplication(hall, name="plant")
    got: list[str] = []

    @app.application("in")
    async def bridge(payload: str, socket: Socket) -> None:
        got.append(f"hall {payload}")

    @app.application("in", socket_provider=yard)
    async def out(payload: str, socket: Socket) -> None:
        got.append(f"yard {payload}")

    class Boiler(Actor):
        socket_provider = yard

        @on("in")
        async def measured(self, payload: str) -> None:
            got.append(f"class {payload}")

    app.add(Boiler)
    async with app, talking(hall) as one, talking(yard, name="other") as two:
        await one.publish("in", "1")
        await eventually(lambda: got == ["hall 1"])
        await two.publish("in", "2")
        await eventually(lambda: sorted(got) == ["class 2", "hall 1", "yard 2"])
        assert app.healthy
        assert isinstance(yard, MemoryProvider)
        yard.broker.faults.refuse_connections()
        yard.broker.faults.disconnect("plant.0")
        assert not app.healthy
        yard.broker.faults.allow()
        await eventually(lambda: app.healthy)


async def test_one_bus_with_different_options_is_refused() -> None:
    app = DistributedApplication("memory://hall", name="plant")

    @app.application("a")
    async def one(payload: str) -> None: ...

    @app.application("a", socket_provider="memory://hall")
    async def same(payload: str) -> None: ...

    @app.application("a", socket_provider="memory://hall?window=5")
    async def other(payload: str) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"'other' uses memory://hall with different options"
    ):
        await app.__aenter__()


async def test_the_environment_is_asked_for_ids_and_times(provider: MemoryProvider) -> None:
    traces = []
    for _ in range(2):
        bus = MemoryProvider()
        app = DistributedApplication(bus, environment=VirtualEnvironment(seed=3))

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x", retain=True)

        async with app:
            await app.wait()
        traces.append((app.name, bus.broker.retained["a"].id))
    assert traces[0] == traces[1]


async def test_a_bus_that_gives_up_is_logged_and_makes_the_application_unhealthy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await started.wait()
        peer.goodbye(0x8E)

    started = asyncio.Event()
    async with ScriptedBroker(script) as broker:
        url = f"mqtt://{broker.host}:{broker.port}?backoff_min=0.01&backoff_max=0.02"
        app = DistributedApplication(url, name="twice")

        @app.producer()
        async def work() -> None:
            await asyncio.Event().wait()

        async with app:
            started.set()
            await eventually(lambda: "another program uses the same identifier" in caplog.text)
            assert not app.healthy
            with pytest.raises(ConfigurationError, match="another program"):
                await app.wait()


# The states of a run.


def state(app: DistributedApplication) -> RunState:
    run = runs_of(app).last
    assert run is not None
    return run.state


async def test_a_run_goes_from_starting_to_stopped(app: DistributedApplication) -> None:
    seen: list[RunState] = []

    class Kettle(Actor):
        async def on_start(self) -> None:
            seen.append(state(app))

        @on("water")
        async def fill(self, payload: int) -> None: ...

        async def on_stop(self) -> None:
            seen.append(state(app))

    app.add(Kettle)
    async with app:
        seen.append(state(app))
        app.stop()
        await app.wait()
        seen.append(state(app))
    seen.append(state(app))
    running, stopping, stopped = RunState.RUNNING, RunState.STOPPING, RunState.STOPPED
    assert seen == [RunState.STARTING, running, running, stopping, stopped]


async def test_a_run_that_could_not_start_is_stopped_for_good(app: DistributedApplication) -> None:
    class Kettle(Actor):
        async def on_start(self) -> None:
            raise SystemExit("no water")

        @on("water")
        async def fill(self, payload: int) -> None: ...

    app.add(Kettle)
    with pytest.raises(SystemExit, match="no water"):
        await app.__aenter__()
    assert state(app) is RunState.STOPPED
    run = runs_of(app).last
    assert run is not None
    assert isinstance(run.reason.failure, SystemExit)
    run.end(None)
    run.abandon()
    assert state(app) is RunState.STOPPED
    assert isinstance(run.reason.failure, SystemExit)


@pytest.mark.parametrize("kind", ["async", "def", "keyed"])
def test_a_context_that_has_outlived_its_actor_schedules_nothing_and_says_so(kind: str) -> None:
    app = DistributedApplication("memory://", name="app")
    kept: list[Context] = []

    if kind == "def":

        @app.application("work/{key}")
        def in_thread(context: Context) -> None:
            kept.append(context)
    else:

        @app.application("work/{key}", per="key" if kind == "keyed" else None)
        async def on_loop(context: Context) -> None:
            kept.append(context)

    async def main() -> None:
        async with app:
            await app.socket().publish("work/a")
            await eventually(lambda: kept)
            kept[0].later(60, print)
        with pytest.raises(ActorStopped, match="has ended"):
            kept[0].later(1, print)

    asyncio.run(main())
    with pytest.raises(ActorStopped, match="has ended"):
        kept[0].later(1, print)
    kept[0].stop()  # it has stopped
