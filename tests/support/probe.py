"""A socket for tests that talk to an application from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from spa_dat import DistributedApplication, Socket, SocketProvider

__all__ = ["talking"]


@contextlib.asynccontextmanager
async def talking(provider: SocketProvider | str, name: str = "probe") -> AsyncIterator[Socket]:
    """The socket of an application of its own on the same bus."""
    app = DistributedApplication(provider, name=name)
    found: asyncio.Future[Socket] = asyncio.get_running_loop().create_future()

    @app.producer(name="talk")
    async def talk(socket: Socket) -> None:
        found.set_result(socket)

    async with app:
        yield await found
