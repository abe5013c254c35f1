"""How long tests on the harness take. One measurement for each process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from spa_dat import DistributedApplication, Socket
from spa_dat.testing import Faults, Harness, explore

from ._child import Order, arguments, report

_ACTORS = 10
_REPEAT = 5
_TIMERS = 100
_HOUR = 3600.0


def _application() -> DistributedApplication:
    return DistributedApplication("mqtt://broker", name="benchmark")


def test(order: Order) -> dict[str, float]:
    """Measure a test of ten actors that share the messages and publish as many."""

    def once() -> None:
        app = _application()
        for number in range(_ACTORS):

            @app.application(f"in/{number}", name=f"actor-{number}")
            async def forward(payload: int, socket: Socket) -> None:
                socket.post("out", payload)

        with Harness(app, profile=_profile(order)) as harness:
            for number in range(order.messages):
                harness.publish(f"in/{number % _ACTORS}", number)
            harness.settle()
            assert sorted(harness.published("out")) == list(range(order.messages))

    # The first one in a process also imports.
    first = _seconds(once)
    return {
        "ms": statistics.median(_seconds(once) for _ in range(_REPEAT)) * 1000,
        "first_ms": first * 1000,
    }


def seeds(order: Order) -> dict[str, float]:
    """Measure a small scenario under many seeds, with faults of every kind."""

    def scenario(seed: int) -> None:
        app = _application()

        @app.application("in")
        async def forward(payload: int, socket: Socket) -> None:
            await asyncio.sleep(0.1)
            await socket.publish("out", payload)

        faults = Faults.all()
        with Harness(app, profile=_profile(order), seed=seed, faults=faults) as harness:
            for number in range(5):
                harness.publish("in", number)
            harness.settle()
            assert set(harness.published("out")) == set(range(5))

    return {"seconds": _seconds(lambda: explore(scenario, seeds=order.messages))}


def hour(order: Order) -> dict[str, float]:
    """Measure an hour of virtual time with timers that fire once a minute."""
    app = _application()
    for number in range(_TIMERS):

        @app.producer(name=f"timer-{number}", every=60)
        async def tick(socket: Socket) -> None:
            """Do nothing."""

    def once() -> None:
        with Harness(app, profile=_profile(order)) as harness:
            harness.advance(_HOUR)

    return {"seconds": _seconds(once)}


def _profile(order: Order) -> Any:
    return order.topic


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


_WHAT = {measure.__name__: measure for measure in (test, seeds, hour)}


if __name__ == "__main__":
    order = arguments()
    report("result", **_WHAT[order.what](order))
