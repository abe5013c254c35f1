"""Starts an application of many actors or filters, lets it idle, and sends it messages in turn."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time

from spa_dat import DistributedApplication

from ._child import arguments, report

_IDLE_SECONDS = 6.0
# Consumers on Kafka rest after two seconds, and know after two looks at their topics which all are.
_SETTLE_SECONDS = {"kafka": 9.0}
_BURST = 200
_ROUNDS = 3


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def _main() -> None:
    order = arguments()
    app = DistributedApplication(order.url, name=f"benchmark-{os.getpid()}", stop_timeout=60)

    async def handle(payload: bytes) -> None:
        pass

    # In one level, for Kafka: the same names on every bus.
    topics = [f"benchmark-{os.getpid()}-{number}" for number in range(order.messages)]
    if order.what == "filters":
        app.application(topics)(handle)
    else:
        for topic in topics:
            app.application(topic, name=topic)(handle)
    gc.collect()
    memory, start = _resident(), time.monotonic()
    async with app:
        started = time.monotonic() - start
        memory = _resident() - memory
        await asyncio.sleep(_SETTLE_SECONDS.get(order.url.partition(":")[0], 1.0))
        busy = time.process_time()
        await asyncio.sleep(_IDLE_SECONDS)
        idle = time.process_time() - busy
        costs = [await _cost(app, topics, max(4_000, len(topics))) for _ in range(_ROUNDS)]
        stop = time.monotonic()
    report(
        "result",
        start=started,
        stop=time.monotonic() - stop,
        kilobytes=memory / len(topics) / 1_000,
        idle=idle / _IDLE_SECONDS * 100,
        cpu_us=min(costs) * 1e6,
    )


async def _cost(app: DistributedApplication, topics: list[str], count: int) -> float:
    socket = app.socket()
    handled = app.stats["messages.handled"] + count
    busy = time.process_time()
    for number in range(count):
        socket.post(topics[number % len(topics)], b"x")
        if number % _BURST == _BURST - 1:
            await socket.drain()
            await asyncio.sleep(0)
    while app.stats["messages.handled"] < handled:
        await asyncio.sleep(0.001)
    return (time.process_time() - busy) / count


if __name__ == "__main__":
    asyncio.run(_main())
