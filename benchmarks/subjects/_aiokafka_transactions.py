"""The loop of plain aiokafka that reads a topic and commits in a transaction each 100 ms."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ._child import Meter, arguments, on_kafka, report

__all__ = ["PartitionProducer", "PartitionWork", "run"]

_INTERVAL = 0.1


class PartitionProducer:
    """The transactional producer of one partition.

    Args:
        server: the cluster.
        group: the consumer group, whose offset is committed.
        topic: the topic that is read.
        partition: its partition.
    """

    def __init__(self, server: str, group: str, topic: str, partition: int) -> None:
        self._group = group
        self._place = TopicPartition(topic, partition)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=server, transactional_id=f"{group}.{partition}"
        )

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._producer.stop()

    async def commit(
        self, offset: int, records: Sequence[tuple[str, Iterable[tuple[bytes | None, bytes]]]]
    ) -> None:
        """Publish keys and values to topics, and commit the offset, in one transaction."""
        await self._producer.begin_transaction()
        sent = [one for topic, values in records for one in await self._send(topic, values)]
        await asyncio.gather(*sent)
        await self._producer.send_offsets_to_transaction({self._place: offset}, self._group)
        await self._producer.commit_transaction()

    async def _send(self, topic: str, records: Iterable[tuple[bytes | None, bytes]]) -> list[Any]:
        producer, partition, sent = self._producer, self._place.partition, []
        batch = producer.create_batch()
        for key, value in records:
            if batch.append(key=key, value=value, timestamp=None) is None:
                sent.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        sent.append(await producer.send_batch(batch, topic, partition=partition))
        return sent


class PartitionWork(Protocol):
    """What is done with the records of one partition."""

    def add(self, records: Sequence[Any]) -> None:
        """Take records."""

    async def commit(self) -> int:
        """Publish what comes of them; return how many there were."""


async def run(topic: str, work: Callable[[PartitionProducer], PartitionWork]) -> None:
    """Work until the messages that are ordered have been counted, and report.

    Args:
        topic: the name of what is read.
        work: makes what is done with a partition, with its producer.
    """
    order = arguments()
    meter = Meter(order)
    working = asyncio.create_task(_work(order.server, on_kafka(topic), work, meter))
    report("ready")
    report("result", **await meter.finish())
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def _work(
    server: str, topic: str, work: Callable[[PartitionProducer], PartitionWork], meter: Meter
) -> None:
    group = f"benchmark-{os.getpid()}"
    loop = asyncio.get_running_loop()
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=server,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    ) as consumer:
        while not consumer.assignment():
            await asyncio.sleep(0.01)
        producers = {
            place.partition: PartitionProducer(server, group, topic, place.partition)
            for place in consumer.assignment()
        }
        works = {partition: work(producer) for partition, producer in producers.items()}
        await asyncio.gather(*(producer.start() for producer in producers.values()))
        committed = loop.time()
        try:
            while True:
                left = committed + _INTERVAL - loop.time()
                fetched = await consumer.getmany(timeout_ms=max(int(left * 1000), 0))
                for place, records in fetched.items():
                    works[place.partition].add(records)
                if loop.time() >= committed + _INTERVAL:
                    for count in await asyncio.gather(*(one.commit() for one in works.values())):
                        for _ in range(count):
                            meter.count()
                    committed = loop.time()
        finally:
            await asyncio.gather(*(producer.stop() for producer in producers.values()))
