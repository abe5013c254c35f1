"""Keyed messages on memory: one actor with and without ``per=``, and the bytes of an idle key."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from typing import Any

from spa_dat import DistributedApplication
from spa_dat.runtime.hosting._keyed_mailbox import KeyedMailbox
from spa_dat.runtime.routing._routed_deliveries import Route
from spa_dat.transports import Delivery, Envelope, TopicFilter

from ._child import Order, arguments, report

_KEYS = 100_000
_BURST = 200
_SEED = 7
_TIMEOUT = 120.0


@dataclass
class Truck:
    """The state of a key."""

    count: int = 0


async def receive(order: Order, **options: Any) -> dict[str, float]:
    """Measure messages with random keys that are posted and handled by the same process."""
    app = DistributedApplication("memory://")
    done = asyncio.Event()
    handled = 0
    counts: Counter[str] = Counter()
    dice = random.Random(_SEED)
    topics = [f"fleet/{dice.randrange(_KEYS)}/position" for _ in range(order.messages)]

    def note() -> None:
        nonlocal handled
        handled += 1
        if handled == order.messages:
            done.set()

    if "per" in options:

        @app.application("fleet/{truck}/position", state=Truck, **options)
        async def keyed(payload: bytes, truck: str, state: Truck) -> None:
            state.count += 1
            note()

    else:

        @app.application("fleet/{truck}/position", state=lambda: counts, **options)
        async def plain(payload: bytes, truck: str, state: Counter[str]) -> None:
            state[truck] += 1
            note()

    async with app:
        socket = app.socket()
        gc.collect()
        began = time.process_time()
        for number, topic in enumerate(topics):
            socket.post(topic, b"x")
            # Not more than both can hold.
            while number - handled > _BURST:
                await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), _TIMEOUT)
        took = time.process_time() - began
    return {"rate": order.messages / took, "cpu_us": took / order.messages * 1e6}


def idle(order: Order) -> dict[str, float]:
    """Measure what Python allocates for a key at rest, its name and a small state included."""
    filter_ = TopicFilter.parse("fleet/{truck}/position")
    route: Any = Route(None, None, 0, filter_, per="truck")  # type: ignore[arg-type]
    mailbox = KeyedMailbox(1_000, lambda one: str(route.key_of(one.envelope)), lambda: None)
    gc.collect()
    tracemalloc.start()
    for number in range(order.messages):
        envelope = Envelope(topic=f"fleet/{number}/position", payload=b"")
        mailbox.force(Delivery(envelope, route=route))
        taken = mailbox.take()
        assert taken is not None
        taken[0].keep(Truck())
        mailbox.done(taken[0])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"bytes": size / order.messages}


def _main() -> None:
    order = arguments()
    if order.what == "idle":
        report("result", **idle(order))
    else:
        options: dict[str, Any] = {"per": "truck"} if order.what == "per" else {}
        report("result", **asyncio.run(receive(order, **options)))


if __name__ == "__main__":
    _main()
