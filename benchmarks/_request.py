"""Request-reply over a Mosquitto with its default settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._broker import Broker
from ._children import Child
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_OURS = "spa_dat"
_AIOMQTT = "aiomqtt, by hand"
_FASTSTREAM = "FastStream"
_AT_ONCE = 100
_SECONDS = 60.0


def _contender(name: str, interpreter: str, module: str, requests: int) -> Contender:
    order = {"messages": requests, "warm_up": 20, "at_once": _AT_ONCE}

    def run() -> dict[str, float]:
        with Broker() as broker:
            responding = order | {
                "port": broker.port,
                "url": f"mqtt://127.0.0.1:{broker.port}",
                "what": "responder",
            }
            requesting = responding | {"what": "requester"}
            with Child(interpreter, module, responding, seconds=_SECONDS) as responder:
                responder.expect("ready")
                with Child(interpreter, module, requesting, seconds=_SECONDS) as requester:
                    requester.expect("ready")
                    return requester.expect("result")

    return Contender(name, run)


def suites(*, quick: bool, peers: str) -> Sequence[Suite]:
    """Return the suites of requests, one at a time and many; ``peers`` is the others' Python."""
    requests = 100 if quick else 1_000
    return (
        Suite(
            "MQTT request-reply, QoS 1",
            f"Requests of 100 bytes and replies of the same size, at QoS 1 both: up to {requests:,}"
            f" one at a time (5 s at the most), then {5 * requests:,} with {_AT_ONCE} at once."
            " Requester and responder are processes of their own. Mosquitto with its defaults,"
            " which leave Nagle's algorithm on: a client that does not acknowledge TCP segments at"
            " once waits some 40 ms for each round trip, and that alone is what the ratio one at a"
            " time shows. FastStream's responder runs 100 handlers at once; ours is one actor.",
            (
                _contender(_OURS, sys.executable, "request_spa_dat", requests),
                _contender(_AIOMQTT, peers, "request_aiomqtt", requests),
                _contender(_FASTSTREAM, peers, "request_faststream", requests),
            ),
            (
                Column("latency_us", "median µs, one at a time", ratio=True),
                Column("slow_us", "99th percentile µs"),
                Column("rate", f"requests/s, {_AT_ONCE} at once", ratio=True),
                Column("cpu_us", "requester's CPU µs a request", ".1f"),
            ),
            (
                Target(
                    "median ms of a request",
                    0.6,
                    lambda got: _thousandth(got.median(_OURS, "latency_us")),
                    at_least=False,
                ),
                Target(
                    f"rate with {_AT_ONCE} at once, by aiomqtt's by hand",
                    0.7,
                    lambda got: got.ratio(_OURS, _AIOMQTT, "rate"),
                ),
                Target(
                    f"rate with {_AT_ONCE} at once, by FastStream's",
                    2.0,
                    lambda got: got.ratio(_OURS, _FASTSTREAM, "rate"),
                ),
            ),
        ),
    )


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000
