"""Counts records by key exactly once with plain aiokafka, in a transaction each 100 ms."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ._child import COUNTS_TOPIC, KEYED_TOPIC, Meter, Order, arguments, on_kafka, report

_INTERVAL = 0.1


class _Unit:
    """One partition, its counts, and its transactional producer."""

    def __init__(self, server: str, group: str, changelog: str, partition: int) -> None:
        self._group = group
        self._changelog = changelog
        self._partition = partition
        self._counts: Counter[bytes] = Counter()
        self._outputs: list[tuple[bytes, bytes]] = []
        self._offset = -1
        self.producer = AIOKafkaProducer(
            bootstrap_servers=server, transactional_id=f"{group}.{partition}"
        )

    def add(self, records: Sequence[Any]) -> None:
        """Count records."""
        for record in records:
            self._counts[record.key] += 1
            self._outputs.append((record.key, record.value))
        self._offset = records[-1].offset + 1

    async def commit(self) -> int:
        """Publish what was counted, and the counts that have changed; return how much it was."""
        outputs, self._outputs = self._outputs, []
        if not outputs:
            return 0
        counts = [(key, b'{"number":%d}' % self._counts[key]) for key in dict(outputs)]
        producer = self.producer
        await producer.begin_transaction()
        sent = [
            *await self._send(on_kafka(COUNTS_TOPIC), outputs),
            *await self._send(self._changelog, counts),
        ]
        await asyncio.gather(*sent)
        place = TopicPartition(on_kafka(KEYED_TOPIC), self._partition)
        await producer.send_offsets_to_transaction({place: self._offset}, self._group)
        await producer.commit_transaction()
        return len(outputs)

    async def _send(self, topic: str, records: Iterable[tuple[bytes, bytes]]) -> list[Any]:
        producer, sent = self.producer, []
        batch = producer.create_batch()
        for key, value in records:
            if batch.append(key=key, value=value, timestamp=None) is None:
                sent.append(await producer.send_batch(batch, topic, partition=self._partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        sent.append(await producer.send_batch(batch, topic, partition=self._partition))
        return sent


async def _count(order: Order, meter: Meter) -> None:
    group = f"benchmark-{os.getpid()}"
    loop = asyncio.get_running_loop()
    async with AIOKafkaConsumer(
        on_kafka(KEYED_TOPIC),
        bootstrap_servers=order.server,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    ) as consumer:
        while not consumer.assignment():
            await asyncio.sleep(0.01)
        units = {
            place.partition: _Unit(order.server, group, order.topic, place.partition)
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
    counting = asyncio.create_task(_count(order, meter))
    report("ready")
    report("result", **await meter.finish())
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_main())
