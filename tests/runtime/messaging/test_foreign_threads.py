"""Sockets in threads that the program has started itself, in real time."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from spa_dat import DistributedApplication, Socket, SyncSocket
from spa_dat.errors import ActorStopped, ConfigurationError
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.application._lifecycle import Run
from spa_dat.runtime.application._runs import Runs
from support.program import Start
from support.waiting import eventually


async def test_a_socket_is_refused_in_another_thread_and_loop() -> None:
    app = DistributedApplication("memory://", name="socket-threads")
    app.application("socket-threads/in")(_keep)

    def abroad(socket: Socket) -> list[str]:
        texts = []
        for use in (
            lambda: socket.post("socket-threads/in", 1),
            lambda: asyncio.run(socket.publish("socket-threads/in", 1, timeout=5)),
            lambda: asyncio.run(socket.request("socket-threads/in", 1, timeout=5)),
            lambda: asyncio.run(socket.subscribe("socket-threads/other")),
        ):
            with pytest.raises(ConfigurationError) as caught:
                use()
            texts.append(str(caught.value))
        return texts

    async with app:
        texts = await asyncio.to_thread(abroad, app.socket())
    assert len(texts) == 4
    assert all("app.sync_socket()" in text for text in texts)
    assert app.stats["publishes.unheard"] == app.stats["messages.handled"] == 0


async def test_other_threads_get_a_socket_of_their_own() -> None:
    app = DistributedApplication("memory://", name="sync-sockets")

    @app.application("sync-sockets/double")
    async def double(number: int) -> int:
        return 2 * number

    def abroad() -> int:
        socket = app.sync_socket()
        socket.drain()
        socket.publish("sync-sockets/double", 1, timeout=30)
        socket.post("sync-sockets/double", 1)
        return socket.request("sync-sockets/double", 21, reply=int, timeout=30)

    async with app:
        assert await asyncio.to_thread(abroad) == 42
        with pytest.raises(ConfigurationError, match="on the event loop"):
            app.sync_socket().post("sync-sockets/double", 1)
    with pytest.raises(ConfigurationError, match="is not running"):
        app.sync_socket()


async def test_a_thread_that_waits_for_a_loop_that_is_closed_is_told() -> None:
    app = DistributedApplication("memory://", name="closed-loops")
    app.application("closed-loops/in")(_keep)
    # It is closed after it was asked, and before it has run what it was asked for.
    loop: Any = asyncio.new_event_loop()
    async with app:
        socket = SyncSocket(app.socket(), loop)
        waiting = asyncio.create_task(asyncio.to_thread(socket.drain))
        await eventually(lambda: bool(loop._ready))
        loop.close()
        with pytest.raises(ActorStopped, match="has ended"):
            await asyncio.wait_for(waiting, 60)


def test_threads_that_do_not_stop_neither_hang_nor_spoil_the_end_of_the_program() -> None:
    app = DistributedApplication("memory://", name="going-on")
    over = threading.Event()
    begun: set[int] = set()
    last: list[str] = []

    def go_on(socket: SyncSocket) -> None:
        while True:
            try:
                socket.drain()
                begun.add(threading.get_ident())
            except ActorStopped as error:
                if over.is_set():
                    last.append(str(error))
                    return

    threads: list[threading.Thread] = []

    @app.producer()
    async def begin() -> None:
        for _ in range(4):
            thread = threading.Thread(target=go_on, args=(app.sync_socket(),), daemon=True)
            threads.append(thread)
            thread.start()
        await eventually(lambda: len(begun) == len(threads))

    try:
        app.run()
    finally:
        over.set()
    for thread in threads:
        thread.join(30)
    assert last == [last[0]] * 4
    assert "'going-on' has ended" in last[0]


async def _keep(payload: int) -> None: ...


FORKED = """
    import multiprocessing

    app = DistributedApplication("memory://", name="plant")
    fork = multiprocessing.get_context("fork")

    def use(socket):
        for attempt in (
            lambda: socket.publish("a", 1),
            lambda: app.sync_socket().request("a", 1),
            lambda: asyncio.run(app.socket().publish("a", 1)),
        ):
            try:
                attempt()
            except BaseException as error:
                say(type(error).__name__, "forked process" in str(error))

    @app.producer()
    DEFINITION:
        child = fork.Process(target=use, args=(app.sync_socket(),))
        child.start()
        JOIN
        say(child.exitcode)
        app.stop()

    app.run()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize(
    ("definition", "join"),
    [
        ("def work()", "child.join()"),
        ("async def work()", "await asyncio.to_thread(child.join)"),
    ],
)
def test_a_socket_is_refused_in_a_process_that_was_forked_off(
    start: Start, definition: str, join: str
) -> None:
    program = start(FORKED.replace("DEFINITION", definition).replace("JOIN", join))
    assert program.end() == (0, ["ConfigurationError True"] * 3 + ["0"], "")


def test_what_other_threads_ask_for_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    app = DistributedApplication("memory://", name="plant")
    app.application("a")(_keep)
    looks: list[Run | None] = []

    async def ask() -> None:
        async with app:
            run = runs_of(app).current
            for use in (lambda: app.problems, app.sync_socket, app.stop):
                # It ends after the first look.
                looks[:] = [None, run]
                with monkeypatch.context() as patch:
                    patch.setattr(Runs, "current", property(lambda _: looks.pop()))
                    use()
                assert looks == [None]

    asyncio.run(ask())
