"""Key eviction: choosing the keys whose states go, as they are too many or have long been idle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._keyed_mailbox import KeyCell, KeyStage

if TYPE_CHECKING:
    from ._keyed_host import KeyedHost

__all__ = ["KeyEviction"]

_LOOK_AGAIN = 1.0


class KeyEviction:
    """Chooses the keys that an actor with ``hot=`` or ``idle=`` lets go of.

    They are the least recently used ones among those at rest, in which nothing waits, runs or is
    unsettled.

    Args:
        host: the actor's.
    """

    def __init__(self, host: KeyedHost) -> None:
        self._host = host
        self._most_hot = host.options.most_hot
        self._longest_idle = host.options.longest_idle
        self._loop = asyncio.get_running_loop()
        # The cells at rest, least recently used first, with loop times.
        self._resting: dict[KeyCell, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def rests(self, cell: KeyCell) -> None:
        """Note that a key comes to rest; let go of others, or of itself, if they are too many."""
        resting = self._resting
        resting.pop(cell, None)
        resting[cell] = self._loop.time()
        self._make_room()
        if self._longest_idle is not None and self._timer is None:
            self._timer = self._loop.call_later(self._longest_idle, self._look)

    def forget(self, cell: KeyCell) -> None:
        """Forget a key whose state has gone."""
        self._resting.pop(cell, None)

    def stop(self) -> None:
        """Let go of nothing more that has been idle for long."""
        if self._timer is not None:
            self._timer.cancel()

    def _make_room(self) -> None:
        if self._most_hot is None:
            return
        resting, surplus = self._resting, self._host.hot_keys - self._most_hot
        if surplus <= 0:
            return
        now = self._loop.time()
        for cell in _first(resting, surplus):
            self._let_go_if_settled(cell, now)
        if self._host.hot_keys > self._most_hot and resting and self._timer is None:
            self._timer = self._loop.call_later(_LOOK_AGAIN, self._look)

    def _look(self) -> None:
        """Let go of what has rested for long enough, or is too much."""
        self._timer = None
        resting, idle = self._resting, self._longest_idle
        now = self._loop.time()
        if idle is not None:
            for cell, since in tuple(resting.items()):
                if since + idle > now:
                    break
                self._let_go_if_settled(cell, now)
        self._make_room()
        if idle is not None and resting and self._timer is None:
            first = next(iter(resting.values()))
            self._timer = self._loop.call_at(first + idle, self._look)

    def _let_go_if_settled(self, cell: KeyCell, now: float) -> None:
        del self._resting[cell]
        if self._host.is_at_rest(cell):
            self._host.let_go(cell)
        elif cell.stage is KeyStage.IDLE:
            # Not settled yet: its turn comes again.
            self._resting[cell] = now


def _first(resting: Mapping[KeyCell, float], number: int) -> list[KeyCell]:
    return [cell for cell, _ in zip(resting, range(number), strict=False)]
