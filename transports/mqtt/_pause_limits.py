"""When a consumer pauses reading from its connection, and when it resumes: back-pressure."""

from __future__ import annotations

from .._delivery import Tracker

__all__ = ["PauseLimits"]

# Messages that are never acknowledged, and take a kilobyte each however short they are.
_PASSING = 2_000


class PauseLimits:
    """Says of what has been received and not settled whether it is too much.

    Args:
        tracker: what has been received.
        window: of the subscription: how many deliveries. Twice as many may be unsettled, so that
            there is always enough to do.
        window_bytes: of the subscription: how many bytes of them.
    """

    def __init__(self, tracker: Tracker, window: int, window_bytes: int) -> None:
        self._tracker = tracker
        self._low = window
        self._high = 2 * window
        self._bytes = window_bytes
        # More than a mailbox takes, so that what a slow actor has no room for is dropped there.
        self._passing = max(_PASSING, self._high)

    @property
    def is_full(self) -> bool:
        """Whether no more may be read."""
        tracker = self._tracker
        return (
            len(tracker) >= self._high
            or tracker.size >= self._bytes
            or tracker.passing >= self._passing
        )

    @property
    def is_half_full(self) -> bool:
        """Whether the message that all others wait for should be hurried."""
        return len(self._tracker) >= self._low

    @property
    def is_overrun(self) -> bool:
        """Whether there is so much, although reading is paused, that the connection has to end."""
        return self._tracker.size >= 2 * self._bytes

    @property
    def has_room(self) -> bool:
        """Whether so much was settled that reading may be resumed."""
        tracker = self._tracker
        return (
            len(tracker) <= self._low
            and tracker.size <= self._bytes // 2
            and tracker.passing <= self._passing // 2
        )
