"""The tenures of the partitions that a member of a group has, across its assignments."""

from __future__ import annotations

from aiokafka.structs import TopicPartition

from ..._tenures import Tenure
from ._assignment import Assignment

__all__ = ["PartitionTenures"]


class PartitionTenures:
    """Tells for how long a member has had each partition without anybody else handling any of it.

    The tenure of a partition goes on with the next assignment if that has the partition, and what
    is committed there is no more than what was settled here.
    """

    def __init__(self) -> None:
        # With the offset before which everything was settled here.
        self._left: dict[TopicPartition, tuple[Tenure, int]] = {}
        self._count = 0

    def leave(self, assignment: Assignment) -> None:
        """Note how far each partition of an assignment has come, which ends."""
        for place, tracker in assignment.trackers.items():
            if tracker.tenure is not None:
                self._left[place] = tracker.tenure, max(tracker.commit_at, tracker.committed)

    def take_over(self, assignment: Assignment) -> None:
        """Give each partition of an assignment its tenure, and end those that do not go on.

        Args:
            assignment: it is known what is committed in its partitions.
        """
        self._count += 1
        left, self._left = self._left, {}
        ended: list[Tenure] = []
        for place, tracker in assignment.trackers.items():
            tenure, settled = left.pop(place, (None, -1))
            if tenure is not None and tracker.committed > settled:
                ended.append(tenure)
                tenure = None
            if tenure is None:
                tenure = Tenure(self._count if tracker.committed >= 0 else 0)
            tracker.tenure = tenure
        for tenure in (*ended, *(tenure for tenure, _ in left.values())):
            tenure.end()
