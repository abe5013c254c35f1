"""Actors with a state for each key next to the same actors without."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._children import Child
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_SECONDS = 300.0
_PLAIN, _PER, _CELL, _ACTOR = "without per=", "per=", "idle key", "idle actor"


def _contender(name: str, what: str, messages: int, subject: str = "keyed_spa_dat") -> Contender:
    def run() -> dict[str, float]:
        order = {"what": what, "messages": messages}
        with Child(sys.executable, subject, order, seconds=_SECONDS) as child:
            return child.expect("result")

    return Contender(name, run)


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of messages with random keys, and of the size of a key."""
    messages, keys = (40_000, 20_000) if quick else (200_000, 100_000)
    return (
        Suite(
            "Keyed: random keys on memory",
            f"{messages:,} messages of 1 byte with 100,000 random keys, posted by the same process,"
            " to one actor that counts them by key; all CPU time, sending included.",
            (_contender(_PER, "per", messages), _contender(_PLAIN, "plain", messages)),
            (
                Column("rate", "messages per CPU second", ratio=True),
                Column("cpu_us", "CPU µs a message", ".1f"),
            ),
            (
                Target(
                    "per=, by the same actor without",
                    0.7,
                    lambda got: got.ratio(_PER, _PLAIN, "rate"),
                ),
            ),
        ),
        Suite(
            "Keyed: idle keys",
            "What Python allocates (tracemalloc) for a key at rest, its name and a dataclass of one"
            " number as its state included.",
            (_contender(_CELL, "idle", keys), _contender(_ACTOR, "idle", 0, "actors_local")),
            (Column("bytes", "bytes each"),),
            (
                Target(
                    "an idle key, by an idle actor",
                    0.25,
                    lambda got: got.ratio(_CELL, _ACTOR, "bytes"),
                    at_least=False,
                ),
            ),
        ),
    )
