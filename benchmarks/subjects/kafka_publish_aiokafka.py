"""Publishes with plain aiokafka: one at a time, then with thousands unconfirmed."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaProducer

from ._child import (
    PAYLOAD,
    PUBLISH_TOPIC,
    arguments,
    measure_latency,
    measure_rate,
    on_kafka,
    report,
)

_CHUNK = 5_000


async def _main() -> None:
    order = arguments()
    topic = on_kafka(PUBLISH_TOPIC)
    async with AIOKafkaProducer(
        bootstrap_servers=order.server, acks="all", enable_idempotence=True
    ) as producer:

        async def publish() -> None:
            await producer.send_and_wait(topic, PAYLOAD)

        report("ready")
        latency = await measure_latency(publish, order)
        figures = measure_rate()
        messages = 100 * order.messages
        before: list[asyncio.Future[object]] = []
        # While a chunk waits for its confirmations the next one is sent.
        for _ in range(messages // _CHUNK):
            chunk = [await producer.send(topic, PAYLOAD) for _ in range(_CHUNK)]
            await asyncio.gather(*before)
            before = chunk
        await asyncio.gather(*before)
        report("result", **latency, **figures(messages))


if __name__ == "__main__":
    asyncio.run(_main())
