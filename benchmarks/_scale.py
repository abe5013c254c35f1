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

_SECONDS = 300.0
_COLUMNS = (
    Column("start", "seconds to start", ".2f"),
    Column("stop", "seconds to stop", ".2f"),
    Column("kilobytes", "KB each", ".1f"),
    Column("idle", "CPU % while idle", ".2f"),
    Column("cpu_us", "CPU µs a message", ".1f"),
)
_ABOUT = (
    "{each} Messages of 1 byte are posted to them in turn by the same process, 200 to a turn of the"
    " event loop; the best of three. All CPU time is the application's alone, sending included."
)
_ACTORS = _ABOUT.format(each="Each actor has a topic of its own.")
_FILTERS = _ABOUT.format(each="One actor has all the filters, each of which one topic matches.")


def _suite(
    title: str,
    what: str,
    sizes: Sequence[int],
    url: Callable[[], str],
    targets: Sequence[Target] = (),
    around: AbstractContextManager[object] | None = None,
) -> Suite:
    def contender(count: int) -> Contender:
        def run() -> dict[str, float]:
            told = {"what": what, "url": url(), "messages": count}
            with Child(sys.executable, "scale_spa_dat", told, seconds=_SECONDS) as child:
                return child.expect("result")

        return Contender(_name(count, what), run)

    contenders = tuple(contender(count) for count in sizes)
    about = _ACTORS if what == "actors" else _FILTERS
    return Suite(title, about, contenders, _COLUMNS, targets, around or nullcontext())


def _name(count: int, what: str) -> str:
    return f"{count:,} {what if count > 1 else what.removesuffix('s')}"


def _by_one(what: str, most: int) -> Target:
    many, one = _name(most, what), _name(1, what)
    return Target(
        f"CPU of a message with {many}, by that with one",
        2.0,
        lambda got: got.ratio(many, one, "cpu_us"),
        at_least=False,
    )


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of many actors on each bus, and of many filters."""
    sizes = (1, 10, 100) if quick else (1, 10, 100, 1_000)
    most_actors, most_filters = (1_000, 10_000) if quick else (10_000, 100_000)
    broker = Broker(("max_inflight_messages 200", "max_queued_messages 0"))
    # 1,000 consumer groups are more than one broker on the same machine bears.
    cluster = Cluster({})
    return (
        _suite(
            "Scale: actors on memory",
            "actors",
            (*sizes, most_actors),
            lambda: "memory://",
            (_by_one("actors", most_actors),),
        ),
        _suite(
            "Scale: filters on memory",
            "filters",
            (1, 1_000, most_filters),
            lambda: "memory://",
            (_by_one("filters", most_filters),),
        ),
        _suite(
            "Scale: actors on MQTT",
            "actors",
            sizes,
            lambda: f"mqtt://127.0.0.1:{broker.port}",
            around=broker,
        ),
        _suite(
            "Scale: actors on Kafka",
            "actors",
            sizes[:3],
            lambda: cluster.url,
            (
                Target(
                    "CPU % of 100 idle actors on Kafka",
                    3.0,
                    lambda got: got.median(_name(100, "actors"), "idle"),
                    at_least=False,
                ),
            ),
            around=cluster,
        ),
    )
