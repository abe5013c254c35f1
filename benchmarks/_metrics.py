"""What metrics cost an application that receives, on MQTT and on Kafka."""

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

_WITHOUT = "without metrics"
_PROMETHEUS = "for Prometheus"
_OPENTELEMETRY = "for OpenTelemetry"
_WHAT = {_WITHOUT: "admin", _PROMETHEUS: "prometheus", _OPENTELEMETRY: "opentelemetry"}
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
        f"Metrics on MQTT, QoS {qos}",
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
        "Metrics on Kafka",
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
        f"What metrics add, {how}",
        f"CPU time in ns from the connection's call to the end of the handler, for one of 2,000"
        f" messages, {how}. In one process applications with and without metrics take turns"
        f" {rounds} times; the figures are medians, what is added is that of the differences.",
        (Contender("spa_dat", run),),
        (
            Column("without", "without metrics"),
            Column("prometheus", "added for Prometheus"),
            Column("opentelemetry", "added for OpenTelemetry"),
        ),
        tuple(
            Target(
                f"ns that metrics for {title} add, {how} ({why})",
                most,
                partial(_median, key),
                at_least=False,
                form=",.0f",
            )
            for title, key in (("Prometheus", "prometheus"), ("OpenTelemetry", "opentelemetry"))
        ),
    )


def _median(key: str, got: Results) -> float | None:
    return got.median("spa_dat", key)


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of the metrics by themselves, and on MQTT and Kafka."""
    scale = 5 if quick else 1
    rounds = 300 // scale
    return (
        _by_themselves("500 at once", "", rounds, 150, "3 % of a receive on Kafka"),
        _by_themselves("one by one", "singly", rounds, 350, "3 % of one on MQTT, QoS 1"),
        _mqtt(1, 100_000 // scale),
        _mqtt(0, 100_000 // scale),
        _kafka(300_000 // scale),
    )
