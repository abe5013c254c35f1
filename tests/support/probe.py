"""A socket for tests that talk to an application from outside."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from spa_dat import DistributedApplication, Socket, SocketProvider

__all__ = ["talking"]


@contextlib.asynccontextmanager
async def talking(provider: SocketProvider | str, name: str = "probe") -> AsyncIterator[Socket]:
    """Return the socket of a separate application on the same bus."""
    async with DistributedApplication(provider, name=name) as app:
        yield app.socket()
