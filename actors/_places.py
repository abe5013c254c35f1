"""Waiting for a place in a mailbox, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Places"]


class Places:
    """Those who wait for a place, and the places kept for those who were told to come.

    A granted place is kept until its owner has run, so that nobody slips in between.

    Args:
        grant: called when a place that was granted is not needed after all.

    Attributes:
        reserved: how many places are granted and not yet taken.
    """

    __slots__ = ("_grant", "_waiting", "reserved")

    def __init__(self, grant: Callable[[], None]) -> None:
        self._grant = grant
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.reserved = 0

    def __len__(self) -> int:
        """How many wait and are not granted a place yet."""
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait for a place, which is the caller's when this returns. Raises what `refuse` says."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                if place in self._waiting:
                    self._waiting.remove(place)
            elif place.exception() is None:
                self.reserved -= 1
                self._grant()
            raise
        self.reserved -= 1

    def grant(self) -> None:
        """Keep a place for the one who has waited longest."""
        place = self._waiting.popleft()
        if not place.done():
            self.reserved += 1
            place.set_result(None)

    def refuse(self, error: BaseException) -> None:
        """Send all who wait away with an error."""
        waiting, self._waiting = self._waiting, deque()
        for place in waiting:
            if not place.done():
                place.set_exception(error)
