"""Measurements in rounds: each round takes every contender once, so that all see the same machine.

A ratio is the median of the ratios of the single rounds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from ._children import MeasurementFailed

__all__ = ["Column", "Contender", "Results", "Suite", "Target", "measure"]


@dataclass(frozen=True)
class Contender:
    """One that is measured.

    Args:
        name: in the tables.
        run: measures it once; figures by key.
    """

    name: str
    run: Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Column:
    """One figure in a table.

    Args:
        key: the key of the figure.
        title: the heading of the column.
        form: the format specification of a value.
        ratio: whether to print the ratio to ours, too.
    """

    key: str
    title: str
    form: str = ",.0f"
    ratio: bool = False


@dataclass(frozen=True)
class Target:
    """What a figure should be.

    Args:
        text: what is compared.
        wanted: the limit.
        value: gets the value from the results of its suite; None if it was not measured.
        at_least: whether more is better.
        form: the format specification of both.
    """

    text: str
    wanted: float
    value: Callable[[Results], float | None]
    at_least: bool = True
    form: str = ".2f"


@dataclass(frozen=True)
class Suite:
    """Contenders that are measured in turn.

    Args:
        title: the title of the table.
        about: how it is measured.
        contenders: the contenders, ours first.
        columns: the columns of the table.
        targets: the targets.
        around: entered before the first round and left after the last.
    """

    title: str
    about: str
    contenders: Sequence[Contender]
    columns: Sequence[Column]
    targets: Sequence[Target] = ()
    around: AbstractContextManager[object] = field(default_factory=nullcontext)


@dataclass
class Results:
    """The results of a suite: the rounds of each contender in order, None for a failed one."""

    suite: Suite
    rounds: dict[str, list[dict[str, float] | None]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def values(self, name: str, key: str) -> list[float]:
        """Return the figures of the rounds that succeeded."""
        return [figures[key] for figures in self.rounds[name] if figures and key in figures]

    def median(self, name: str, key: str) -> float | None:
        """Return the median over all rounds; None if it was not measured."""
        values = self.values(name, key)
        return statistics.median(values) if values else None

    def ratio(self, ours: str, theirs: str, key: str) -> float | None:
        """Return ours divided by theirs; None if one of them was not measured."""
        quotients = [
            mine[key] / other[key]
            for mine, other in zip(self.rounds[ours], self.rounds[theirs], strict=True)
            if mine and other and key in mine and other.get(key)
        ]
        return statistics.median(quotients) if quotients else None


def measure(suite: Suite, rounds: int) -> Results:
    """Measure every contender so many times; one that fails twice is left out of further rounds."""
    results = Results(suite, {contender.name: [] for contender in suite.contenders})
    try:
        with suite.around:
            _measure_rounds(results, rounds)
    except (MeasurementFailed, OSError) as error:
        print(f"{suite.title} failed: {error}", file=sys.stderr)
        for figures in results.rounds.values():
            figures += [None] * (rounds - len(figures))
        results.failures |= dict.fromkeys(results.rounds, str(error))
    return results


def _measure_rounds(results: Results, rounds: int) -> None:
    suite = results.suite
    failed = dict.fromkeys(results.rounds, 0)
    for number in range(rounds):
        turn = number % len(suite.contenders)
        for contender in (*suite.contenders[turn:], *suite.contenders[:turn]):
            name = contender.name
            figures = None
            if failed[name] < 2:
                print(f"{suite.title}: {name}, {number + 1} of {rounds}", file=sys.stderr)
                try:
                    figures = contender.run()
                except (MeasurementFailed, OSError) as error:
                    failed[name] += 1
                    results.failures[name] = str(error)
                    print(f"  failed: {error}", file=sys.stderr)
            results.rounds[name].append(figures)
