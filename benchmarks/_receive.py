"""Receiving from a real Mosquitto."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._broker import Broker
from ._children import Child
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_SETTINGS = ("max_inflight_messages 200", "max_queued_messages 0")

_OURS = "spa_dat application"
_QUEUE = "aiomqtt, own queue class"
_ITERATE = "aiomqtt, async for"
_FASTSTREAM = "FastStream"
_WARM_UP = 2_000
_SECONDS = 90.0


def _contender(
    name: str, interpreter: str, module: str, what: str, qos: int, messages: int
) -> Contender:
    order = {"qos": qos, "messages": messages, "warm_up": _WARM_UP, "what": what}

    def run() -> dict[str, float]:
        with Broker(_SETTINGS) as broker:
            told = order | {"port": broker.port, "url": f"mqtt://127.0.0.1:{broker.port}"}
            with Child(interpreter, module, told, seconds=_SECONDS) as receiver:
                receiver.expect("ready")
                idle = broker.cpu_seconds()
                with Child(sys.executable, "publisher", told, seconds=_SECONDS):
                    figures = receiver.expect("result")
                busy = broker.cpu_seconds() - idle
                return figures | {"broker_us": busy / (messages + _WARM_UP) * 1e6}

    return Contender(name, run)


def _suite(qos: int, messages: int, peers: str, targets: Sequence[Target]) -> Suite:
    return Suite(
        f"MQTT receive, QoS {qos}",
        f"{messages:,} messages of 100 bytes after {_WARM_UP:,} for warming up, from a publisher"
        " that sends packets encoded beforehand at full speed while the receiver works. Mosquitto"
        f" with {' and '.join(_SETTINGS)}. CPU time is the receiving process's alone. The broker is"
        " the limit where its own CPU time a message, times the rate, is near one second.",
        (
            _contender(_OURS, sys.executable, "receive_spa_dat", "", qos, messages),
            _contender(_QUEUE, peers, "receive_aiomqtt", "queue", qos, messages),
            _contender(_ITERATE, peers, "receive_aiomqtt", "iterate", qos, messages),
            _contender(_FASTSTREAM, peers, "receive_faststream", "", qos, messages),
        ),
        (
            Column("rate", "messages/s", ratio=True),
            Column("cpu_us", "CPU µs a message", ".1f", ratio=True),
            Column("broker_us", "broker's CPU µs a message", ".1f"),
            Column("lost", "not received"),
        ),
        targets,
    )


def suites(*, quick: bool, peers: str) -> Sequence[Suite]:
    """Return the suites of QoS 1 and QoS 0; ``peers`` is the interpreter of the others."""
    messages = 10_000 if quick else 50_000
    return (
        _suite(
            1,
            messages,
            peers,
            (
                Target(
                    "QoS 1 rate, by FastStream's",
                    2.0,
                    lambda got: got.ratio(_OURS, _FASTSTREAM, "rate"),
                ),
                Target(
                    "QoS 1 CPU a message, by plain aiomqtt's with its own queue class",
                    1.0,
                    lambda got: got.ratio(_OURS, _QUEUE, "cpu_us"),
                    at_least=False,
                ),
            ),
        ),
        _suite(
            0,
            messages,
            peers,
            (
                Target(
                    "QoS 0 rate, by FastStream's",
                    3.5,
                    lambda got: got.ratio(_OURS, _FASTSTREAM, "rate"),
                ),
            ),
        ),
    )
