"""What an admin endpoint and metrics cost an application that receives, on MQTT and Kafka."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from ._broker import Broker
from ._children import Child
from ._cluster import PARTITIONS, Cluster
from ._measure import Column, Contender, Results, Suite, Target
from .subjects._child import PAYLOAD, RECEIVE_TOPIC, on_kafka

__all__ = ["suites"]

_WHAT = {
    "without both": "nothing",
    "admin endpoint": "admin",
    "both, for Prometheus": "prometheus",
    "both, for OpenTelemetry": "opentelemetry",
}
_ADDED = {what: title for title, what in _WHAT.items() if what != "nothing"}
_SETTINGS = ("max_inflight_messages 200", "max_queued_messages 0")
_SECONDS = 120.0
_COLUMNS = (
    Column("rate", "messages/s", ratio=True),
    Column("cpu_us", "CPU µs a message", ".2f", ratio=True),
    Column("lost", "not received"),
)

Run = Callable[[], dict[str, float]]


def _mqtt(qos: int, messages: int) -> Suite:
    def run_of(what: str) -> Run:
        order = {"qos": qos, "messages": messages, "warm_up": 5_000, "what": what}

        def run() -> dict[str, float]:
            with Broker(_SETTINGS) as broker:
                told = order | {"port": broker.port, "url": f"mqtt://127.0.0.1:{broker.port}"}
                with Child(sys.executable, "receive_spa_dat", told, seconds=_SECONDS) as receiver:
                    receiver.expect("ready")
                    with Child(sys.executable, "publisher", told, seconds=_SECONDS):
                        return receiver.expect("result")

        return run

    return Suite(
        f"Admin endpoint and metrics on MQTT, QoS {qos}",
        f"{messages:,} messages of 100 bytes after 5,000 for warming up, received by one actor. For"
        " OpenTelemetry its SDK has a reader in memory. CPU time is the receiving process's alone.",
        [Contender(name, run_of(what)) for name, what in _WHAT.items()],
        _COLUMNS,
    )


def _kafka(records: int) -> Suite:
    cluster = Cluster({on_kafka(RECEIVE_TOPIC): (PAYLOAD, records + 5_000)})

    def run_of(what: str) -> Run:
        order = {"qos": 1, "messages": records, "warm_up": 5_000, "what": what}

        def run() -> dict[str, float]:
            told = order | {"server": cluster.server, "url": cluster.url}
            with Child(sys.executable, "receive_spa_dat", told, seconds=_SECONDS) as receiver:
                receiver.expect("ready")
                return receiver.expect("result")

        return run

    return Suite(
        "Admin endpoint and metrics on Kafka",
        f"{records:,} records of 100 bytes in {PARTITIONS} partitions, after 5,000 for warming up,"
        " received by one actor from the start. CPU time is the receiving process's alone.",
        [Contender(name, run_of(what)) for name, what in _WHAT.items()],
        _COLUMNS,
        around=cluster,
    )


def _by_themselves(how: str, what: str, rounds: int, most: float, why: str) -> Suite:
    order = {"messages": rounds, "what": what}

    def run() -> dict[str, float]:
        with Child(sys.executable, "metrics_spa_dat", order, seconds=_SECONDS) as child:
            return child.expect("result")

    return Suite(
        f"What an admin endpoint and metrics add, {how}",
        f"CPU time in ns from the connection's call to the end of the handler, for one of 2,000"
        f" messages, {how}. In one process applications with and without them take turns"
        f" {rounds} times; what is added is the median of the differences, with their quartiles.",
        (Contender("spa_dat", run),),
        (
            Column("without", "without both"),
            *(
                Column(f"{key}{part}", f"{title}{text}")
                for key, title in _ADDED.items()
                for part, text in (("_low", ", low"), ("", ""), ("_high", ", high"))
            ),
        ),
        tuple(
            Target(
                f"ns that {title} adds, {how} ({why})",
                most,
                partial(_median, key),
                at_least=False,
                form=",.0f",
            )
            for key, title in _ADDED.items()
        ),
    )


def _median(key: str, got: Results) -> float | None:
    return got.median("spa_dat", key)


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of both by themselves, and on MQTT and Kafka."""
    scale = 5 if quick else 1
    rounds = 300 // scale
    return (
        _by_themselves("500 at once", "", rounds, 150, "3 % of a receive on Kafka"),
        _by_themselves("one by one", "singly", rounds, 195, "3 % of one on MQTT, QoS 0"),
        _mqtt(1, 100_000 // scale),
        _mqtt(0, 100_000 // scale),
        _kafka(300_000 // scale),
    )
