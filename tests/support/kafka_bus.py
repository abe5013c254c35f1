"""Buses on a Kafka broker, closed at the end of a test, and plain clients to look at it with."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from spa_dat.transports import Bus, Envelope, Identity, KafkaConfig, SocketProvider, Surroundings
from spa_dat.transports.kafka import KafkaProvider

from .waiting import eventually

__all__ = [
    "BusClient",
    "admin",
    "bus_client",
    "create",
    "new_prefix",
    "publish_at",
    "read",
    "settings",
]

_QUICK = {
    "backoff_min": 0.02,
    "backoff_max": 0.2,
    "start_timeout": 5.0,
    "connect_timeout": 2.0,
    "create_topics": "all",
}


def new_prefix() -> str:
    """Return a prefix that no other test uses."""
    return f"{uuid.uuid4().hex[:12]}-"


class BusClient:
    """One application on a broker, without consumers."""

    def __init__(self, config: KafkaConfig, identity: Identity) -> None:
        self.config = config
        self.stats: Counter[str] = Counter()
        self.fatal: list[BaseException] = []
        self.replies: list[tuple[str, Envelope]] = []
        self.provider: SocketProvider = KafkaProvider(config)
        surroundings = Surroundings(identity, stats=self.stats, fatal=self.fatal.append)
        self.bus: Bus = self.provider.open(surroundings)

    async def start(self) -> None:
        """Connect the bus."""
        await self.bus.start(lambda correlation, reply: self.replies.append((correlation, reply)))

    async def publish(self, topic: str, payload: bytes = b"x", **fields: Any) -> None:
        """Publish and wait for the confirmation."""
        await self.bus.publish(Envelope(topic=topic, payload=payload, **fields), timeout=20)


@contextlib.asynccontextmanager
async def bus_client(
    server: str,
    *,
    name: str = "app",
    instance: str = "0",
    ephemeral: bool = False,
    start: bool = True,
    **options: Any,
) -> AsyncIterator[BusClient]:
    """Make an application at ``host:port``; with ``start`` its bus is connected. Without ``prefix``
    it gets one of its own."""
    config = KafkaConfig(server, **{"prefix": new_prefix(), **_QUICK, **options})
    one = BusClient(config, Identity(name, instance, ephemeral))
    try:
        if start:
            await one.start()
        yield one
    finally:
        await one.bus.close()


@contextlib.asynccontextmanager
async def admin(server: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Start a plain administration client, and close it at the end."""
    client = AIOKafkaAdminClient(bootstrap_servers=server)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def create(server: str, name: str, partitions: int = 1, **configs: str) -> None:
    """Create a topic; ``max_message_bytes`` stands for ``max.message.bytes``, and so on.

    Returns when the broker knows of it, which is some time after it has been created.
    """
    texts = {key.replace("_", "."): value for key, value in configs.items()}
    async with admin(server) as client:
        await client.create_topics([NewTopic(name, partitions, 1, topic_configs=texts)])

        async def is_known() -> bool:
            return name in await client.list_topics()

        await eventually(is_known)


async def publish_at(server: str, topic: str, partition: int, times: Mapping[int, float]) -> None:
    """Publish numbers with timestamps, in seconds since 1970, in this order."""
    async with AIOKafkaProducer(bootstrap_servers=server) as producer:
        for number, at in times.items():
            await producer.send_and_wait(
                topic, b"%d" % number, partition=partition, timestamp_ms=int(at * 1000)
            )


async def settings(server: str, name: str) -> tuple[int, dict[str, str]]:
    """Partitions and configuration of a topic; 0 partitions when it does not exist."""
    async with admin(server) as client:
        if name not in await client.list_topics():
            return 0, {}
        (topic,) = await client.describe_topics([name])
        (answer,) = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        values = {entry[0]: entry[1] for entry in answer.resources[0][4]}
        return len(topic["partitions"]), values


async def read(server: str, name: str, count: int) -> Sequence[Any]:
    """Read a topic from its beginning, at least so many records, partition by partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=server, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        numbers = await consumer._client._wait_on_metadata(name)
        places = [TopicPartition(name, number) for number in sorted(numbers)]
        consumer.assign(places)
        records: list[Any] = []
        end = 0
        async with asyncio.timeout(20):
            while len(records) < max(count, end):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    records += batch
                end = sum((await consumer.end_offsets(places)).values())
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()
