"""What an application measures while it handles messages, for as long as the program runs."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

from ..._texts import error_name, escaped

__all__ = [
    "BOUNDS",
    "OTHER",
    "Durations",
    "FailureKind",
    "Measurements",
    "Series",
    "TakenMeasurements",
    "error_type",
]

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The upper bounds of the buckets of durations, in seconds, as the conventions advise."""

OTHER = "_OTHER"
"""Stands for whatever there are too many different ones of, as in the conventions."""

FailureKind: TypeAlias = Literal[
    "retried", "dead_letter", "rejected", "answered", "expired", "dropped"
]
"""What became of a message that was not handled, or is not yet."""

# Filters that a program adds while it runs, and classes of errors, may be made of what strangers
# send: so many of them at the most get series of their own.
_MOST_TEMPLATES = 100
_MOST_ERRORS = 20

TakenMeasurements: TypeAlias = tuple[
    list[tuple[str, list[int], float]], list[tuple[FailureKind, str, int]]
]
"""Handling times and failures of a series, as they are sent from one process to another."""

Record: TypeAlias = Callable[[float, "Series", str], None]
"""Is told a duration in seconds, whose it is, and the class of the error it ended with, if any."""


class Durations:
    """A histogram of durations: how many there were up to each of `BOUNDS`, and their sum.

    Attributes:
        counts: how many there were in each bucket, the last of which has no upper bound.
        seconds: the sum.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS) + 1)
        self.seconds: float = 0.0

    def add(self, seconds: float, times: int) -> None:
        """Add a duration so many times."""
        self.counts[bisect_left(BOUNDS, seconds)] += times
        self.seconds += seconds * times


class Series:
    """What is measured of the messages that one actor gets through one filter.

    Only some of the messages are timed; each of those counts for all since the one before it.

    Attributes:
        actor: the actor's name.
        template: the filter as written; `OTHER` if there are too many of them.
        system: the kind of bus.
        consumed: how many messages have reached the actor.
        failures: how many messages were not handled, by what became of them and the class of error.
        waiting: how long messages have waited until they were handled.
        handling: how long the handler took, by the class of what it raised; empty for nothing.

    Args:
        actor: see above.
        template: likewise.
        system: likewise.
        owner: the measurements that it is part of.
    """

    __slots__ = (
        "_owner",
        "_weighed",
        "actor",
        "consumed",
        "failures",
        "handling",
        "system",
        "template",
        "waiting",
    )

    def __init__(self, actor: str, template: str, system: str, owner: Measurements) -> None:
        self.actor: str = actor
        self.template: str = template
        self.system: str = system
        self.consumed: int = 0
        self.failures: Counter[tuple[FailureKind, str]] = Counter()
        self.waiting: Durations = Durations()
        self.handling: dict[str, Durations] = {"": Durations()}
        self._owner = owner
        self._weighed = 0

    def weigh(self) -> int:
        """Return for how many messages one counts that is timed: those since the last time."""
        weight = self.consumed - self._weighed
        self._weighed = self.consumed
        return max(weight, 1)

    def take(self) -> TakenMeasurements | None:
        """Return the handling times and the failures since the last time; None without any."""
        handling = [
            (error, durations.counts, durations.seconds)
            for error, durations in self.handling.items()
            if any(durations.counts)
        ]
        failures = [(kind, error, number) for (kind, error), number in self.failures.items()]
        if not handling and not failures:
            return None
        self.handling = {"": Durations()}
        self.failures = Counter()
        return handling, failures

    def add(self, taken: TakenMeasurements) -> None:
        """Add what the measurements of another process have, which handles the messages."""
        handling, failures = taken
        for error, counts, seconds in handling:
            durations = self._handling_of(self._known(error))
            durations.counts = [
                ours + theirs for ours, theirs in zip(durations.counts, counts, strict=True)
            ]
            durations.seconds += seconds
        for kind, error, number in failures:
            self._count(kind, self._known(error), number)

    def waited(self, seconds: float, times: int) -> None:
        """Note how long a message has waited, so many times."""
        self.waiting.add(seconds, times)
        if self._owner.on_waited is not None:
            self._owner.on_waited(seconds, self, "")

    def took(self, seconds: float, times: int, error: BaseException | None = None) -> None:
        """Note how long a handler took, so many times, and what it raised."""
        name = "" if error is None else self._known(error_type(error))
        self._handling_of(name).add(seconds, times)
        if self._owner.on_handled is not None:
            self._owner.on_handled(seconds, self, name)

    def ended(self, kind: FailureKind, error: BaseException | None) -> None:
        """Count a message that was not handled."""
        self._count(kind, "" if error is None else self._known(error_type(error)), 1)

    def _handling_of(self, name: str) -> Durations:
        known = self.handling.get(name)
        if known is None:
            known = self.handling[name] = Durations()
        return known

    def _count(self, kind: FailureKind, name: str, number: int) -> None:
        if len(self.failures) >= 6 * _MOST_ERRORS and (kind, name) not in self.failures:
            name = OTHER
        self.failures[kind, name] += number

    def _known(self, name: str) -> str:
        return name if name in self.handling or len(self.handling) < _MOST_ERRORS else OTHER


class Measurements:
    """What one application measures, over all of its runs.

    Attributes:
        sent: how many messages were sent, by actor, kind of bus, and the class of the error that
            refused them, if one did. The actor is empty for sockets that belong to none.
        on_waited: is told every waiting time that is measured; None for nobody.
        on_handled: is told every handling time that is measured; None for nobody.

    Args:
        all_timed: so many messages are all timed in a tenth of a second, of each subscription.
        one_in: of more than that it is one in about so many.
        chance: returns a number from 0 to 1, which decides on which ones.
    """

    def __init__(
        self,
        all_timed: int = 20,
        one_in: int = 256,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.all_timed = all_timed
        self.one_in = one_in
        self.chance = chance
        self.sent: Counter[tuple[str, str, str]] = Counter()
        self.on_waited: Record | None = None
        self.on_handled: Record | None = None
        self._series: dict[tuple[str, str, str], Series] = {}
        self._templates: Counter[str] = Counter()

    def series(self, actor: str, template: str, system: str) -> Series:
        """Return what is measured of an actor's messages through a filter."""
        template = escaped(template)
        key = (actor, template, system)
        known = self._series.get(key)
        if known is None:
            if template != OTHER and self._templates[actor] >= _MOST_TEMPLATES:
                return self.series(actor, OTHER, system)
            self._templates[actor] += 1
            known = self._series[key] = Series(actor, template, system, self)
        return known

    def all_series(self) -> list[Series]:
        """Return all of them. Works from any thread."""
        return list(self._series.copy().values())


def error_type(error: BaseException) -> str:
    """Return the value of ``error.type`` for an error: its class."""
    return escaped(error_name(error), 100)
