"""Hands messages to applications with and without admin endpoint and metrics in turns."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

from spa_dat import DistributedApplication
from spa_dat.runtime.application._application import runs_of
from spa_dat.transports import Envelope, Receiver, Tracker

from ._child import PAYLOAD, RECEIVE_TOPIC, arguments, metrics_for, report

_WITHOUT = "nothing"
_KINDS = (_WITHOUT, "admin", "prometheus", "opentelemetry")
_MESSAGES = 2_000
_AT_ONCE = 500


class _Application:
    """One application with one actor."""

    def __init__(self, what: str) -> None:
        name = f"with-{what}"
        self.app = DistributedApplication(f"memory://{name}", name=name, **metrics_for(what))

        @self.app.application(RECEIVE_TOPIC)
        async def receive(payload: bytes) -> None: ...

    @property
    def receiver(self) -> Receiver:
        """What gets its messages from the connection."""
        run = runs_of(self.app).current
        assert run is not None
        (router,) = run._subscriptions.routers_of(run.actors[0])
        return router

    async def take(self, *, singly: bool) -> float:
        """Return the CPU time in ns that it needs for a message."""
        envelope = Envelope(topic=RECEIVE_TOPIC, payload=PAYLOAD, id="1")
        tracker, receiver = Tracker(lambda free: None), self.receiver
        deliveries = [tracker.register(envelope, number) for number in range(_MESSAGES)]
        done = self.app.stats["messages.handled"] + _MESSAGES
        began = time.process_time_ns()
        if singly:
            for delivery in deliveries:
                receiver.deliver(delivery)
        else:
            for first in range(0, _MESSAGES, _AT_ONCE):
                receiver.deliver_all(deliveries[first : first + _AT_ONCE])
        while self.app.stats["messages.handled"] < done:
            await asyncio.sleep(0)
        return (time.process_time_ns() - began) / _MESSAGES


async def _main() -> None:
    order = arguments()
    singly = order.what == "singly"
    taken: dict[str, list[float]] = {what: [] for what in _KINDS}
    async with AsyncExitStack() as stack:
        applications: dict[str, _Application] = {}
        for what in _KINDS:
            applications[what] = _Application(what)
            await stack.enter_async_context(applications[what].app)
        gc.disable()
        for number in range(order.messages):
            turn = number % len(_KINDS)
            for what in (*_KINDS[turn:], *_KINDS[:turn]):
                taken[what].append(await applications[what].take(singly=singly))
    figures: dict[str, Any] = {"without": statistics.median(taken[_WITHOUT])}
    for what in _KINDS[1:]:
        pairs = zip(taken[what], taken[_WITHOUT], strict=True)
        quarters = statistics.quantiles((ours - base for ours, base in pairs), n=4)
        figures[f"{what}_low"], figures[what], figures[f"{what}_high"] = quarters
    report("result", **figures)


if __name__ == "__main__":
    asyncio.run(_main())
