"""How long a test takes with FastStream's broker in memory, which calls handlers directly."""

from __future__ import annotations

import asyncio
import statistics
import time

from faststream.kafka import KafkaBroker, TestKafkaBroker

from ._child import Order, arguments, report

_ACTORS = 10
_REPEAT = 5


async def _once(messages: int) -> float:
    began = time.perf_counter()
    broker = KafkaBroker("localhost:9092", logger=None)
    got: list[int] = []

    async def receive(number: int) -> None:
        got.append(number)

    async def forward(payload: int) -> None:
        await broker.publish(payload, "out")

    broker.subscriber("out")(receive)
    for number in range(_ACTORS):
        broker.subscriber(f"in-{number}")(forward)
    async with TestKafkaBroker(broker):
        for number in range(messages):
            await broker.publish(number, f"in-{number % _ACTORS}")
    assert sorted(got) == list(range(messages))
    return time.perf_counter() - began


async def _main() -> None:
    order: Order = arguments()
    first = await _once(order.messages)
    times = [await _once(order.messages) for _ in range(_REPEAT)]
    report("result", ms=statistics.median(times) * 1000, first_ms=first * 1000)


if __name__ == "__main__":
    asyncio.run(_main())
