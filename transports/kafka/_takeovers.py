"""Takeovers: another program with our name takes our places in groups, and one has to give way."""

from __future__ import annotations

import functools

from ..._environment import Environment
from ...errors import ConfigurationError
from .._contract import Surroundings
from .._rivalry import Rivalry

__all__ = ["Contest", "Takeovers"]

_SHORT = 10.0
# More than any newcomer has, see `Contest`.
_PATIENCE_OF_SETTLED = 14


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


class Takeovers:
    """Counts how often another program has taken the place of one member in its group.

    Args:
        contest: that of all places of this program.
        surroundings: has the counters, and is told when this program gives way.
        identifier: of the consumer.
        group: the id of its group.
    """

    def __init__(
        self, contest: Contest, surroundings: Surroundings, identifier: str, group: str
    ) -> None:
        self._contest = contest
        self._surroundings = surroundings
        self._identifier = identifier
        self._group = group
        # Hardly any place is ever lost.
        self._rivalry: Rivalry | None = None

    @property
    def given_up(self) -> bool:
        """Whether this program gives way, at all its places."""
        return self._contest.given_up

    def lost(self, held: float, *, expired: bool) -> None:
        """Note that the place was lost, and end the program if it gives way.

        Args:
            held: for how many seconds the place was held.
            expired: whether the session may have expired since the group was joined. On a busy
                machine it does, and then nobody has taken the place.
        """
        self._surroundings.stats["kafka.memberships_lost"] += 1
        if self._contest.given_up:
            return
        if self._rivalry is None:
            self._rivalry = Rivalry(
                settled_after=_SHORT,
                lasting=_SHORT,
                newcomer=self._contest.patience,
                settled=_PATIENCE_OF_SETTLED,
            )
        self._rivalry.held(held)
        if expired:
            self._rivalry.over()
            return
        self._rivalry.pushed_out()
        if not self._rivalry.gives_way:
            return
        self._contest.given_up = True
        who = self._surroundings.identity.client_id
        self._surroundings.fatal(
            ConfigurationError(
                f"consumer {self._identifier!r} keeps losing its place in group {self._group!r}:"
                f" another program runs as {who!r} too; give each copy of an application another"
                " instance="
            )
        )
