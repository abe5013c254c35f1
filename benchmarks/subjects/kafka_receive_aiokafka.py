"""Receives with plain aiokafka, in batches that are committed before the next one is taken."""

from __future__ import annotations

import asyncio
import os

from aiokafka import AIOKafkaConsumer

from ._child import RECEIVE_TOPIC, Meter, Order, arguments, on_kafka, report


async def _receive(order: Order, meter: Meter) -> None:
    async with AIOKafkaConsumer(
        on_kafka(RECEIVE_TOPIC),
        bootstrap_servers=order.server,
        group_id=f"benchmark-{os.getpid()}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    ) as consumer:
        while True:
            batches = await consumer.getmany(timeout_ms=1_000)
            for records in batches.values():
                for _ in records:
                    meter.count()
            if batches:
                await consumer.commit(
                    {partition: records[-1].offset + 1 for partition, records in batches.items()}
                )


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    receiving = asyncio.create_task(_receive(order, meter))
    report("ready")
    report("result", **await meter.finish())
    receiving.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
