"""Idle consumers: brokers keep their fetches, and nothing waits for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewPartitions
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from spa_dat.testing import Kafka
from spa_dat.transports import KafkaConfig, Subscription
from spa_dat.transports.kafka import _topic_facts
from spa_dat.transports.kafka._aiokafka_private import keep_connections, separate_fetches
from spa_dat.transports.kafka._client_options import renewed_options
from spa_dat.transports.kafka.consuming import _fetching, _partition_guard as _guard
from spa_dat.transports.kafka.consuming._partition_guard import PartitionGuard
from support.kafka_bus import admin, bus_client, create, new_prefix
from support.kafka_consuming import Taker, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka

# Longer than any test waits: what is behind such a fetch does not happen.
LONG = 600.0
IDLE: dict[str, Any] = {"topic_refresh": 1.0, "request_timeout": 3_600.0}


@pytest.fixture(autouse=True)
def _brokers_keep_fetches_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetching, "_RESTING_FETCH", LONG)


def kept(library: Any) -> list[tuple[int, int]]:
    """Return the fetches that a broker keeps for long: their connections and numbers."""
    return [
        (id(connection), correlation)
        for connection in library._client._conns.values()
        for correlation, request, _ in connection._requests
        if getattr(request, "max_wait_time", 0) == LONG * 1000
    ]


async def rests(one: Taker) -> None:
    await eventually(lambda: one.library is not None and kept(one.library))


@contextlib.asynccontextmanager
async def resting(kafka: Kafka, pattern: str, prefix: str, **options: Any) -> AsyncIterator[Taker]:
    async with taker(kafka.server, pattern, prefix=prefix, **{**IDLE, **options}) as one:
        await rests(one)
        yield one


async def publish(kafka: Kafka, topic: str, *partitions: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.server) as producer:
        for partition in partitions:
            await producer.send_and_wait(topic, b"%d" % partition, partition=partition)


@contextlib.asynccontextmanager
async def client_with_fetch(
    kafka: Kafka, topic: str
) -> AsyncIterator[tuple[Any, asyncio.Task[Any]]]:
    """Yield a client, and a fetch at the end of partition 0 that its broker keeps."""
    client = AIOKafkaClient(bootstrap_servers=kafka.server, request_timeout_ms=3_600_000)
    keep_connections(client, partial(renewed_options, KafkaConfig()), 60.0)
    separate_fetches(client)
    try:
        await client.bootstrap()
        fetch = asyncio.ensure_future(client.send(client.get_random_node(), fetch_of(topic, 0, 1)))
        await eventually(lambda: kept(SimpleNamespace(_client=client)))
        yield client, fetch
        fetch.cancel()
        await asyncio.wait((fetch,))
    finally:
        await client.close()


def fetch_of(topic: str, partition: int, offset: int) -> FetchRequest:
    return FetchRequest(int(LONG * 1000), 1, 1000, 0, [(topic, [(partition, offset, 1000)])])


async def test_other_requests_do_not_wait_for_a_fetch(kafka: Kafka) -> None:
    name = f"{new_prefix()}a"
    await create(kafka.server, name)
    await publish(kafka, name, 0)
    async with client_with_fetch(kafka, name) as (client, fetch):
        assert await asyncio.wait_for(client.force_metadata_update(), 60)
        assert not fetch.done()
        await publish(kafka, name, 0)
        assert (await asyncio.wait_for(fetch, 60)).topics[0][0] == name


async def test_a_fetch_does_not_wait_for_one_that_was_cancelled(kafka: Kafka) -> None:
    name = f"{new_prefix()}a"
    await create(kafka.server, name, 2)
    await publish(kafka, name, 0)
    async with client_with_fetch(kafka, name) as (client, fetch):
        fetch.cancel()
        await publish(kafka, name, 1)
        node = client.get_random_node()
        answer = await asyncio.wait_for(client.send(node, fetch_of(name, 1, 0)), 60)
        assert answer.topics[0][1][0][-1]


async def test_a_broker_that_soon_closes_idle_connections_is_not_called_unreachable(
    own_kafka: Callable[..., Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_guard, "_WITHOUT_LEADER", 5.0)
    hear, closed = PartitionGuard._hear_of_fetch, 0

    def counting(guard: PartitionGuard, node: int, answered: bool) -> None:
        nonlocal closed
        closed += not answered
        hear(guard, node, answered)

    monkeypatch.setattr(PartitionGuard, "_hear_of_fetch", counting)
    broker = own_kafka(properties={"connections.max.idle.ms": "1000"})
    prefix = new_prefix()
    await create(broker.server, f"{prefix}a")
    async with taker(broker.server, "a", prefix=prefix, **IDLE) as one:
        await eventually(lambda: closed >= 9)
        assert one.consumer.trouble is None
        assert one.stats["kafka.partitions_held"] == 0
        await publish(broker, f"{prefix}a", 0)
        await one.has("0")


async def test_a_new_partition_is_read_at_once(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    async with (
        resting(kafka, "a", prefix) as one,
        taker(kafka.server, "a", prefix=prefix, instance="1", **IDLE) as two,
    ):
        await eventually(lambda: len(one.partitions) == len(two.partitions) == 1)
        (taken,) = two.partitions
        await rests(one)
        await two.consumer.remove_filter("a")
        await eventually(lambda: one.partitions == [0, 1])
        # One in its own partition would end the fetch.
        await publish(kafka, f"{prefix}a", taken)
        await one.has(str(taken))


async def test_more_partitions_are_noticed(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with resting(kafka, "a", prefix) as one:
        async with admin(kafka.server) as operator:
            await operator.create_partitions({f"{prefix}a": NewPartitions(3)})
        await eventually(lambda: one.partitions == [0, 1, 2])
        await publish(kafka, f"{prefix}a", 2)
        await one.has("2")


async def test_a_leader_that_does_not_know_of_the_next_one_is_left(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with resting(kafka, "a", prefix) as one:
        cluster, place = one.library._client.cluster, TopicPartition(f"{prefix}a", 0)
        leader = cluster.leader_for_partition(place)
        partition = cluster._partitions[place.topic][0]
        # One that answers.
        cluster._brokers[leader + 1] = cluster._brokers[leader]._replace(nodeId=leader + 1)
        cluster._partitions[place.topic][0] = partition._replace(leader=leader + 1)
        await eventually(lambda: cluster.leader_for_partition(place) == leader)


async def test_a_new_topic_that_a_wildcard_matches_is_noticed(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}x.1")
    async with resting(kafka, "x/+", prefix) as one:
        await create(kafka.server, f"{prefix}x.2")
        await publish(kafka, f"{prefix}x.2", 0)
        await one.has("0")


async def test_the_first_topic_that_a_wildcard_matches_is_noticed(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with taker(kafka.server, "x/+", prefix=prefix, **IDLE) as one:
        await create(kafka.server, f"{prefix}x.1")
        await publish(kafka, f"{prefix}x.1", 0)
        await one.has("0")


async def test_a_topic_that_is_recreated_is_noticed(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with resting(kafka, "a", prefix) as one:
        await publish(kafka, f"{prefix}a", 0)
        await one.has("0")
        await rests(one)
        async with admin(kafka.server) as operator:
            await operator.delete_topics([f"{prefix}a"])

            async def is_gone() -> bool:
                return f"{prefix}a" not in await operator.list_topics()

            await eventually(is_gone)
        await create(kafka.server, f"{prefix}a", 2)
        await publish(kafka, f"{prefix}a", 1)
        await one.has("1")


async def test_it_ends_at_once(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with resting(kafka, "a", prefix) as one:
        await asyncio.wait_for(one.consumer.close(), 60)


async def test_consumers_look_at_their_topics_together(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    ask = _topic_facts._asked

    async def count(client: Any, request: Any) -> Any:
        asked.append(request._names)
        return await ask(client, request)

    monkeypatch.setattr(_topic_facts, "_asked", count)
    prefix = new_prefix()
    names = [f"{prefix}{number}" for number in range(4)]
    for name in names:
        await create(kafka.server, name)
    async with (
        bus_client(kafka.server, prefix=prefix, **IDLE) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        takers = [Taker() for _ in names]
        for number, one in enumerate(takers):
            subscription = Subscription(filters=(str(number),), name=str(number), share=True)
            one.client, one.consumer = client, client.bus.consumer(subscription, one)
            stack.push_async_callback(one.consumer.close)
            await one.consumer.start()
        for one in takers:
            await rests(one)
        before = [kept(one.library) for one in takers]
        asked.clear()
        await eventually(lambda: asked.count(names) >= 3)
        assert [kept(one.library) for one in takers] == before
