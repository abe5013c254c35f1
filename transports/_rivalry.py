"""Two programs with one name, which push each other off the broker: which of them gives way."""

from __future__ import annotations

__all__ = ["Rivalry"]


class Rivalry:
    """Counts how often somebody else has taken our place.

    The one that came second gives way: it has not held its place for long yet, and has less
    patience. Who was there first comes back until then.

    Args:
        settled_after: who has held its place for so many seconds, before it was pushed out for the
            first time, was there first.
        lasting: who holds it for so many seconds has won: the count starts anew.
        newcomer: how often a newcomer lets itself be pushed out.
        settled: how often one that was there first does.

    Attributes:
        count: how often it was pushed out so far.
        is_newcomer: it has not held its place for long yet.
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
        """Whether to end."""
        return self.count >= (self._newcomer if self.is_newcomer else self._settled)

    def held(self, seconds: float) -> None:
        """The place was held for so long, and is lost now, for whatever reason."""
        # In a fight the times grow with the pauses that the other one makes.
        if seconds >= (self._lasting if self.count else self._settled_after):
            self.is_newcomer = False
        if seconds >= self._lasting:
            self.count = 0

    def pushed_out(self) -> None:
        """Somebody else has taken the place."""
        self.count += 1

    def over(self) -> None:
        """Nobody else is there."""
        self.count = 0
