"""Starting: what actors may do to each other meanwhile, and what is said when it takes long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from spa_dat import Actor, DistributedApplication, RestartPolicy, Socket, on
from spa_dat.errors import ActorStopped, ConfigurationError
from spa_dat.runtime.application._application import runs_of
from spa_dat.testing import Harness, Kafka, Mosquitto
from support.kafka_bus import new_prefix
from support.waiting import eventually


def started(app: DistributedApplication) -> list[str]:
    """What its actors do to each other while they start, told as it happens."""
    events: list[str] = []

    class Jobs(Actor):
        def __init__(self) -> None:
            app.socket().post("jobs/first", "from __init__")

        async def on_start(self, socket: Socket) -> None:
            await socket.publish("jobs/second", "from on_start")
            self.limit = await socket.request("limit", "x", reply=int, timeout=20)
            events.append("started")

        @on("jobs/+")
        async def work(self, text: str) -> None:
            events.append(f"{text}: {self.limit}")

    class Limit(Actor):
        async def on_start(self) -> None:
            # The request arrives meanwhile.
            await asyncio.sleep(0.05)
            self.limit = 5

        @on("limit")
        async def answer(self, payload: str) -> int:
            return self.limit

    app.add(Jobs)
    app.add(Limit)
    return events


def right(events: list[str]) -> bool:
    return events[:1] == ["started"] and sorted(events[1:]) == [
        "from __init__: 5",
        "from on_start: 5",
    ]


@pytest.mark.virtual
async def test_actors_publish_to_and_ask_each_other_from_their_start_on() -> None:
    app = DistributedApplication("memory://", name="plant")
    events = started(app)
    async with app:
        await eventually(lambda: right(events))


@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
def test_they_do_so_on_simulated_brokers(profile: str) -> None:
    app = DistributedApplication("mqtt://broker.example", name="plant")
    events = started(app)
    with Harness(app, profile=profile) as harness:  # type: ignore[arg-type]
        harness.settle()
        assert right(events)


async def test_they_do_so_on_mosquitto(own_mosquitto: Callable[..., Mosquitto]) -> None:
    app = DistributedApplication(own_mosquitto().url, name="plant")
    events = started(app)
    async with app:
        await eventually(lambda: right(events))


@pytest.mark.kafka
async def test_they_do_so_on_kafka(kafka: Kafka) -> None:
    url = f"{kafka.url}?create_topics=all&prefix={new_prefix()}"
    app = DistributedApplication(url, name="plant")
    events = started(app)
    async with app:
        await eventually(lambda: right(events), 60)


@pytest.mark.virtual
async def test_no_handler_runs_before_the_start_of_its_own_actor() -> None:
    app = DistributedApplication("memory://", name="plant")
    may_start = asyncio.Event()
    events: list[str] = []

    class Slow(Actor):
        async def on_start(self) -> None:
            await may_start.wait()
            events.append("started")

        @on("a", "b")
        async def handle(self, payload: str) -> None:
            events.append(payload)

    class Batches(Actor):
        batch = (2, 0.1)

        async def on_start(self) -> None:
            await may_start.wait()
            events.append("batches started")

        @on("batches")
        async def handle(self, payload: list[str]) -> None:
            events.extend(payload)

    class Other(Actor):
        async def on_start(self, socket: Socket) -> None:
            for topic in ("a", "b", "batches", "batches", "batches"):
                await socket.publish(topic, topic)
            await asyncio.sleep(10)
            assert events == []
            may_start.set()

        @on("other")
        async def handle(self, payload: str) -> None: ...

    app.add(Slow)
    app.add(Batches)
    app.add(Other)
    async with app:
        await eventually(lambda: len(events) == 7)
    assert [event for event in events if event in ("started", "a", "b")] == ["started", "a", "b"]
    assert [event for event in events if "batches" in event] == ["batches started"] + [
        "batches"
    ] * 3


@pytest.mark.virtual
async def test_what_arrived_for_an_actor_that_never_starts_stays_with_the_bus(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication(
        "memory://plant", name="plant", restart=RestartPolicy(intensity=1, backoff_min=0.1)
    )
    broken = True
    got: list[str] = []

    class Boiler(Actor):
        async def on_start(self, socket: Socket) -> None:
            if broken:
                await socket.publish("a", "x")
                raise ConnectionError("no boiler")

        @on("a")
        async def measured(self, payload: str) -> None:
            got.append(payload)

    app.add(Boiler)
    keeper = DistributedApplication("memory://plant", name="keeper")
    async with keeper:
        with pytest.raises(Exception, match="no boiler"):
            await app.__aenter__()
        assert not [r for r in caplog.records if "unhandled" in r.getMessage()]
        assert app.stats["messages.given_up"] == 0
        broken = False
        async with app:
            await eventually(lambda: got == ["x", "x"])


# A start that takes long.


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "after its start" in r.getMessage()]


@pytest.mark.virtual
async def test_an_on_start_that_hangs_is_named_with_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)

    async def database() -> None:
        await asyncio.Event().wait()

    class Boiler(Actor):
        async def on_start(self) -> None:
            await database()

        @on("a")
        async def measured(self, payload: str) -> None: ...

    class Other(Actor):
        @on("a")
        async def measured(self, payload: str) -> None: ...

    app.add(Boiler)
    app.add(Other)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(50):
            await app.__aenter__()
    first, second = lines(caplog)
    assert first.startswith(
        "12 s after its start, application 'plant' is starting and is waiting for actor 'Boiler'"
        " (Boiler.on_start at "
    )
    assert "test_starting.py:" in first
    assert first.endswith("in database)")
    assert second.startswith("42 s")
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.virtual
async def test_of_many_that_it_waits_for_a_start_names_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)

    class Boiler(Actor):
        async def on_start(self) -> None:
            await asyncio.Event().wait()

        @on("a")
        async def measured(self, payload: str) -> None: ...

    for number in range(100):
        app.add(type("Boiler", (Boiler,), {"name": f"boiler{number}"}))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(13):
            await app.__aenter__()
    (line,) = lines(caplog)
    assert "'boiler4'" in line
    assert "'boiler5'" not in line
    assert line.endswith(", 95 more")


async def test_a_start_says_what_a_subscription_waits_for(kafka: Kafka) -> None:
    app = DistributedApplication(f"kafka://{kafka.server}", name=new_prefix())

    @app.application("never/created")
    async def handler(payload: str) -> None: ...

    starting = asyncio.ensure_future(app.__aenter__())
    expected = "is waiting for subscription 'handler' (topic 'never.created' does not exist"
    await eventually(lambda: expected in str(app.problems))
    await app.aclose()
    await asyncio.wait([starting])
    assert isinstance(starting.exception(), ActorStopped)


@pytest.mark.virtual
async def test_a_resource_that_hangs_is_named_with_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)

    @contextlib.asynccontextmanager
    async def database() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    app.resource("db", database)

    @app.application("a")
    async def handler(payload: str, db: int) -> None: ...

    starting = asyncio.ensure_future(app.__aenter__())
    await eventually(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert "is waiting for resource 'db' of application (database at " in line
    assert "is waiting for resource 'db'" in app.problems["plant"]
    await app.aclose()
    with pytest.raises(ActorStopped):
        await starting


@pytest.mark.virtual
async def test_two_that_ask_each_other_at_their_start_are_both_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)

    def asks(other: str, own: str) -> type[Actor]:
        class Asks(Actor):
            name = own

            async def on_start(self, socket: Socket) -> None:
                await socket.request(other, timeout=1000)

            @on(own)
            async def answer(self, payload: bytes) -> str:
                return "x"

        return Asks

    app.add(asks("one", "two"))
    app.add(asks("two", "one"))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            await app.__aenter__()
    (line,) = lines(caplog)
    assert "actor 'two' (" in line
    assert "actor 'one' (" in line


def hanging(app: DistributedApplication, seconds: float | None) -> None:
    class Boiler(Actor):
        async def on_start(self) -> None:
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))

        @on("a")
        async def handler(self, payload: str) -> None: ...

    app.add(Boiler)


@pytest.mark.virtual
async def test_a_stop_gives_a_start_up_that_hangs() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=3)
    hanging(app, None)
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(5, app.stop)
    with pytest.raises(ActorStopped, match="'plant/0/Boiler' has stopped"):
        await app.__aenter__()
    assert loop.time() - began == pytest.approx(8, abs=0.5)
    assert app.problems == {"plant": "it is not running"}


@pytest.mark.virtual
async def test_a_stop_lets_a_start_that_ends_in_time_end() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=3)
    hanging(app, 7)
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(5, app.stop)
    async with app:
        assert loop.time() - began == pytest.approx(7, abs=0.5)
        await app.wait()
        await asyncio.sleep(10)
        assert "stopping" not in app.problems.get("plant", "")


@pytest.mark.virtual
async def test_a_start_that_hangs_ends_when_the_bus_is_lost_for_good() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=3)
    hanging(app, None)
    starting = asyncio.ensure_future(app.__aenter__())
    await eventually(lambda: "Boiler" in app.problems.get("plant", ""), 60.0)
    run = runs_of(app).current
    assert run is not None
    (connection,) = run.connections
    connection.surroundings.fatal(ConfigurationError("another program runs as 'plant.0'"))
    with pytest.raises(ConfigurationError, match="another program"):
        await starting


@pytest.mark.virtual
async def test_connections_and_the_start_are_told_in_one_line_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    app = DistributedApplication("memory://plant", name="plant")

    @app.application("a")
    async def handler(payload: str) -> None: ...

    async with app:
        pass
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.INFO] == [
        "application 'plant' is connected to memory://plant",
        "application 'plant' instance '0' has started: 1 actors, memory://plant",
        "application 'plant' instance '0' has stopped in 0.0 s: no messages",
    ]


@pytest.mark.parametrize("scheme", ["mqtt", "kafka"])
async def test_who_stops_a_start_that_has_no_connection_yet_is_not_told_about_the_connection(
    scheme: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        app = DistributedApplication(f"{scheme}://127.0.0.1:{port}", name="app")

        @app.application("a")
        async def handler(payload: str) -> None: ...

        starting = asyncio.ensure_future(app.__aenter__())
        await eventually(lambda: "is waiting for a connection" in str(app.problems))
        await app.aclose()
        with pytest.raises(ActorStopped, match="'app' was stopped while it started"):
            await starting


def test_a_start_without_an_event_loop_of_asyncio_says_so() -> None:
    app = DistributedApplication("memory://", name="app")
    # As trio does.
    starting = app.start()
    with pytest.raises(ConfigurationError, match=r"no event loop of asyncio is running.* trio"):
        starting.send(None)
    starting.close()
