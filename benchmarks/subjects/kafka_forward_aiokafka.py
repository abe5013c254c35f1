"""Forwards records exactly once with plain aiokafka, in a transaction each 100 ms."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ._child import COPIES_TOPIC, RECEIVE_TOPIC, Meter, Order, arguments, on_kafka, report

_INTERVAL = 0.1


class _Unit:
    """One partition, and its transactional producer."""

    def __init__(self, server: str, group: str, partition: int) -> None:
        self._group = group
        self._partition = partition
        self.values: list[bytes] = []
        self.offset = -1
        self.producer = AIOKafkaProducer(
            bootstrap_servers=server, transactional_id=f"{group}.{partition}"
        )

    def add(self, records: Sequence[Any]) -> None:
        """Take records that are to be forwarded."""
        self.values += [record.value for record in records]
        self.offset = records[-1].offset + 1

    async def commit(self) -> int:
        """Forward them; return how many there were."""
        values, self.values = self.values, []
        if not values:
            return 0
        producer = self.producer
        await producer.begin_transaction()
        sent = []
        batch = producer.create_batch()
        for value in values:
            if batch.append(key=None, value=value, timestamp=None) is None:
                sent.append(await self._send(batch))
                batch = producer.create_batch()
                batch.append(key=None, value=value, timestamp=None)
        sent.append(await self._send(batch))
        await asyncio.gather(*sent)
        place = TopicPartition(on_kafka(RECEIVE_TOPIC), self._partition)
        await producer.send_offsets_to_transaction({place: self.offset}, self._group)
        await producer.commit_transaction()
        return len(values)

    async def _send(self, batch: Any) -> Any:
        return await self.producer.send_batch(
            batch, on_kafka(COPIES_TOPIC), partition=self._partition
        )


async def _forward(order: Order, meter: Meter) -> None:
    group = f"benchmark-{os.getpid()}"
    loop = asyncio.get_running_loop()
    async with AIOKafkaConsumer(
        on_kafka(RECEIVE_TOPIC),
        bootstrap_servers=order.server,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    ) as consumer:
        while not consumer.assignment():
            await asyncio.sleep(0.01)
        units = {
            place.partition: _Unit(order.server, group, place.partition)
            for place in consumer.assignment()
        }
        await asyncio.gather(*(unit.producer.start() for unit in units.values()))
        committed = loop.time()
        try:
            while True:
                left = committed + _INTERVAL - loop.time()
                fetched = await consumer.getmany(timeout_ms=max(int(left * 1000), 0))
                for place, records in fetched.items():
                    units[place.partition].add(records)
                if loop.time() >= committed + _INTERVAL:
                    for count in await asyncio.gather(*(one.commit() for one in units.values())):
                        for _ in range(count):
                            meter.count()
                    committed = loop.time()
        finally:
            await asyncio.gather(*(unit.producer.stop() for unit in units.values()))


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    forwarding = asyncio.create_task(_forward(order, meter))
    report("ready")
    report("result", **await meter.finish())
    forwarding.cancel()
    await asyncio.gather(forwarding, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_main())
