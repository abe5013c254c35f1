"""Keeping partitions that cannot be read from those that can."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Any

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
from ._unreadable import Troubles, Unreadable

__all__ = ["PartitionGuard"]

_log = get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_NO_LEADER, _WITHOUT_LEADER = -1, 10.0
_IN_TRANSACTION = 10.0
_OUT_OF_RANGE = 1
# What a broker answers for a partition, and the library asks again and again without a word.
_UNSAID: dict[int, Callable[[], Exception]] = {
    -1: kafka.UnknownError,
    2: kafka.CorruptRecordException,
    35: kafka.UnsupportedVersionError,
    43: kafka.UnsupportedForMessageFormatError,
    56: kafka.KafkaStorageError,
    76: lambda: kafka.UnsupportedCodecError("the broker does not pass this compression on"),
}


class PartitionGuard:
    """Keeps what is wrong with one partition from the others that a consumer of the library reads.

    The library raises out of a fetch whatever is wrong with any of them, and forgets what it had
    fetched of the others. With this, a partition that cannot be read is paused at the first
    record that cannot be read, what comes before is handed out, and the rest goes on. It is tried
    again from time to time.

    Args:
        consumer: the library's, not started.
        troubles: hears of what cannot be read.
        passes_over: go on behind a batch that cannot be read, rather than hold the partition.

    Attributes:
        found: what has turned up since `mend`.
        held: the partitions that are paused over it, and when each is tried again (loop time).
        join_code: what the cluster answered to the last attempt to find the group and to join it;
            0 when it let us in.
    """

    def __init__(self, consumer: Any, troubles: Troubles, *, passes_over: bool = False) -> None:
        self._passes_over = passes_over
        self._log = LimitedLog(_log)
        self.found: dict[TopicPartition, Unreadable] = {}
        self.held: dict[TopicPartition, float] = {}
        self.join_code = 0
        self._consumer = consumer
        self._troubles = troubles
        # Those that are being tried again, or were somebody's trouble before.
        self._tried = dict(troubles.known)
        self._pauses: dict[TopicPartition, float] = {}
        # Since when (loop time).
        self._leaderless: dict[TopicPartition, float] = {}
        # Where transactions are open: the first offset of the oldest, and since when.
        self._open: dict[TopicPartition, tuple[int, float]] = {}
        # What was to be read next, and is not there any more.
        self._removed: dict[TopicPartition, int] = {}
        overhear(client_of(consumer), fetched=self._hear, joined=self._hear_of_joining)

    def start(self) -> None:
        """To be called when the consumer has started."""
        divert_unreadable(self._consumer, self._report)

    def reassigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Everything was assigned anew, and nothing is paused any more."""
        self._troubles.keep(partitions)
        self.held.clear()
        self._open.clear()
        self._removed.clear()
        self._tried = dict(self._troubles.known)

    @property
    def busy(self) -> bool:
        """Whether there is anything to `mend` or to `look_again` at."""
        return bool(self.found or self.held or self._tried)

    def keeps(self, partition: TopicPartition) -> bool:
        """Whether the partition is paused because it cannot be read."""
        return partition in self.held or partition in self.found

    def note(self, partition: TopicPartition, problem: Unreadable) -> None:
        """A partition cannot be read: pause it."""
        if is_assigned(self._consumer, partition):
            self._consumer.pause(partition)
            self.found[partition] = problem

    def position(self, partition: TopicPartition) -> int:
        """The next offset that the library would hand out; -1 when it has none."""
        return next_offset(self._consumer, partition)

    async def mend(self, may_go_on: Callable[[TopicPartition], bool]) -> None:
        """Read what can be read in another way; hold the rest.

        Args:
            may_go_on: whether nothing else keeps a partition paused.
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
            elif may_go_on(partition):
                self._consumer.resume(partition)

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
            "what is in topic %r, partition %d, from offset %d to %d cannot be read and is passed"
            " over: %s",
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
            # The library goes past what is larger than it wants.
            self._consumer.seek(partition, problem.offset)
        self._troubles.add(partition, problem)

    def look_again(self, may_go_on: Callable[[TopicPartition], bool]) -> None:
        """Try those again that have been held for long enough; see what came of it.

        Args:
            may_go_on: whether nothing else keeps a partition paused.
        """
        for partition, problem in [*self._tried.items()]:
            at = self.position(partition)
            if not problem.forbidden and at not in (-1, problem.offset):
                self._is_over(partition)
        now = asyncio.get_running_loop().time()
        for partition, until in [*self.held.items()]:
            if until <= now:
                del self.held[partition]
                if partition in self._troubles.known:
                    self._tried[partition] = self._troubles.known[partition]
                if is_assigned(self._consumer, partition) and may_go_on(partition):
                    self._consumer.resume(partition)

    def look_for_leaders(self) -> None:
        """Say which partitions have had no leader for long: the library waits without a word."""
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

    def look_for_transactions(self) -> None:
        """Say what keeps what is behind it from us for long: a transaction that does not end."""
        now = asyncio.get_running_loop().time()
        for partition, (offset, since) in self._open.items():
            waiting = now - since >= _IN_TRANSACTION and self.position(partition) >= offset
            if waiting and partition not in self._consumer.paused():
                # Said once.
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

    def _hear_of_joining(self, code: int) -> None:
        self.join_code = code

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
                elif code == 0 and self._removed:
                    self._hear_of_removed(TopicPartition(topic, number))
                if code == 0 and (self._open or more[0] < end):
                    self._hear_of_transactions(TopicPartition(topic, number), more[0], end)
                if code == 0 and self._tried:
                    place = TopicPartition(topic, number)
                    tried = self._tried.get(place)
                    if tried is not None and tried.forbidden:
                        self._is_over(place)

    def _hear_of_removed(self, place: TopicPartition) -> None:
        # The library has found another place by now.
        offset, goes_on = self._removed.pop(place, -1), self.position(place)
        if -1 not in (offset, goes_on) and offset != goes_on:
            self._troubles.removed(place, offset, goes_on)

    def _hear_of_transactions(self, place: TopicPartition, stable: int, end: int) -> None:
        if not 0 <= stable < end:
            self._open.pop(place, None)
        elif place not in self._open or self._open[place][0] != stable:
            self._open[place] = stable, asyncio.get_running_loop().time()
