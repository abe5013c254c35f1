"""What never comes to rest is named, and nothing hangs."""

from __future__ import annotations

import asyncio
import socket as sockets
import time
from collections.abc import Callable

import pytest

from spa_dat import DistributedApplication, RetryPolicy, Socket
from spa_dat.errors import ConnectionLost
from spa_dat.testing import Harness, NotSettled


def run(app: DistributedApplication, **options: float) -> None:
    with Harness(app, **options) as harness:  # type: ignore[arg-type]
        harness.publish("in", 1)
        harness.settle()


async def run_async(app: DistributedApplication) -> None:
    async with Harness(app, grace=0.2) as harness:
        harness.publish("in", 1)
        await harness.settle()


@pytest.fixture
def app() -> DistributedApplication:
    return DistributedApplication("mqtt://broker", name="app")


def test_a_handler_that_never_finishes(app: DistributedApplication) -> None:
    @app.application("in")
    async def hang(payload: int) -> None:
        await asyncio.Event().wait()  # here

    with pytest.raises(NotSettled, match=r"app/0/hang .*'in'(?s:.*)in hang: .*# here"):
        run(app)


def test_a_handler_that_always_has_more_to_wait_for(app: DistributedApplication) -> None:
    @app.application("in")
    async def hang(payload: int) -> None:
        while True:
            await asyncio.sleep(10.0)

    with pytest.raises(NotSettled, match=r"600 virtual seconds(?s:.*)app/0/hang"):
        run(app)


def test_what_keeps_a_handler_from_being_done_is_told(app: DistributedApplication) -> None:
    @app.application("in")
    async def ask(payload: int) -> None:
        raise ConnectionLost("no way to the database's bus")

    with pytest.raises(NotSettled, match=r"last trouble: ConnectionLost: no way to the database's"):
        run(app)


def test_a_dead_letter_that_can_not_be_stored_is_told() -> None:
    app = DistributedApplication("mqtt://broker", name="app", dead_letter_limit=0)

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def fail(payload: int) -> None:
        raise LookupError

    with pytest.raises(
        NotSettled, match=r"last trouble: .*it has reached its limit of dead letters"
    ):
        run(app)


def test_a_loop_between_two_actors(app: DistributedApplication) -> None:
    @app.application("in")
    async def ping(payload: int, socket: Socket) -> None:
        socket.post("back", payload)

    @app.application("back")
    async def pong(payload: int, socket: Socket) -> None:
        socket.post("in", payload)

    with pytest.raises(NotSettled, match=r"app/0/ping -> back .*app/0/pong -> in"):
        run(app, limit=500)


def test_a_handler_that_goes_round_and_round(app: DistributedApplication) -> None:
    @app.application("in")
    async def spin(payload: int) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(NotSettled, match=r"without time passing: .*actor spin(?s:.*)in spin"):
        run(app)


def sleeps() -> None:
    time.sleep(1000.0)


def works() -> None:
    while True:
        pass


@pytest.mark.parametrize("block", [sleeps, works])
def test_a_blocked_event_loop(app: DistributedApplication, block: Callable[[], None]) -> None:
    @app.application("in")
    async def blocks(payload: int) -> None:
        block()

    with pytest.raises(NotSettled, match=r"was blocked(?s:.*)in blocks(?s:.*)in (sleeps|works)"):
        run(app, grace=0.2)


async def test_a_blocked_event_loop_in_an_async_test(app: DistributedApplication) -> None:
    @app.application("in")
    async def blocks(payload: int) -> None:
        works()

    with pytest.raises(NotSettled, match=r"was blocked(?s:.*)in works"):
        await run_async(app)


def test_work_in_a_thread_is_waited_for(app: DistributedApplication) -> None:
    @app.application("in")
    async def work(payload: int, socket: Socket) -> None:
        await asyncio.to_thread(time.sleep, 0.05)
        await socket.publish("out", payload)

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [1]
        assert harness.time == 0.0


def test_work_in_a_thread_that_does_not_end(app: DistributedApplication) -> None:
    @app.application("in")
    def work(payload: int) -> None:
        time.sleep(3.0)

    with pytest.raises(NotSettled, match=r"in a thread(?s:.*)in work"):
        run(app, grace=1.0)


def test_real_connections_are_waited_for(app: DistributedApplication) -> None:
    @app.application("in")
    async def connect(payload: int, socket: Socket) -> None:
        near, far = sockets.socketpair()
        reader, writer = await asyncio.open_connection(sock=near)
        far.sendall(b"hello\n")
        await socket.publish("out", await reader.readline())
        writer.close()
        far.close()

    with Harness(app) as harness:
        harness.publish("in", 1)
        harness.settle()
        assert harness.published("out") == [b"hello\n"]


def test_a_real_connection_that_brings_nothing(app: DistributedApplication) -> None:
    @app.application("in")
    async def connect(payload: int) -> None:
        near, far = sockets.socketpair()
        reader, writer = await asyncio.open_connection(sock=near)
        try:
            await reader.readline()
        finally:
            writer.close()
            far.close()

    with pytest.raises(NotSettled, match=r"real input or output(?s:.*)in connect"):
        run(app, grace=0.2)
