"""Local actors next to pykka's threads."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._children import Child
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_OURS = "spa_dat"
_PYKKA = "pykka.ThreadingActor"
_SECONDS = 120.0
_RATE = (
    Column("rate", "messages/s", ratio=True),
    Column("cpu_us", "CPU µs a message", ".2f"),
)


def _contender(name: str, what: str, messages: int) -> Contender:
    def run() -> dict[str, float]:
        order = {"what": what, "messages": messages}
        with Child(sys.executable, "actors_local", order, seconds=_SECONDS) as child:
            return child.expect("result")

    return Contender(name, run)


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of tell, ask, and the size of an actor."""
    scale = 5 if quick else 1
    tells, asks, many = 200_000 // scale, 20_000 // scale, 50_000
    return (
        Suite(
            "Local tell",
            f"{tells:,} messages to one actor, none of them answered, until the last is handled.",
            (_contender(_OURS, "tell", tells), _contender(_PYKKA, "pykka_tell", tells)),
            _RATE,
            (Target("tell, by pykka's", 7.0, lambda got: got.ratio(_OURS, _PYKKA, "rate")),),
        ),
        Suite(
            "Local ask",
            f"{asks:,} round trips, one at a time. A thread of pykka answers much faster when the"
            " system happens to keep both threads on one CPU: see the spread.",
            (_contender(_OURS, "ask", asks), _contender(_PYKKA, "pykka_ask", asks)),
            _RATE,
            (Target("ask, by pykka's", 6.0, lambda got: got.ratio(_OURS, _PYKKA, "rate")),),
        ),
        Suite(
            "Idle actors",
            "What Python allocates (tracemalloc) for an actor that waits, its task and mailbox"
            " included.",
            (_contender(_OURS, "idle", 0),),
            (Column("bytes", "bytes an actor"),),
            (
                Target(
                    "bytes an idle actor",
                    4096,
                    lambda got: got.median(_OURS, "bytes"),
                    at_least=False,
                    form=",.0f",
                ),
            ),
        ),
        Suite(
            "Many actors",
            f"{many:,} actors in one process.",
            (_contender(_OURS, "many", many),),
            (
                Column("start", "seconds to start", ".2f"),
                Column("stop", "seconds to stop", ".2f"),
                Column("resident", "resident bytes an actor"),
            ),
            (
                Target(
                    f"seconds to start {many:,} actors",
                    5.0,
                    lambda got: got.median(_OURS, "start"),
                    at_least=False,
                ),
            ),
        ),
    )
