"""An application inside another asyncio program: what the program notices when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator

import pytest

from spa_dat import Actor, DistributedApplication, Socket
from spa_dat.errors import ActorStopped, ConfigurationError, ConnectionLost
from spa_dat.runtime.application._application import runs_of
from spa_dat.transports.memory import MemoryProvider
from support.waiting import eventually

pytestmark = pytest.mark.virtual


def kicked_off(provider: MemoryProvider, app: DistributedApplication) -> None:
    """What a bus does that another program keeps taking over."""
    run = runs_of(app).current
    assert run is not None
    (connection,) = run.connections
    connection.surroundings.fatal(ConfigurationError("another program runs as 'plant.0'"))


async def test_every_call_says_why_the_application_has_failed() -> None:
    provider = MemoryProvider()
    app = DistributedApplication(provider, name="plant")
    text = "another program runs as 'plant.0'"

    @app.application("a")
    async def handler(payload: int) -> int:
        return payload

    with pytest.raises(ConfigurationError, match=text):  # noqa: PT012 (leaving the block raises it)
        async with app:
            socket = app.socket()
            assert await socket.request("a", 1, reply=int) == 1
            kicked_off(provider, app)
            for held in (socket, app.socket()):
                with pytest.raises(ConnectionLost, match=f"'plant' has failed.*{text}"):
                    await held.publish("a", 1)
                with pytest.raises(ConnectionLost, match=text):
                    held.post("a", 1)
                with pytest.raises(ConnectionLost, match=text):
                    await held.request("a", 1, timeout=1000)
            assert app.problems == {"plant": f"it has failed: ConfigurationError: {text}"}
    with pytest.raises(ActorStopped, match=f"has ended because of ConfigurationError: {text}"):
        await socket.publish("a", 1)
    with pytest.raises(ConfigurationError, match=f"is not running, because of .*{text}"):
        app.socket()
    with pytest.raises(ConfigurationError, match=f"is not running, because of .*{text}"):
        await app.wait()
    assert text in app.problems["plant"]
    async with app:
        await app.socket().publish("a", 1)
        assert app.healthy


async def test_what_a_handler_still_has_to_send_is_tried() -> None:
    provider = MemoryProvider()
    app = DistributedApplication(provider, name="plant")
    begun, go_on = asyncio.Event(), asyncio.Event()
    sent: list[str] = []

    @app.application("a")
    async def handler(payload: int, socket: Socket) -> None:
        begun.set()
        await go_on.wait()
        await socket.publish("b", payload)
        await app.socket().publish("c", payload)
        sent.append("both")

    with pytest.raises(ConfigurationError):  # noqa: PT012 (leaving the block raises it)
        async with app:
            app.socket().post("a", 1)
            await begun.wait()
            kicked_off(provider, app)
            go_on.set()
            await eventually(lambda: sent == ["both"])


async def test_a_failure_is_raised_once_and_never_over_another_error() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.producer()
    async def produce() -> None:
        raise ValueError("no sensor")

    with pytest.raises(ValueError, match="no sensor"):
        async with app:
            await eventually(lambda: not app.healthy)
    async with app:
        with pytest.raises(ValueError, match="no sensor"):
            await app.wait()
    with pytest.raises(KeyError):  # noqa: PT012 (leaving the block raises it)
        async with app:
            await eventually(lambda: not app.healthy)
            raise KeyError("mine")
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 (leaving the block raises it)
        async with app, asyncio.TaskGroup() as tasks:
            tasks.create_task(app.wait())
            tasks.create_task(asyncio.sleep(1000))
    assert [str(error) for error in caught.value.exceptions] == ["no sensor"]


async def test_requests_that_wait_while_the_application_ends_are_told() -> None:
    app = DistributedApplication("memory://", name="plant", stop_timeout=1)
    begun = asyncio.Event()

    @app.application("a")
    async def handler(payload: int) -> int:
        begun.set()
        await asyncio.sleep(1000)
        return payload

    loop = asyncio.get_running_loop()
    async with app:
        waiting = asyncio.ensure_future(app.socket().request("a", 1, timeout=500))
        await begun.wait()
        began = loop.time()
    with pytest.raises(ActorStopped, match="'plant' has ended"):
        await waiting
    assert loop.time() - began < 10


# Whoever embeds it may be cancelled, or end, at any moment.


async def left_while_it_stops() -> tuple[DistributedApplication, list[int]]:
    """Return an application that still stops, and what its handler has handled by then."""
    app = DistributedApplication("memory://", name="plant", stop_timeout=10)
    begun = asyncio.Event()
    ended: list[int] = []

    @app.application("a")
    async def handler(payload: int) -> None:
        begun.set()
        await asyncio.sleep(5)
        ended.append(payload)

    await app.__aenter__()
    app.socket().post("a", 1)
    await begun.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(app.aclose(), 1)
    return app, ended


async def test_the_next_start_waits_for_a_stop_that_nobody_waits_for_any_more() -> None:
    app, ended = await left_while_it_stops()
    assert ended == []
    assert app.problems == {"plant": "it is stopping"}
    async with app:
        assert ended == [1]
        assert app.healthy


async def test_closing_again_waits_for_the_same_end() -> None:
    app, ended = await left_while_it_stops()
    await app.aclose()
    assert ended == [1]
    assert app.problems == {"plant": "it is not running"}


async def test_an_actor_that_closes_its_application_finishes_its_message() -> None:
    app = DistributedApplication(MemoryProvider(), name="plant")
    closed: list[int] = []

    @app.application("shut/down")
    async def handler(payload: int, socket: Socket) -> None:
        await app.aclose()
        await socket.publish("went/down", payload)
        closed.append(payload)

    async with app:
        await app.socket().publish("shut/down", 1)
        await app.wait()
    assert closed == [1]
    async with app:
        # It was settled, so it does not come again.
        await asyncio.sleep(10)
    assert closed == [1]
    assert app.stats["messages.handled"] == 1


def test_an_application_whose_loop_has_ended_can_be_closed_and_started_again() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.application("a")
    def handler(payload: int) -> int:
        return payload

    async def start() -> None:
        await app.__aenter__()

    async def ask() -> int:
        async with app:
            return await app.socket().request("a", 1, reply=int)

    asyncio.run(start())
    assert app.problems == {"plant": "it is not running"}
    asyncio.run(app.aclose())
    asyncio.run(start())
    assert asyncio.run(ask()) == 1


async def test_an_application_can_be_started_by_a_handler_of_another_one() -> None:
    outer = DistributedApplication(MemoryProvider(), name="outer")
    inner = DistributedApplication(MemoryProvider(), name="inner")
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        await inner.socket().publish("told", "resource")
        yield
        await inner.socket().publish("told", "left")

    class Inner(Actor):
        topics = "told"

        async def on_start(self, socket: Socket) -> None:
            await socket.publish("told", "started")

        async def on_message(self, text: str, used: None) -> None:
            events.append(text)

        async def on_stop(self, socket: Socket) -> None:
            await socket.publish("elsewhere")
            events.append("stopped")

    inner.resource("used", resource)
    inner.add(Inner)

    @outer.application("begin")
    async def begin(payload: bytes) -> None:
        async with inner:
            await eventually(lambda: "started" in events)
        outer.stop()

    async with outer:
        await outer.socket().publish("begin")
        await outer.wait()
    assert events == ["started", "stopped"]
    assert outer.stats["messages.failed"] == 0


# At two places, and in notebooks.


async def test_start_and_aclose_are_the_two_ends_of_the_block() -> None:
    app = DistributedApplication("memory://", name="plant")
    handled: list[int] = []

    @app.application("a")
    async def handler(payload: int) -> None:
        handled.append(payload)

    @app.producer()
    async def produce(socket: Socket) -> None:
        await socket.publish("a", 1)

    await app.start()
    await eventually(lambda: handled)
    with pytest.raises(ConfigurationError, match=r"is running; stop it first, with .*aclose\(\)"):
        await app.start()
    with pytest.raises(ConfigurationError, match=r"cannot register an actor .*aclose\(\)"):
        app.application("b")(handler)
    await app.aclose()
    await app.aclose()
    assert app.health().state == "ended"


async def test_a_socket_of_an_application_that_was_never_started_says_what_to_do() -> None:
    app = DistributedApplication("memory://", name="plant")
    text = r"'plant' is not running: it has not been started yet; .*start\(\).*'async with app:'"
    for socket in (app.socket, app.sync_socket):
        with pytest.raises(ConfigurationError, match=text):
            socket()


@pytest.mark.parametrize("interactive", [True, False])
async def test_a_notebook_replaces_an_application_that_nothing_refers_to(
    monkeypatch: pytest.MonkeyPatch, interactive: bool
) -> None:
    if interactive:
        monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    else:
        monkeypatch.delattr(sys, "ps1", raising=False)
    handled: list[str] = []

    def cell(version: str, instance: str = "0") -> DistributedApplication:
        app = DistributedApplication("memory://shared", name="plant", instance=instance)

        @app.application("a", deliver="all")
        async def handler(payload: int) -> None:
            handled.append(version)

        return app

    first = cell("first")
    await first.start()
    last = runs_of(first).last
    assert last is not None
    other = cell("other", "1")
    await other.start()
    del first
    gc.collect()
    second = cell("second")
    if not interactive:
        with pytest.raises(ConfigurationError, match="already running"):
            await second.start()
        await last.stop()
    else:
        await second.start()
        await second.socket().publish("a", 1)
        await eventually(lambda: sorted(handled) == ["other", "second"])
        await second.aclose()
    await other.aclose()


@pytest.mark.parametrize("call", ["aclose", "wait"])
def test_what_is_awaited_on_another_event_loop_says_so(call: str) -> None:
    """As when a fixture of a test has an event loop of its own."""
    app = DistributedApplication("memory://", name="embedded")

    @app.application("a")
    async def handler(payload: int) -> None: ...

    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(app.start())
        with pytest.raises(ConfigurationError, match=rf"{call}\(\) of .* on another event loop"):
            other.run(getattr(app, call)())
        with pytest.raises(ConfigurationError, match="cannot start while"):
            other.run(app.start())
        one.run(app.aclose())
        assert app.health().state == "ended"
