"""Rivalry: which of two programs that run under the same name gives way."""

from __future__ import annotations

__all__ = ["Rivalry"]


class Rivalry:
    """Decides, by how often another program has taken our place, which of the two gives way.

    The one that came second gives way: it has not held its place for long yet, and has less
    patience. The one that was there first keeps coming back until then.

    Args:
        settled_after: a program that has held its place for this many seconds before it was
            displaced for the first time was there first.
        lasting: a program that holds its place for this many seconds has won: counting starts over.
        newcomer: how often a newcomer accepts being displaced.
        settled: how often one that was there first does.

    Attributes:
        count: how often it has been displaced so far.
        is_newcomer: whether it has not held its place for long yet.
    """

    def __init__(
        self, *, settled_after: float, lasting: float, newcomer: int, settled: int
    ) -> None:
        self.count = 0
        self.is_newcomer = True
        self._settled_after = settled_after
        self._lasting = lasting
        self._newcomer = newcomer
        self._settled = settled

    @property
    def gives_way(self) -> bool:
        """Whether to give up the place for good."""
        return self.count >= (self._newcomer if self.is_newcomer else self._settled)

    def held(self, seconds: float) -> None:
        """Note that the place was held for so long, and is lost now, for whatever reason."""
        # In a fight the times grow with the other one's pauses.
        if seconds >= (self._lasting if self.count else self._settled_after):
            self.is_newcomer = False
        if seconds >= self._lasting:
            self.count = 0

    def pushed_out(self) -> None:
        """Count that somebody else has taken the place."""
        self.count += 1

    def over(self) -> None:
        """Start over, as nobody else is there."""
        self.count = 0
