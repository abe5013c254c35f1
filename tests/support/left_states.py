"""The states that an actor has left on a Kafka cluster, to be copied for another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewPartitions
from aiokafka.structs import TopicPartition

from spa_dat import KafkaConfig
from spa_dat.errors import ConfigurationError
from spa_dat.transports.kafka._partitioner import hash_of
from spa_dat.transports.kafka.consuming._state_copies import CopiedStates, copy_states

from .kafka_bus import admin, create, settings
from .waiting import eventually

__all__ = ["AFTER", "BEFORE", "HEADERS", "KEYS", "LeftStates"]

BEFORE, AFTER = 3, 5
HEADERS = [("header", b"1")]
KEYS = [b"%d" % number for number in range(30)]


class LeftStates:
    """A topic, and what an actor has left behind that has read all of it.

    Args:
        server: the broker, as everybody.
        prefix: in front of all names on it.
        config: for whoever copies; None for everybody.

    Attributes:
        topic: the name of the topic.
        group: that of the actor, unless a test sets another one.
        old: the changelog of the actor.
        new: that of the actor that goes on.
    """

    def __init__(self, server: str, prefix: str, config: KafkaConfig | None = None) -> None:
        self.server = server
        self.prefix = prefix
        self.topic = f"{self.prefix}numbers"
        self.group = f"{self.prefix}app.old"
        self.old, self.new = (f"{self.prefix}_spa.state.app.{name}" for name in ("old", "new"))
        self.config = config or KafkaConfig(server, prefix=prefix)

    async def fill(self) -> None:
        """Let there be a message and a state of each key, and a state that was deleted."""
        await create(self.server, self.topic, BEFORE)
        await create(self.server, self.old, BEFORE, cleanup_policy="compact")
        await self.send(self.topic, dict.fromkeys(KEYS, b"1"), BEFORE)
        await self.send(self.old, dict.fromkeys(KEYS, b"first"), BEFORE)
        await self.send(self.old, {b"gone": b"state"}, BEFORE)
        await self.send(self.old, {b"gone": None}, BEFORE)
        await self.send(self.old, {key: b"{}\n%b" % key for key in KEYS}, BEFORE)
        await self.commit(range(BEFORE))

    async def send(self, topic: str, values: dict[bytes, bytes | None], count: int) -> None:
        """Publish values by keys, as to a topic with so many partitions."""
        async with AIOKafkaProducer(bootstrap_servers=self.server) as producer:
            for key, value in values.items():
                await producer.send_and_wait(
                    topic, value, key, partition=hash_of(key) % count, headers=HEADERS
                )

    async def commit(self, partitions: Iterable[int]) -> None:
        """Commit the ends of partitions, as the actor that has read them."""
        async with self.member() as consumer:
            places = [TopicPartition(self.topic, number) for number in partitions]
            consumer.assign(places)
            await consumer.commit(await consumer.end_offsets(places))

    def member(self) -> Any:
        """Return a consumer of the group, which is not started."""
        return AIOKafkaConsumer(
            bootstrap_servers=self.server, group_id=self.group, enable_auto_commit=False
        )

    async def grow(self) -> None:
        """Give the topic more partitions."""
        async with admin(self.server) as client:
            await client.create_partitions({self.topic: NewPartitions(AFTER)})

        async def has_grown() -> bool:
            return (await settings(self.server, self.topic))[0] == AFTER

        await eventually(has_grown)

    async def copy(self, *topics: str, **options: str) -> CopiedStates:
        """Copy the states for the new actor, with other topics and names if they are given."""
        given = {"application": "app", "actor": "old", "to": "new"}
        return await copy_states(self.config, topics=topics or [self.topic], **(given | options))

    async def refused(self, *topics: str, **options: str) -> str:
        """Copy, which is refused; return why."""
        with pytest.raises(ConfigurationError) as raised:
            await self.copy(*topics, **options)
        return str(raised.value)
