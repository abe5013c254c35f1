"""Ages of unsettled messages, from looks at the trackers: no message carries a time of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from ...transports import Delivery, Tracker

__all__ = ["UnsettledAges"]

_MOST_MARKS = 32


class UnsettledAges:
    """Says how long the oldest unsettled message has been here, at least.

    Each look marks the newest delivery of a tracker with the time. As long as that one is not
    released, the oldest one is at least as old as the mark, whichever it is. So the age is right to
    the time between two looks, and messages cost nothing.
    """

    def __init__(self) -> None:
        self._marks: dict[Tracker, deque[tuple[float, Delivery]]] = {}
        # Any thread may ask, while the event loop looks.
        self._lock = threading.Lock()

    def look(self, trackers: Iterable[Tracker], now: float) -> None:
        """Mark what is the newest delivery of each tracker now, and forget other trackers."""
        with self._lock:
            before = self._marks
            self._marks = {
                tracker: marks
                for tracker in trackers
                if (marks := _marked(tracker, before.get(tracker), now))
            }

    def age(self, tracker: Tracker, now: float) -> float | None:
        """Return the age of its oldest unsettled delivery in seconds; None if there is none."""
        unreleased = tracker.unreleased()
        if not unreleased:
            return None
        with self._lock:
            marks = tuple(self._marks.get(tracker, ()))
        known = set(map(id, unreleased))
        return next((now - when for when, delivery in marks if id(delivery) in known), 0.0)


def _marked(
    tracker: Tracker, marks: deque[tuple[float, Delivery]] | None, now: float
) -> deque[tuple[float, Delivery]] | None:
    newest = tracker.newest
    if newest is None:
        return None
    marks = deque() if marks is None else marks
    if marks and marks[0][1] is not tracker.next:
        unreleased = tracker.unreleased()
        while marks and marks[0][1] not in unreleased:
            marks.popleft()
    if not marks or marks[-1][1] is not newest:
        marks.append((now, newest))
    if len(marks) > _MOST_MARKS:
        # The older the marks, the less it matters how far apart they are.
        marks = deque([*marks][::2])
    return marks
