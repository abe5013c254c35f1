"""A Kafka of our own on the loopback interface, with topics that are filled beforehand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import DefaultPartitioner

from spa_dat.testing import Kafka

from ._children import MeasurementFailed

__all__ = ["PARTITIONS", "Cluster", "cluster_version"]

PARTITIONS = 4
# By default the broker holds each commit back for 5 ms to write several at once, and who commits
# after each message would do little else than wait for that.
_PROPERTIES = {"group.coordinator.append.linger.ms": "0"}


def cluster_version() -> str:
    """Say which broker is used, or what is missing for one."""
    return Kafka.missing() or f"Kafka {Kafka.version()}, one node"


class Cluster:
    """One broker for all rounds of a suite, as a context manager.

    Args:
        filled: topics that have records from the start: the payload of each and how many. The
            records have no headers.
        keys: how many keys the records of each of these topics have in turn; 0 for none.

    Raises:
        FileNotFoundError: on entering; there is no Kafka, or no Java for it.
        MeasurementFailed: on entering; it does not start.
    """

    def __init__(
        self, filled: Mapping[str, tuple[bytes, int]] | None = None, *, keys: int = 0
    ) -> None:
        self._filled = filled or {}
        self._keys = keys
        self._kafka: Kafka | None = None

    @property
    def server(self) -> str:
        """Its ``host:port``."""
        assert self._kafka is not None
        return self._kafka.server

    @property
    def url(self) -> str:
        """Its address, for an application that may create all topics."""
        return f"kafka://{self.server}?create_topics=all&partitions={PARTITIONS}"

    def create(self, topics: Mapping[str, int]) -> None:
        """Create topics, given by name with their numbers of partitions."""
        asyncio.run(_create(self.server, topics))

    def __enter__(self) -> Self:
        missing = Kafka.missing()
        if missing is not None:
            raise FileNotFoundError(missing)
        self._kafka = Kafka(properties=_PROPERTIES)
        try:
            self._kafka.start()
        except RuntimeError as error:
            self._kafka.close()
            raise MeasurementFailed(str(error)) from error
        try:
            if self._filled:
                self.create(dict.fromkeys(self._filled, PARTITIONS))
            for topic, (payload, records) in self._filled.items():
                asyncio.run(_fill(self.server, topic, payload, records, self._keys))
        except BaseException:
            self._kafka.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._kafka is not None
        self._kafka.close()


async def _create(server: str, topics: Mapping[str, int]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(name, partitions, 1) for name, partitions in topics.items()]
        )
    finally:
        await admin.close()


async def _fill(server: str, topic: str, payload: bytes, records: int, keys: int) -> None:
    """Fill each partition with so many records, in batches like those of producers by default."""
    partitions = list(range(PARTITIONS))
    keyed: dict[int, list[bytes]] = {partition: [] for partition in partitions}
    for name in (b"key-%d" % number for number in range(keys)):
        keyed[DefaultPartitioner()(name, partitions, partitions)].append(name)
    async with AIOKafkaProducer(bootstrap_servers=server, enable_idempotence=True) as producer:
        for partition in partitions:
            turn: Iterator[bytes | None] = itertools.cycle(keyed[partition] or (None,))
            left = len(range(partition, records, PARTITIONS))
            while left:
                batch = producer.create_batch()
                key = next(turn)
                while left and batch.append(key=key, value=payload, timestamp=None):
                    key = next(turn)
                    left -= 1
                await (await producer.send_batch(batch, topic, partition=partition))
