"""Fetching, at the rate at which deliveries are settled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from .._aiokafka_private import (
    background_tasks,
    client_of,
    close_unused,
    look_seldom,
    records_arrive,
    set_longest_fetch,
    wake_fetching,
)
from .._config import KafkaConfig
from .._reachability import MOVED, Brokers, Reachability
from .._records import StoredRecord
from ._assignment import Assignment
from ._partition_guard import PartitionGuard
from ._partition_pauses import PartitionPauses

__all__ = ["Fetched", "Fetching"]

_log = get_logger(__name__)

Fetched = Mapping[TopicPartition, Sequence[StoredRecord]]

_LOOK = 1.0
_LIBRARY_LOOKS = 3.0
# While unreadable partitions are waited for.
_SHORT_LOOK = 0.2
# How long a broker may keep a fetch waiting. It does not know of partitions that are resumed
# meanwhile. So the long one is only for times when nothing is received, unsettled or unreadable:
# most of what an idle consumer costs are its fetches.
_FETCH, _RESTING_FETCH = 0.5, 5.0
_RESTS_AFTER = 2.0
# Seconds after which the connection that an idle consumer does not use is closed.
_UNUSED = 15.0
_SMALL_WINDOW = 64
_PATIENCE = 0.02
_LONGEST_IDLE = 5.0
# Longer than one fetch takes, unless the library waits for something that may never happen.
_GRACE = 1.0


def _until_the_next_look(now: float) -> float:
    """Return how long to sleep until all consumers look, half a `_LOOK` or more."""
    return 1.5 * _LOOK - (now + 0.5 * _LOOK) % _LOOK


class Fetching:
    """Fetches for a consumer of the library, and is never cancelled while that is in use.

    At most ``window`` deliveries are unsettled, and ``window_bytes`` not counting the last fetch.
    While there is no room nothing is fetched; if that lasts, the partitions are paused and polling
    continues, or the group would drop the member. If nothing at all is settled for
    ``max_poll_interval``, it ends. It also ends if the brokers known to the library are gone and
    the cluster is somewhere else.

    Args:
        consumer: the library's.
        config: the limits.
        window: the most unsettled deliveries.
        window_bytes: the most unsettled bytes.
        current: returns the current assignment; None between two.
        take: gets what was fetched; its result is awaited.
        stats: counts ``kafka.stalled``.
        name: for log messages.
        guard: keeps unreadable partitions from stopping the others.
        pauses: pauses partitions, and resumes them.
        reachability: tells whether the brokers known to the library are still there.
        look: called once a second, to raise what the library would never notice.
        handed_out: called now and then when everything fetched has been handed out.

    Attributes:
        brokers: the state of the brokers, as far as it is known.
    """

    def __init__(
        self,
        consumer: Any,
        config: KafkaConfig,
        window: int,
        current: Callable[[], Assignment | None],
        take: Callable[[Fetched], Awaitable[None] | None],
        stats: Counter[str],
        name: str,
        guard: PartitionGuard,
        pauses: PartitionPauses,
        reachability: Reachability,
        look: Callable[[], Awaitable[None]],
        handed_out: Callable[[], None],
        *,
        window_bytes: int,
    ) -> None:
        self._consumer = consumer
        self._config = config
        self._window = window
        self._most_bytes = window_bytes
        self._low = window - 1 if window < _SMALL_WINDOW else window // 2
        self._current = current
        self._take = take
        self._stats = stats
        self._name = name
        self._guard = guard
        self._pauses = pauses
        self._reachability = reachability
        self.brokers = Brokers.ANSWERING
        self._look = look
        self._handed_out = handed_out
        self._idle = min(config.max_poll_interval / 4, _LONGEST_IDLE)
        # A fetch must not time out over that.
        self._may_rest = config.request_timeout > _RESTING_FETCH + 1.0
        self._rests = False
        self._last = 0.0

    async def run(self, stop: asyncio.Event, until: float | None = None) -> bool:
        """Fetch until ``stop`` is set, or until ``until`` (loop time).

        Returns:
            False when it ended because nothing was settled for too long.

        Raises:
            ConnectionError: the cluster has moved.
            Exception: what the library raises.
        """
        fetching = asyncio.ensure_future(self._fetch(stop, until))
        stopping = asyncio.ensure_future(stop.wait())
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({fetching, stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            assignment = self._current()
            if assignment is not None:
                assignment.wake()
            wake_fetching(self._consumer)
            # In the middle of a rebalance the library does not return until its end.
            await asyncio.wait({fetching}, timeout=_GRACE)
            return fetching.result() if fetching.done() else True
        finally:
            fetching.cancel()
            stopping.cancel()
            watching.cancel()
            await asyncio.gather(fetching, stopping, watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Raise what the library would never notice."""
        where = self._reachability
        loop = asyncio.get_running_loop()
        while True:
            # All consumers look at the same moment, so that they can share what they are told.
            await asyncio.sleep(_until_the_next_look(loop.time()))
            reachable = await where.reachable()
            # Asked each time, as it has to be.
            silent = where.silent()
            self._become(
                Brokers.AWAY if not reachable else Brokers.SILENT if silent else Brokers.ANSWERING
            )
            if reachable:
                close_unused(client_of(self._consumer), _UNUSED)
                self._guard.look_for_leaders()
                self._guard.look_for_silent_leaders()
                self._guard.look_for_refusals()
                self._guard.look_for_transactions()
                await self._look()
                continue
            self._guard.forget_silent_leaders()
            if await where.moved():
                raise ConnectionError(MOVED)

    @property
    def obstacle(self) -> str | None:
        """Why no connection can be had, as text; None for a mere outage."""
        return self._reachability.obstacle

    def _become(self, brokers: Brokers) -> None:
        """Change the state of the brokers; the only place where it changes."""
        self.brokers = brokers

    async def _fetch(self, stop: asyncio.Event, until: float | None) -> bool:
        consumer = self._consumer
        loop = asyncio.get_running_loop()
        watched = background_tasks(consumer)
        look_seldom(consumer, _LIBRARY_LOOKS)
        told = self._last = loop.time()
        while not stop.is_set() and (until is None or loop.time() < until):
            room = await self._room(stop)
            if room is None:
                return False
            if room:
                fetched = await consumer.getmany(timeout_ms=0, max_records=room)
                if fetched:
                    self._last = loop.time()
                    # Before the next check says so: a stop now must not take the cluster for gone.
                    self._become(Brokers.ANSWERING)
                    self._rest(rests=False)
                    await self._taken(fetched)
                    # What the library already has comes without a pause, and whoever has to
                    # handle it needs a turn.
                    await asyncio.sleep(0)
                elif not stop.is_set():
                    await self._wait(until)
                if self._guard.busy:
                    await self._mend()
                if loop.time() - told >= self._config.commit_interval:
                    told = loop.time()
                    self._handed_out()
            for task in watched:
                if task.done():
                    raise kafka.KafkaError("a task of the library has ended")
        return True

    async def _wait(self, until: float | None) -> None:
        """Wait for records, but not for so long that anything else is noticed late."""
        now = asyncio.get_running_loop().time()
        assignment = self._current()
        unsettled = assignment is not None and bool(assignment.unsettled)
        idle = not unsettled and not self._guard.busy and now - self._last >= _RESTS_AFTER
        # A broker may close a connection over which nothing comes for less than a long fetch takes.
        self._rest(rests=idle and self._may_rest and not self._guard.unanswered)
        if idle:
            # One turn of the loop for all idle consumers: most of what each costs is the waking.
            seconds = _until_the_next_look(now)
        elif self._guard.busy:
            seconds = _SHORT_LOOK
        else:
            seconds = max(_SHORT_LOOK, min(_LOOK, self._config.commit_interval))
        if until is not None:
            seconds = min(seconds, max(until - now, 0.0))
        await records_arrive(self._consumer, seconds)

    def _rest(self, *, rests: bool) -> None:
        if rests is not self._rests:
            self._rests = rests
            set_longest_fetch(self._consumer, _RESTING_FETCH if rests else _FETCH)

    async def _mend(self) -> None:
        if self._guard.found:
            await self._guard.mend(self._pauses.resume)
        self._guard.look_again(self._pauses.resume)

    async def _taken(self, fetched: Fetched) -> None:
        waiting = self._take(fetched)
        if waiting is not None:
            await waiting

    async def _room(self, stop: asyncio.Event) -> int | None:
        """Return how many records may be fetched now; None if there was no room for too long."""
        assignment = self._current()
        if assignment is None or assignment.ended:
            # The library waits for the next one.
            return self._window
        few_bytes = self._most_bytes // 2
        if assignment.unsettled > self._low or assignment.size > few_bytes:
            await assignment.settled_down_to(self._low, _PATIENCE, few_bytes)
            full = self._is_full(assignment) and not assignment.ended
            if full and not await self._stand_still(assignment, stop):
                return None
        room = max(self._window - assignment.unsettled, 0)
        if assignment.average:
            bytes_left = max(self._most_bytes - assignment.size, 0)
            room = min(room, max(bytes_left // assignment.average, 1))
        return room

    def _is_full(self, assignment: Assignment) -> bool:
        return assignment.unsettled >= self._window or assignment.size >= self._most_bytes

    async def _stand_still(self, assignment: Assignment, stop: asyncio.Event) -> bool:
        """Wait for room, staying a member meanwhile; return False if that takes too long."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._config.max_poll_interval
        paused: list[TopicPartition] = []
        try:
            while self._is_full(assignment):
                left = limit - loop.time()
                if left <= 0:
                    return self._stalled()
                patience = min(self._idle, left)
                if await assignment.settled_down_to(
                    self._window - 1, patience, self._most_bytes - 1
                ):
                    break
                if assignment.ended or stop.is_set():
                    break
                if not paused:
                    paused = self._pauses.pause_all()
                # Everything is paused: this only shows that we are alive.
                stray = await self._consumer.getmany(timeout_ms=0, max_records=1)
                if stray:
                    await self._taken(stray)
            return True
        finally:
            self._pauses.resume(*paused)

    def _stalled(self) -> bool:
        self._stats["kafka.stalled"] += 1
        _log.error(
            "%s: nothing was settled for %g s; check what the handler is waiting for, or raise"
            " max_poll_interval",
            self._name,
            self._config.max_poll_interval,
        )
        return False
