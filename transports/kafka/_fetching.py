"""Fetching, as fast as what is fetched is settled."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from ._config import KafkaConfig
from ._records import StoredRecord
from ._slots import Assignment

__all__ = ["Fetched", "Fetching"]

_log = logging.getLogger(__name__)

Fetched = Mapping[TopicPartition, Sequence[StoredRecord]]

_POLL = 200
_SMALL_WINDOW = 64
_PATIENCE = 0.02
_LONGEST_IDLE = 5.0


class Fetching:
    """The one task that fetches for a consumer of the library, never cancelled while it does.

    At most ``window`` deliveries are unsettled. As long as there is no room nothing is fetched; if
    that lasts, the partitions are paused and it goes on polling, or the group would give the member
    up. If nothing at all is settled for ``max_poll_interval``, it is left to do so.

    Args:
        consumer: the library's.
        config: limits.
        window: the most unsettled deliveries.
        current: the assignment at work; None between two.
        take: gets what was fetched.
        stats: counts ``kafka.stalled``.
        name: for messages.
    """

    def __init__(
        self,
        consumer: Any,
        config: KafkaConfig,
        window: int,
        current: Callable[[], Assignment | None],
        take: Callable[[Fetched], None],
        stats: Counter[str],
        name: str,
    ) -> None:
        self._consumer = consumer
        self._config = config
        self._window = window
        self._low = window - 1 if window < _SMALL_WINDOW else window // 2
        self._current = current
        self._take = take
        self._stats = stats
        self._name = name
        self._idle = min(config.max_poll_interval / 4, _LONGEST_IDLE)

    async def run(self, stop: asyncio.Event, until: float | None = None) -> None:
        """Fetch until ``stop`` is set, or until ``until`` (loop time).

        Raises:
            Exception: what the library raises.
        """
        consumer = self._consumer
        loop = asyncio.get_running_loop()
        watched = (consumer._client._sync_task, consumer._fetcher._fetch_task)
        while not stop.is_set() and (until is None or loop.time() < until):
            room = await self._room(stop)
            if room:
                fetched = await consumer.getmany(timeout_ms=_POLL, max_records=room)
                if fetched:
                    self._take(fetched)
            for task in watched:
                if task.done():
                    raise kafka.KafkaError("a task of the library has ended")

    async def _room(self, stop: asyncio.Event) -> int:
        """How many records may be fetched now; waits for some time if there are none."""
        assignment = self._current()
        if assignment is None or assignment.ended:
            # The library waits for the next one.
            return self._window
        if assignment.unsettled > self._low:
            await assignment.settled_down_to(self._low, _PATIENCE)
            if assignment.unsettled >= self._window and not assignment.ended:
                await self._stand_still(assignment, stop)
        return max(self._window - assignment.unsettled, 0)

    async def _stand_still(self, assignment: Assignment, stop: asyncio.Event) -> None:
        """Wait for room, however long it takes, and stay a member meanwhile."""
        loop = asyncio.get_running_loop()
        since, told = loop.time(), False
        paused: list[TopicPartition] = []
        while assignment.unsettled >= self._window and not assignment.ended and not stop.is_set():
            if await assignment.settled_down_to(self._window - 1, self._idle):
                break
            if loop.time() - since < self._config.max_poll_interval:
                if not paused:
                    paused = list(self._consumer.assignment())
                    self._consumer.pause(*paused)
                # Everything is paused: it only says that we are alive.
                stray = await self._consumer.getmany(timeout_ms=0, max_records=1)
                if stray:
                    self._take(stray)
            elif not told:
                told = True
                self._stats["kafka.stalled"] += 1
                _log.error(
                    "%s: nothing was settled for %g s, so the group will give its partitions to"
                    " others; see what the handler waits for, or raise max_poll_interval",
                    self._name,
                    self._config.max_poll_interval,
                )
        full = {tp for tp, tracker in assignment.trackers.items() if tracker.paused}
        assigned = self._consumer.assignment()
        again = [tp for tp in paused if tp in assigned and tp not in full]
        if again and not assignment.ended:
            self._consumer.resume(*again)
