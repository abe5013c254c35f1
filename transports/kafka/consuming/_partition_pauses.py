"""Pausing partitions of a consumer, and the one rule by which they are resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from ._assignment import Assignment
from ._committable_offsets import PartitionTracker
from ._partition_guard import PartitionGuard

__all__ = ["PartitionPauses"]

_log = get_logger(__name__)


class PartitionPauses:
    """Pauses partitions, and resumes those that nothing else keeps paused.

    A partition is paused while too many of its records wait for one that is not settled, while the
    states of its keys are restored, while it cannot be read (see `PartitionGuard`), while it is
    doubted (see `LeaderEpochs`), and, with all others, while there is no room for what they have.

    Args:
        consumer: the library's.
        guard: pauses the partitions that cannot be read.
        current: returns the current assignment; None between two.
        limit: how many records of a partition may wait for one that is not settled; it is resumed
            when half of them are left.
        stats: counts ``kafka.partitions_stuck``.
        name: of the consumer, for log messages.
    """

    def __init__(
        self,
        consumer: Any,
        guard: PartitionGuard,
        current: Callable[[], Assignment | None],
        limit: int,
        stats: Counter[str],
        name: str,
    ) -> None:
        self._consumer = consumer
        self._guard = guard
        self._current = current
        self._limit = limit
        self._stats = stats
        self._name = name

    def pause(self, partition: TopicPartition) -> None:
        """Pause a partition until the next assignment."""
        self._consumer.pause(partition)

    def pause_if_full(self, tracker: PartitionTracker) -> None:
        """Pause a partition with too many records that cannot be committed, and log why."""
        if tracker.paused or not tracker.holds(self._limit - 1):
            return
        tracker.paused = True
        tracker.resume_at = self._limit // 2
        self._consumer.pause(tracker.partition)
        if len(tracker.slots) < self._limit:
            # A transaction is under way, or something else that does not depend on the handler.
            return
        self._stats["kafka.partitions_stuck"] += 1
        _log.warning(
            "%s: offset %d of partition %d of topic %r is not settled, and %d records"
            " after it cannot be committed; the partition is paused until it is",
            self._name,
            tracker.oldest,
            tracker.partition.partition,
            tracker.partition.topic,
            len(tracker.slots),
        )

    def pause_all(self) -> list[TopicPartition]:
        """Pause all partitions, and return them."""
        partitions = sorted(self._consumer.assignment())
        self._consumer.pause(*partitions)
        return partitions

    def resume(self, *partitions: TopicPartition) -> None:
        """Resume those that are still assigned, readable, restored, and not full."""
        assignment = self._current()
        if assignment is None or assignment.ended:
            return
        assigned, trackers = self._consumer.assignment(), assignment.trackers
        for partition in partitions:
            tracker = trackers.get(partition)
            keeps = tracker is not None and (tracker.paused or tracker.waits)
            keeps = keeps or partition in assignment.epochs.doubted
            if partition in assigned and not keeps and not self._guard.keeps(partition):
                self._consumer.resume(partition)
