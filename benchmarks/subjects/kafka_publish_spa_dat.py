"""Publishes from a producer actor: one at a time, then with posts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from spa_dat import DistributedApplication, Socket
from spa_dat.errors import OutboxFull

from ._child import (
    PAYLOAD,
    PUBLISH_TOPIC,
    arguments,
    measure_latency,
    measure_rate,
    report,
)

_CHUNK = 500


async def _main() -> None:
    order = arguments()
    app = DistributedApplication(order.url, name=f"benchmark-{os.getpid()}")
    messages = 100 * order.messages
    latency: dict[str, float] = {}
    figures: Callable[[int], dict[str, float]] = measure_rate()

    @app.producer()
    async def publish(socket: Socket) -> None:
        nonlocal latency, figures
        latency = await measure_latency(lambda: socket.publish(PUBLISH_TOPIC, PAYLOAD), order)
        figures = measure_rate()
        posted = 0
        while posted < messages:
            try:
                for _ in range(min(_CHUNK, messages - posted)):
                    socket.post(PUBLISH_TOPIC, PAYLOAD)
                    posted += 1
                await asyncio.sleep(0)
            except OutboxFull:
                await asyncio.sleep(0.001)

    async with app:
        report("ready")
        # It ends when all is confirmed.
        await app.wait()
        report("result", **latency, **figures(messages))


if __name__ == "__main__":
    asyncio.run(_main())
