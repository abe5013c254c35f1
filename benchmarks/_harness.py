"""How long tests on the harness take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._children import Child
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_MQTT, _KAFKA = "spa_dat, as MQTT", "spa_dat, as Kafka"
_FASTSTREAM = "FastStream, TestKafkaBroker"
_SECONDS = 300.0


def _contender(
    name: str,
    what: str,
    messages: int,
    *,
    python: str = sys.executable,
    subject: str = "harness_spa_dat",
) -> Contender:
    profile = "kafka" if name == _KAFKA else "mqtt"

    def run() -> dict[str, float]:
        order = {"what": what, "messages": messages, "topic": profile}
        with Child(python, subject, order, seconds=_SECONDS) as child:
            return child.expect("result")

    return Contender(name, run)


def suites(*, quick: bool, peers: str) -> Sequence[Suite]:
    """Return the suites: one test, many seeds, a long time."""
    messages, seeds = 1_000, 100 if quick else 1_000
    seconds = (Column("seconds", "seconds", ".2f"),)

    def both(what: str, count: int) -> tuple[Contender, ...]:
        return tuple(_contender(name, what, count) for name in (_MQTT, _KAFKA))

    def target(text: str, wanted: float, key: str) -> Target:
        return Target(text, wanted, lambda got: got.median(_MQTT, key), at_least=False)

    peer = _contender(_FASTSTREAM, "test", messages, python=peers, subject="harness_faststream")
    return (
        Suite(
            "Harness: one test",
            f"An application of 10 actors on simulated buses gets {messages:,} messages and"
            " publishes as many, start and stop included; the median of 5 in one process, after a"
            " first one that also imports. FastStream calls handlers in place: nothing is"
            " acknowledged, kept or sent again.",
            (*both("test", messages), peer),
            (
                Column("ms", "ms", ",.0f", ratio=True),
                Column("first_ms", "ms, the first one", ",.0f"),
            ),
            (target("ms of a test with 10 actors and 1,000 messages", 100.0, "ms"),),
        ),
        Suite(
            "Harness: seeds",
            f"{seeds:,} seeds of a scenario with one actor, five messages and faults of every kind,"
            " crashes included, on one core.",
            both("seeds", seeds),
            seconds,
            (target(f"seconds for {seeds:,} seeds", 30.0, "seconds"),),
        ),
        Suite(
            "Harness: time",
            "An hour of virtual time with 100 timers that fire once a minute.",
            both("hour", 0),
            seconds,
            (target("seconds for an hour with 100 timers", 1.0, "seconds"),),
        ),
    )
