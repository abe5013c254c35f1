"""Which of the messages of a subscription are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...transports import Delivery
from ._measurements import Measurements

__all__ = ["Sampling"]

_WHILE = 0.1


class Sampling:
    """Chooses the messages of one subscription that are timed, and notes when these arrive.

    Up to a number of messages in a tenth of a second all of them are. Of more it is some, chosen at
    random: to look at the clock for each message would cost too much.

    Attributes:
        left: how many more messages come before one that is timed.

    Args:
        measurements: say how many.
        clock: tells loop time.
        everything: time all of them, however many there are.
    """

    __slots__ = ("_clock", "_everything", "_measurements", "_timed", "_until", "left")

    def __init__(
        self, measurements: Measurements, clock: Callable[[], float], *, everything: bool = False
    ) -> None:
        self.left: int = 0
        self._measurements = measurements
        self._clock = clock
        self._everything = everything
        self._until = -1.0
        self._timed = 0

    def choose(self, delivery: Delivery) -> None:
        """Choose this message, which has just arrived, and the next one."""
        delivery.arrived = now = self._clock()
        self.left = self._left_out(now)

    def choose_among(self, deliveries: Sequence[Delivery]) -> None:
        """Choose among messages that have arrived together."""
        place, number = self.left, len(deliveries)
        if place < number:
            now = self._clock()
            while place < number:
                deliveries[place].arrived = now
                place += 1 + self._left_out(now)
        self.left = place - number

    def _left_out(self, now: float) -> int:
        if self._everything:
            return 0
        if now >= self._until:
            self._until = now + _WHILE
            self._timed = 0
        self._timed += 1
        measurements = self._measurements
        if self._timed < measurements.all_timed:
            return 0
        return int(measurements.chance() * (2 * measurements.one_in - 1))
