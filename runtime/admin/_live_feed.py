"""The feed of the live picture: one picture for all who look, and not more often than it may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

__all__ = ["LiveFeed", "Shown"]

_PAUSE = 1.0
# Making pictures may take this share of the time of the event loop.
_MOST = 0.05


class Shown(NamedTuple):
    """One picture.

    Attributes:
        number: from 1.
        text: what it shows, as JSON.
    """

    number: int
    text: bytes


class LiveFeed:
    """Makes pictures for those who look; without anybody, none.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._latest = Shown(0, b"")
        self._due = 0.0
        self._making: asyncio.Task[Shown] | None = None

    async def latest(self) -> Shown:
        """Return a picture that is at most as old as the pause between two of them."""
        if self._making is None:
            if self._latest.number and self._loop.time() < self._due:
                return self._latest
            self._making = self._loop.create_task(self._made())
        return await asyncio.shield(self._making)

    async def after(self, number: int) -> Shown:
        """Return the first picture after one that was seen already, once there is one."""
        while True:
            if self._latest.number > number:
                return self._latest
            await asyncio.sleep(self._due - self._loop.time())
            await self.latest()

    async def _made(self) -> Shown:
        try:
            began = time.thread_time()
            self._latest = Shown(self._latest.number + 1, await self._make())
            # What others did in between counts too, which errs on the side of leaving them alone.
            cost = time.thread_time() - began
            self._due = self._loop.time() + max(_PAUSE, cost / _MOST)
            return self._latest
        finally:
            self._making = None

    def close(self) -> None:
        """Give up a picture that is being made."""
        if self._making is not None:
            self._making.cancel()
