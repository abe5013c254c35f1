"""Sockets in threads that the program has started itself, in real time."""

from __future__ import annotations

import asyncio

import pytest

from spa_dat import DistributedApplication, Socket
from spa_dat.errors import ConfigurationError


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
    with pytest.raises(ConfigurationError, match="does not run"):
        app.sync_socket()


async def _keep(payload: int) -> None: ...
