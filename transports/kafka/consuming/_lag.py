"""The lag of a group member: how far what is settled is behind the end of its partitions."""

from __future__ import annotations

from typing import Any

from ._assignment import Assignment

__all__ = ["lag_of"]


def lag_of(assignment: Assignment | None, consumer: Any) -> int | None:
    """Return how many records there are after those that are settled.

    Args:
        assignment: the current one; None between two.
        consumer: the library's, which knows the ends from the latest responses of the cluster; None
            for none.

    Returns:
        The number; None while it is not known.
    """
    if assignment is None or consumer is None:
        return None
    lag = 0
    try:
        for partition, tracker in assignment.trackers.copy().items():
            end = consumer.highwater(partition)
            if end is None:
                return None
            settled = max(tracker.commit_at, tracker.committed, tracker.first)
            # In a partition of which nothing was ever read, the member starts at the end.
            lag += max(end - settled, 0) if settled >= 0 else 0
    except (AssertionError, AttributeError, KeyError):
        # The partitions are being taken away meanwhile.
        return None
    return lag
