"""Rivalry: which of two programs that run under the same name gives way."""

from __future__ import annotations

import functools

from .._environment import Environment

__all__ = ["Contest", "Rivalry"]


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


class Contest:
    """What a program has in common at all its places when another one with its name takes them.

    Of two that started together neither was there first, and they must not both give way. So the
    patience of each is its own, and who gives way leaves all places to the other at once.

    Args:
        environment: where the randomness comes from.
        least: the smallest patience of any program.
        most: one more than the largest.

    Attributes:
        given_up: whether this program gives way.
    """

    def __init__(self, environment: Environment, *, least: int, most: int) -> None:
        self.given_up = False
        self._environment = environment
        self._least = least
        self._most = most

    @functools.cached_property
    def patience(self) -> int:
        """How often this program accepts being displaced at a place while it is a newcomer."""
        # Not chosen before somebody asks: hardly any program is ever displaced.
        return self._environment.random.randrange(self._least, self._most)
