"""Names are looked up whatever the threads of the event loop are doing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from spa_dat import DistributedApplication
from spa_dat.testing import Mosquitto
from spa_dat.transports import _name_lookups
from spa_dat.transports._name_lookups import LookupLoop, look_up
from support.waiting import eventually

_REAL = socket.getaddrinfo


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Take all threads that the running event loop has."""
    loop, over = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_in_executor(None, over.wait)
    try:
        yield
    finally:
        over.set()


class Server:
    """A name server that answers when it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked: list[Any] = []

    def look_up(self, host: Any, port: Any, *rest: int) -> Any:
        if rest[-1] & socket.AI_NUMERICHOST:
            raise socket.gaierror("it is a name")
        self.asked.append(host)
        self.answers.wait(60)
        return _REAL("127.0.0.1", port, *rest)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(socket, "getaddrinfo", server.look_up)
    yield server
    server.answers.set()


@pytest.mark.mosquitto
async def test_an_application_connects_while_all_threads_of_the_event_loop_are_taken(
    mosquitto: Mosquitto,
) -> None:
    app = DistributedApplication(f"mqtt://localhost:{mosquitto.port}")

    @app.application("lookups/a")
    async def handler() -> str:
        return "x"

    with no_thread_left():
        async with app:
            assert app.healthy


def test_the_event_loop_of_a_program_looks_up_names_for_all_libraries() -> None:
    async def connect() -> None:
        with no_thread_left(), socket.create_server(("127.0.0.1", 0)) as listener:
            _, writer = await asyncio.open_connection("localhost", listener.getsockname()[1])
            writer.close()

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(connect())


async def test_equal_lookups_are_one_also_when_nobody_waits_any_more(server: Server) -> None:
    first, second = (asyncio.create_task(look_up("broker", 1883)) for _ in range(2))
    await eventually(lambda: server.asked)
    first.cancel()
    await asyncio.wait((first,))
    third = asyncio.create_task(look_up("broker", 1883))
    server.answers.set()
    found = await second, await third
    assert server.asked == ["broker"]
    assert [each[0][4] for each in found] == [("127.0.0.1", 1883)] * 2
    await look_up("broker", 1883)
    assert server.asked == ["broker"] * 2


async def test_lookups_that_are_not_answered_take_few_threads(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_name_lookups, "_MOST", 2)
    waiting = [asyncio.create_task(look_up(f"broker{number}", 1883)) for number in range(2)]
    await eventually(lambda: len(server.asked) == 2)
    with pytest.raises(OSError, match="2 names are being looked up"):
        await look_up("broker2", 1883)
    server.answers.set()
    await asyncio.gather(*waiting)


async def test_a_name_that_nobody_knows_and_a_thread_that_cannot_be_had_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(socket.gaierror):
        await look_up("no-such-host.invalid", 1883)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="'broker' cannot be looked up: can't start new thread"):
        await look_up("broker", 1883)
    assert await look_up("127.0.0.1", 1883)
