"""What applications of 1 to 1,000 actors cost on each bus."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ._broker import Broker
from ._children import Child
from ._cluster import Cluster
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_SECONDS = 180.0
_COLUMNS = (
    Column("start", "seconds to start", ".2f"),
    Column("kilobytes", "KB an actor", ".1f"),
    Column("idle", "CPU % while idle", ".2f"),
    Column("cpu_us", "CPU µs a message", ".1f"),
)
_ABOUT = (
    "Each actor has a topic of its own. Messages of 1 byte are posted to them in turn by the same"
    " process, 200 to a turn of the event loop; the best of three. All CPU time is the"
    " application's alone, sending included."
)


def _suite(
    title: str,
    sizes: Sequence[int],
    url: Callable[[], str],
    targets: Sequence[Target] = (),
    around: AbstractContextManager[object] | None = None,
) -> Suite:
    def contender(actors: int) -> Contender:
        def run() -> dict[str, float]:
            told = {"url": url(), "messages": actors}
            with Child(sys.executable, "scale_spa_dat", told, seconds=_SECONDS) as child:
                return child.expect("result")

        return Contender(_name(actors), run)

    contenders = tuple(contender(actors) for actors in sizes)
    return Suite(title, _ABOUT, contenders, _COLUMNS, targets, around or nullcontext())


def _name(actors: int) -> str:
    return f"{actors:,} actors"


def _by_one(most: int) -> Target:
    return Target(
        f"a message with {_name(most)}, by that with one",
        2.0,
        lambda got: got.median(_name(most), "cpu_us") / got.median(_name(1), "cpu_us"),
        at_least=False,
    )


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of all buses."""
    sizes = (1, 10, 100) if quick else (1, 10, 100, 1_000)
    broker = Broker(("max_inflight_messages 200", "max_queued_messages 0"))
    # 1,000 consumer groups are more than one broker on the same machine bears.
    cluster = Cluster({})
    return (
        _suite("Actors on memory", sizes, lambda: "memory://", (_by_one(sizes[-1]),)),
        _suite("Actors on MQTT", sizes, lambda: f"mqtt://127.0.0.1:{broker.port}", around=broker),
        _suite(
            "Actors on Kafka",
            sizes[:3],
            lambda: cluster.url,
            around=cluster,
        ),
    )
