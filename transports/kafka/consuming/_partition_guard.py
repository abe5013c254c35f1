"""The partition guard: keeping unreadable partitions from stopping the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from ...._limited_log import LimitedLog
from ...._logs import get_logger
from .._aiokafka_private import (
    client_of,
    divert_unreadable,
    is_assigned,
    next_offset,
    overhear,
    read_leniently,
)
from .._errors import broker_at, describe, error_for
from ._unreadable_reports import LeaderUnreachable, Troubles, Unreadable

__all__ = ["PartitionGuard"]

_log = get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_NO_LEADER, _WITHOUT_LEADER = -1, 10.0
_IN_TRANSACTION = 10.0
# Asked at once again, unless the partition is paused.
_FETCHES_REFUSED_FOR, _FETCH_REFUSED_LATELY = 10.0, 2.0
_OUT_OF_RANGE, _FORBIDDEN = 1, 29
# A broker's answers for a partition over which the library silently asks again and again.
_UNSAID: dict[int, Callable[[], Exception]] = {
    -1: kafka.UnknownError,
    2: kafka.CorruptRecordException,
    35: kafka.UnsupportedVersionError,
    43: kafka.UnsupportedForMessageFormatError,
    56: kafka.KafkaStorageError,
    76: lambda: kafka.UnsupportedCodecError("the broker does not pass on this compression"),
}


class LastingRefusal(Exception):
    """Brokers have long answered nothing else for a partition."""


class _Refusal(NamedTuple):
    """What brokers answer for a partition.

    Attributes:
        code: of the last answer.
        since: when the first such answer came (loop time).
        last: when the last one came.
    """

    code: int
    since: float
    last: float


class PartitionGuard:
    """Keeps problems of one partition from the others that a consumer of the library reads.

    The library raises from a fetch whatever is wrong with any of them, and forgets what it had
    fetched from the others. With this, a partition is paused at its first unreadable record, what
    comes before is handed out, and the rest goes on. It is retried from time to time.

    Args:
        consumer: the library's, not started.
        troubles: is told what cannot be read.
        passes_over: whether to continue after an unreadable batch, rather than hold the partition.

    Attributes:
        found: what has turned up since `mend`.
        held: the partitions that are paused over it, and when each is retried (loop time).
        join_code: the cluster's answer to the last attempt to find the group and join it; 0 if it
            succeeded.
        coordinator: which broker coordinates the group, as the cluster says; empty before.
    """

    def __init__(self, consumer: Any, troubles: Troubles, *, passes_over: bool = False) -> None:
        self._passes_over = passes_over
        self._log = LimitedLog(_log)
        self.found: dict[TopicPartition, Unreadable] = {}
        self.held: dict[TopicPartition, float] = {}
        self.join_code = 0
        self.coordinator = ""
        self._consumer = consumer
        self._troubles = troubles
        # Those that are being retried, or had trouble with an earlier consumer.
        self._tried = dict(troubles.known)
        self._pauses: dict[TopicPartition, float] = {}
        # Since when (loop time).
        self._leaderless: dict[TopicPartition, float] = {}
        # Where transactions are open: the first offset of the oldest, and since when.
        self._open: dict[TopicPartition, tuple[int, float]] = {}
        # What else brokers answer for partitions, mostly for a moment, and where that was reported.
        self._refusals: dict[TopicPartition, _Refusal] = {}
        # Brokers that have answered no fetch, and since when (loop time).
        self._unanswering: dict[int, float] = {}
        # Positions of records to be read next that no longer exist.
        self._removed: dict[TopicPartition, int] = {}
        overhear(
            client_of(consumer),
            fetched=self._hear,
            fetches=self._hear_of_fetch,
            joined=self._hear_of_joining,
        )

    def start(self) -> None:
        """Begin; to be called when the consumer has started."""
        divert_unreadable(self._consumer, self._report)

    def reassigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Start over after a reassignment, which has ended all pauses."""
        self._troubles.keep(partitions)
        self.held.clear()
        self._open.clear()
        self._refusals.clear()
        self._removed.clear()
        self._tried = dict(self._troubles.known)

    @property
    def busy(self) -> bool:
        """Whether there is anything to `mend` or to `look_again` at."""
        return bool(self.found or self.held or self._tried)

    @property
    def unanswered(self) -> bool:
        """Whether the last fetch from some broker was not answered."""
        return bool(self._unanswering)

    def keeps(self, partition: TopicPartition) -> bool:
        """Return whether the partition is paused because it cannot be read."""
        return partition in self.held or partition in self.found

    def note(self, partition: TopicPartition, problem: Unreadable) -> None:
        """Pause a partition that cannot be read."""
        if is_assigned(self._consumer, partition):
            self._consumer.pause(partition)
            self.found[partition] = problem

    def position(self, partition: TopicPartition) -> int:
        """Return the next offset that the library would hand out; -1 if it has none."""
        return next_offset(self._consumer, partition)

    async def mend(self, resume: Callable[[TopicPartition], None]) -> None:
        """Read what can be read in another way; hold the rest.

        Args:
            resume: resumes a partition, unless something else keeps it paused.
        """
        found, self.found = self.found, {}
        for partition, problem in found.items():
            if not is_assigned(self._consumer, partition):
                continue
            if isinstance(problem.error, UnicodeDecodeError):
                done = await self._read_leniently(partition, problem)
            else:
                done = self._passes_over and self._pass_over(partition, problem)
            if not done:
                self._hold(partition, problem)
            else:
                resume(partition)

    async def _read_leniently(self, partition: TopicPartition, problem: Unreadable) -> bool:
        self._troubles.misnamed(partition, problem)
        try:
            await read_leniently(self._consumer, partition)
        except kafka.KafkaError as error:
            _log.debug("%s could not be read in another way: %s", partition, error)
            return False
        return True

    def _pass_over(self, partition: TopicPartition, problem: Unreadable) -> bool:
        if problem.beyond is None:
            return False
        self._log.error(
            "topic %r, partition %d: offsets %d to %d cannot be read and are skipped: %s",
            partition.topic,
            partition.partition,
            problem.offset,
            problem.beyond - 1,
            problem,
        )
        self._consumer.seek(partition, problem.beyond)
        return True

    def _hold(self, partition: TopicPartition, problem: Unreadable) -> None:
        self._tried.pop(partition, None)
        pause = self._pauses.get(partition, _FIRST_PAUSE)
        self._pauses[partition] = min(2 * pause, _LONGEST_PAUSE)
        self.held[partition] = asyncio.get_running_loop().time() + pause
        if self.position(partition) not in (-1, problem.offset):
            # The library skips what is larger than it wants.
            self._consumer.seek(partition, problem.offset)
        self._troubles.add(partition, problem)

    def look_again(self, resume: Callable[[TopicPartition], None]) -> None:
        """Retry partitions that have been held for long enough, and evaluate earlier retries.

        Args:
            resume: resumes a partition, unless something else keeps it paused.
        """
        for partition, problem in [*self._tried.items()]:
            at = self.position(partition)
            if not problem.forbidden and at not in (-1, problem.offset):
                self._is_over(partition)
        now = asyncio.get_running_loop().time()
        for partition, until in [*self.held.items()]:
            if until <= now:
                del self.held[partition]
                self._tried[partition] = self._troubles.known[partition]
                resume(partition)

    def look_for_leaders(self) -> None:
        """Report partitions that have long had no leader: the library waits silently."""
        cluster, known = client_of(self._consumer).cluster, self._troubles.known
        now = asyncio.get_running_loop().time()
        leaderless: dict[TopicPartition, float] = {}
        for partition in sorted(self._consumer.assignment()):
            problem = known.get(partition)
            if cluster.leader_for_partition(partition) == _NO_LEADER:
                leaderless[partition] = self._leaderless.get(partition, now)
                if problem is None and now - leaderless[partition] >= _WITHOUT_LEADER:
                    error = kafka.LeaderNotAvailableError()
                    self._troubles.add(partition, Unreadable(error, self.position(partition)))
            elif problem is not None and isinstance(problem.error, kafka.LeaderNotAvailableError):
                self._is_over(partition)
        self._leaderless = leaderless

    def look_for_silent_leaders(self) -> None:
        """Report partitions whose leader has long answered no fetch, while there are connections.

        One broker may be out of reach, or advertise a name that cannot be looked up here; or it
        accepts no more connections. The library silently tries again. What is paused is not asked
        for, nor is a broker that leads nothing: that it did not answer before says nothing then.
        """
        cluster, known = client_of(self._consumer).cluster, self._troubles.known
        now = asyncio.get_running_loop().time()
        assigned, paused = self._consumer.assignment(), self._consumer.paused()
        leaders = {place: cluster.leader_for_partition(place) for place in sorted(assigned)}
        asked = {leader for place, leader in leaders.items() if place not in paused}
        self._unanswering = {
            leader: since for leader, since in self._unanswering.items() if leader in asked
        }
        for partition, leader in leaders.items():
            problem, since = known.get(partition), self._unanswering.get(leader)
            if since is None:
                if problem is not None and isinstance(problem.error, LeaderUnreachable):
                    self._is_over(partition)
            elif problem is None and now - since >= _WITHOUT_LEADER:
                broker = broker_at(leader, cluster.broker_metadata(leader))
                error = LeaderUnreachable(f"{broker}, its leader, answers no fetch")
                self._troubles.add(partition, Unreadable(error, self.position(partition)))

    def forget_silent_leaders(self) -> None:
        """Begin to count anew: no broker can be reached."""
        self._unanswering.clear()

    def look_for_refusals(self) -> None:
        """Report partitions for which brokers have long answered nothing but an error.

        A new leader, for example, is known to one broker before another. The library silently asks
        again.
        """
        now = asyncio.get_running_loop().time()
        for partition, refusal in self._refusals.items():
            lasts = (
                now - refusal.since >= _FETCHES_REFUSED_FOR
                and now - refusal.last < _FETCH_REFUSED_LATELY
            )
            if lasts and partition not in self._troubles.known:
                error = LastingRefusal(f"its broker answers {describe(error_for(refusal.code))}")
                self._troubles.add(partition, Unreadable(error, self.position(partition)))

    def look_for_transactions(self) -> None:
        """Report transactions that do not end, and so hold back everything after them."""
        now = asyncio.get_running_loop().time()
        for partition, (offset, since) in self._open.items():
            waiting = now - since >= _IN_TRANSACTION and self.position(partition) >= offset
            if waiting and partition not in self._consumer.paused():
                # Logged once.
                self._open[partition] = offset, math.inf
                self._troubles.in_transaction(partition, offset, now - since)

    def _is_over(self, partition: TopicPartition) -> None:
        self._tried.pop(partition, None)
        self._pauses.pop(partition, None)
        self._troubles.over(partition)

    def _report(
        self, partition: TopicPartition, error: Exception, offset: int, beyond: int | None = None
    ) -> None:
        self.note(partition, Unreadable(error, offset, beyond))

    def _hear_of_joining(self, answer: Any) -> None:
        self.join_code = answer.error_code
        if not answer.error_code and hasattr(answer, "coordinator_id"):
            self.coordinator = broker_at(answer.coordinator_id, answer)

    def _hear_of_fetch(self, node: int, answered: bool) -> None:
        if answered:
            self._unanswering.pop(node, None)
        else:
            self._unanswering.setdefault(node, asyncio.get_running_loop().time())

    def _hear(self, topics: Any) -> None:
        for topic, partitions in topics:
            for number, code, end, *more in partitions:
                if code in _UNSAID:
                    place = TopicPartition(topic, number)
                    self.note(place, Unreadable(_UNSAID[code](), self.position(place)))
                    continue
                if code == _OUT_OF_RANGE:
                    place = TopicPartition(topic, number)
                    self._removed.setdefault(place, self.position(place))
                elif code not in (0, _FORBIDDEN):
                    self._hear_of_refusal(TopicPartition(topic, number), code)
                elif self._refusals:
                    self._refusals.pop(TopicPartition(topic, number), None)
                if code == 0 and self._removed:
                    self._hear_of_removed(TopicPartition(topic, number))
                if code == 0 and (self._open or more[0] < end):
                    self._hear_of_transactions(TopicPartition(topic, number), more[0], end)
                if code == 0 and self._troubles.known:
                    place = TopicPartition(topic, number)
                    known = self._troubles.known.get(place)
                    if known is not None and isinstance(known.error, LastingRefusal):
                        self._is_over(place)
                if code == 0 and self._tried:
                    place = TopicPartition(topic, number)
                    tried = self._tried.get(place)
                    if tried is not None and tried.forbidden:
                        self._is_over(place)

    def _hear_of_refusal(self, place: TopicPartition, code: int) -> None:
        now = asyncio.get_running_loop().time()
        before = self._refusals.get(place)
        # A partition that is paused is not asked for.
        goes_on = before is not None and now - before.last < _FETCH_REFUSED_LATELY
        self._refusals[place] = _Refusal(code, before.since if before and goes_on else now, now)

    def _hear_of_removed(self, place: TopicPartition) -> None:
        # The library has found another position by now.
        offset, goes_on = self._removed.pop(place, -1), self.position(place)
        if -1 not in (offset, goes_on) and offset != goes_on:
            self._troubles.removed(place, offset, goes_on)

    def _hear_of_transactions(self, place: TopicPartition, stable: int, end: int) -> None:
        if not 0 <= stable < end:
            self._open.pop(place, None)
        elif place not in self._open or self._open[place][0] != stable:
            self._open[place] = stable, asyncio.get_running_loop().time()
