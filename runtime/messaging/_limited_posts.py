"""Posts that strangers can cause without end, of which few may be under way at a time."""

from __future__ import annotations

import asyncio

__all__ = ["MOST_POSTS", "LimitedPosts"]

MOST_POSTS = 100
"""How many may be under way: few enough to leave room for those of the program in any outbox."""


class LimitedPosts:
    """Counts posts that are made at once, without waiting for room in the outbox.

    Whoever causes them may send more than a broker confirms. They would fill the outbox, and
    everything else that is posted would be refused.
    """

    def __init__(self) -> None:
        self._under_way = 0

    @property
    def full(self) -> bool:
        """Whether no more may be made for now."""
        return self._under_way >= MOST_POSTS

    def add(self, posted: asyncio.Future[None]) -> None:
        """Count a post until its outcome is known."""
        self._under_way += 1
        posted.add_done_callback(self._end)

    def _end(self, posted: asyncio.Future[None]) -> None:
        self._under_way -= 1
