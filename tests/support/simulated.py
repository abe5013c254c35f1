"""A simulated Kafka cluster on the loop of a test that runs on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from spa_dat.harness import VirtualLoop
from spa_dat.harness.kafka_cluster import Cluster, serve, virtual_time
from spa_dat.harness.loop._network import Network

__all__ = ["SERVER", "SimulatedCluster", "world"]

SERVER = "kafka:9092"


class SimulatedCluster:
    """A cluster, how it is reached, and what happened in it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.events: list[tuple[str, str, str, str]] = []
        self.network = loop.network = Network(loop)
        self.cluster = Cluster(loop, on_event=lambda *event: self.events.append(event))
        self.network.listen("kafka", 9092, partial(serve, self.cluster))

    def happened(self, what: str) -> list[tuple[str, str, str]]:
        """Return the events of a kind: whose, about what, and the rest."""
        return [(who, about, detail) for who, kind, about, detail in self.events if kind == what]

    @contextlib.asynccontextmanager
    async def producer(self, **options: Any) -> AsyncIterator[Any]:
        """Start a plain idempotent producer, and stop it at the end."""
        producer = AIOKafkaProducer(
            bootstrap_servers=SERVER, **{"enable_idempotence": True, **options}
        )
        try:
            await producer.start()
            yield producer
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def consumer(self, *topics: str, **options: Any) -> AsyncIterator[Any]:
        """Start a plain consumer that commits nothing by itself, and stop it at the end."""
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=SERVER,
            **{"auto_offset_reset": "earliest", "enable_auto_commit": False, **options},
        )
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()


@contextlib.contextmanager
def world() -> Iterator[SimulatedCluster]:
    """Make a simulated cluster on the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    made = SimulatedCluster(loop)
    with virtual_time(loop, made.cluster.now):
        yield made
    loop.network = None
