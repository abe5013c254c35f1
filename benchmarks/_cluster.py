"""A Kafka of our own on the loopback interface, with topics that are filled beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

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
            records have neither keys nor headers.

    Raises:
        FileNotFoundError: on entering; there is no Kafka, or no Java for it.
        MeasurementFailed: on entering; it does not start.
    """

    def __init__(self, filled: Mapping[str, tuple[bytes, int]] | None = None) -> None:
        self._filled = filled or {}
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
                asyncio.run(_fill(self.server, topic, payload, records))
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


async def _fill(server: str, topic: str, payload: bytes, records: int) -> None:
    """Fill each partition with so many records, in batches like those of producers by default."""
    async with AIOKafkaProducer(bootstrap_servers=server, enable_idempotence=True) as producer:
        for partition in range(PARTITIONS):
            left = len(range(partition, records, PARTITIONS))
            while left:
                batch = producer.create_batch()
                while left and batch.append(key=None, value=payload, timestamp=None):
                    left -= 1
                await (await producer.send_batch(batch, topic, partition=partition))
