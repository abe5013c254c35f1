"""Tallies: how many messages each lane has finished with, by the filters that they came through."""

from __future__ import annotations

from ...transports import TopicFilter

__all__ = ["Tallies", "Tally"]

# Filters that a program adds while it runs may be made of what strangers send.
_MOST_PATTERNS = 200


class Tally:
    """How many messages one lane has finished with that came through one filter.

    Attributes:
        handled: those that a handler has handled.
        otherwise: all others: dead letters, those that have expired, requests answered with errors.
    """

    __slots__ = ("handled", "otherwise")

    def __init__(self) -> None:
        self.handled: int = 0
        self.otherwise: int = 0

    @property
    def finished(self) -> int:
        """How many it has finished with."""
        return self.handled + self.otherwise


class Tallies:
    """The tallies of one lane.

    Attributes:
        elsewhere: how many messages were handled in the lane's child processes.
    """

    def __init__(self) -> None:
        self.elsewhere = 0
        self._by_pattern: dict[str, Tally] = {}

    def of(self, filter_: TopicFilter) -> Tally:
        """Return that of a filter; after the first 200 patterns all others have one together."""
        pattern = filter_.pattern
        if pattern not in self._by_pattern and len(self._by_pattern) >= _MOST_PATTERNS:
            pattern = ""
        return self._by_pattern.setdefault(pattern, Tally())

    @property
    def handled(self) -> int:
        """How many messages were handled, in this process or elsewhere."""
        return self.elsewhere + sum(tally.handled for tally in self._by_pattern.values())

    @property
    def by_pattern(self) -> dict[str, int]:
        """How many messages it has finished with, by pattern; an empty one for all others."""
        return {pattern: tally.finished for pattern, tally in self._by_pattern.items()}

    @property
    def finished(self) -> int:
        """How many messages it has finished with in this process."""
        return sum(tally.finished for tally in self._by_pattern.values())
