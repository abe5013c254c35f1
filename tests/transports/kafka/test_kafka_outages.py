"""Kafka brokers that go away, and producers that break."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.structs import BrokerMetadata, TopicPartition

from spa_dat.errors import ConnectFailed, PublishNotSent, PublishUnknown
from spa_dat.testing import Kafka, Proxy
from spa_dat.transports import Envelope, KafkaConfig
from spa_dat.transports.kafka._aiokafka_private import keep_connections
from spa_dat.transports.kafka._client_options import renewed_options
from spa_dat.transports.kafka.producing import _partition_queue
from spa_dat.transports.kafka.producing._producer import Producer
from support.kafka_bus import BusClient, bus_client, create, new_prefix, read
from support.kafka_consuming import taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka


def producer_of(client: BusClient) -> Producer:
    bus: Any = client.bus
    producer: Producer = bus._publisher._producer
    return producer


def post(client: BusClient, numbers: range, topic: str = "a") -> list[asyncio.Future[None]]:
    return [
        client.bus.post(Envelope(topic=topic, payload=str(number).encode())) for number in numbers
    ]


async def values(server: str, client: BusClient, count: int) -> list[int]:
    records = await read(server, f"{client.config.prefix}a", count)
    return [int(record.value) for record in records]


async def done(posts: list[asyncio.Future[None]]) -> None:
    await asyncio.wait_for(asyncio.gather(*posts), 40)


async def test_a_broker_that_is_not_there_is_an_error_within_seconds() -> None:
    async with bus_client("127.0.0.1:1", start=False, start_timeout=0.3) as client:
        with pytest.raises(ConnectFailed, match=r"no connection to the cluster at .*:1.*refused"):
            await asyncio.wait_for(client.start(), 60)


async def test_a_broker_that_says_nothing_is_an_error_within_seconds() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        options: dict[str, Any] = {"start_timeout": 0.2, "connect_timeout": 0.3}
        async with bus_client(address, start=False, **options) as client:
            with pytest.raises(ConnectFailed, match="no answer in time"):
                await asyncio.wait_for(client.start(), 60)
    finally:
        server.close()


async def test_a_start_waits_for_the_broker(kafka: Kafka) -> None:
    proxy = kafka.proxy()
    async with bus_client(f"{proxy.host}:{proxy.port}", start=False) as client:
        starting = asyncio.ensure_future(client.start())
        await eventually(lambda: client.stats["kafka.connect_failed"] > 0)
        async with proxy:
            await asyncio.wait_for(starting, 60)
            await client.publish("a")


async def test_a_start_is_tried_until_its_time_is_up_however_long_the_pauses_are(
    kafka: Kafka,
) -> None:
    proxy = kafka.proxy()
    pauses: dict[str, Any] = {"backoff_min": 20.0, "backoff_max": 30.0}
    address = f"{proxy.host}:{proxy.port}"
    async with bus_client(address, start=False, start_timeout=3.0, **pauses) as client:
        starting = asyncio.ensure_future(client.start())
        await eventually(lambda: client.stats["kafka.connect_failed"] == 1)
        async with proxy:
            await asyncio.wait_for(starting, 60)


async def test_cuts_under_load_neither_lose_nor_repeat(kafka: Kafka) -> None:
    posts: list[asyncio.Future[None]] = []
    async with (
        kafka.proxy() as proxy,
        bus_client(f"{proxy.host}:{proxy.port}", max_batch=2_000) as client,
    ):
        await client.publish("a", b"0")
        for start in range(1, 3_000, 100):
            posts += post(client, range(start, min(start + 100, 3_000)))
            await asyncio.sleep(0)
            if start % 500 == 1:
                await asyncio.wait(posts[-100:], return_when=asyncio.FIRST_COMPLETED)
                proxy.cut()
        await done(posts)
        assert await values(kafka.server, client, 3_000) == list(range(3_000))
        assert client.stats["kafka.producers_lost"] == 0


async def test_nothing_is_written_while_no_broker_can_be_reached(
    kafka: Kafka,
) -> None:
    async with kafka.proxy() as proxy, bus_client(f"{proxy.host}:{proxy.port}") as client:
        await client.publish("a", b"0")
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not client.bus.connected)
        with pytest.raises(PublishNotSent, match="'a'"):
            await client.bus.publish(Envelope(topic="a", payload=b"7"), timeout=0.05)
        posts = post(client, range(1, 20))
        assert posts[4].cancel()
        await proxy.allow()
        await eventually(lambda: client.bus.connected)
        await asyncio.wait_for(client.bus.drain(), 60)
        numbers = await values(kafka.server, client, 19)
    assert numbers == [0, 1, 2, 3, 4, *range(6, 20)]


async def test_a_silent_connection_is_given_up(kafka: Kafka) -> None:
    async with kafka.proxy() as proxy:
        options: dict[str, Any] = {
            "request_timeout": 0.5,
            "connect_timeout": 0.5,
            "topic_refresh": 0.2,
        }
        async with bus_client(f"{proxy.host}:{proxy.port}", **options) as client:
            await client.publish("a", b"0")
            proxy.blackhole()
            posts = post(client, range(1, 5))
            await eventually(lambda: not client.bus.connected)
            assert not any(one.done() for one in posts)
            with pytest.raises(PublishUnknown):
                await asyncio.wait_for(_expired(client, posts), 60)
            proxy.heal()
            proxy.cut()
            await eventually(lambda: client.bus.connected)
            await done(posts)
            assert (await values(kafka.server, client, 5))[:5] == list(range(5))


async def _expired(client: BusClient, posts: list[asyncio.Future[None]]) -> None:
    outbox = client.bus._publisher.outbox  # type: ignore[attr-defined]
    entry: Any = posts[0]
    assert entry in outbox._written
    raise entry.unconfirmed("no confirmation")


async def test_a_killed_broker_costs_nothing_that_is_pending(
    kafka_to_break: Kafka,
) -> None:
    broker = kafka_to_break
    async with bus_client(broker.server) as client:
        await client.publish("a", b"0")
        first = post(client, range(1, 2_000))
        await eventually(lambda: client.bus.connected)
        broker.kill()
        await eventually(lambda: not client.bus.connected)
        second = post(client, range(2_000, 3_000))
        await asyncio.to_thread(broker.start)
        await done([*first, *second])
        numbers = await values(broker.server, client, 3_000)
        assert list(dict.fromkeys(numbers)) == list(range(3_000))
        assert client.bus.connected


async def test_a_broken_sequence_makes_a_new_producer(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("a", b"0")
        broken = producer_of(client)
        place = TopicPartition(f"{client.config.prefix}a", 0)
        broken._library._txn_manager.increment_sequence_number(place, 5)
        await done(post(client, range(1, 500)))
        assert producer_of(client) is not broken
        assert client.stats["kafka.producers_lost"] == 1
        assert await values(kafka.server, client, 500) == list(range(500))


@pytest.mark.parametrize("task", ["sender", "metadata"])
async def test_the_end_of_a_task_of_the_library_makes_a_new_producer(
    kafka: Kafka, task: str
) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("a", b"0")
        broken = producer_of(client)
        library = broken._library
        (library._sender.sender_task if task == "sender" else library.client._sync_task).cancel()
        posts = post(client, range(1, 500))
        await eventually(lambda: client.stats["kafka.producers_lost"] == 1)
        await done(posts)
        # The broken one may have confirmed them on its last way.
        await eventually(lambda: producer_of(client) is not broken)
        numbers = await values(kafka.server, client, 500)
        assert list(dict.fromkeys(numbers)) == list(range(500))


async def test_a_producer_that_breaks_while_the_cluster_is_away_repeats_nothing(
    kafka: Kafka,
) -> None:
    async with kafka.proxy() as proxy, bus_client(f"{proxy.host}:{proxy.port}") as client:
        await client.publish("a", b"0")
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not client.bus.connected)
        posts = post(client, range(1, 10))
        broken = producer_of(client)
        broken.break_off(RuntimeError("for the test"))
        posts += post(client, range(10, 20))
        await eventually(lambda: client.stats["kafka.producers_lost"] == 1)
        await proxy.allow()
        await done(posts)
        assert await values(kafka.server, client, 20) == list(range(20))


async def test_a_broker_that_does_not_answer_is_not_called_unreachable(
    kafka_to_break: Kafka,
) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    await create(broker.server, f"{prefix}a")
    async with taker(broker.server, "a", prefix=prefix) as inbox:
        broker.pause()
        try:
            await eventually(lambda: inbox.consumer.trouble, 60)
            assert "have not answered for a long time" in (inbox.consumer.trouble or "")
        finally:
            broker.resume()
        await eventually(lambda: inbox.consumer.trouble is None, 60)


async def test_closing_is_quick_while_the_cluster_is_away(kafka_to_break: Kafka) -> None:
    broker = kafka_to_break
    async with bus_client(broker.server) as client:
        await client.publish("a")
        broker.pause()
        written = post(client, range(1))
        await eventually(
            lambda: producer_of(client)._topic_queues[f"{client.config.prefix}a"].tasks()
        )
        await asyncio.wait_for(client.bus.close(), 60)
        broker.resume()
        with pytest.raises((PublishUnknown, PublishNotSent)):
            await written[0]
        assert [task for task in asyncio.all_tasks() if "kafka" in task.get_name()] == []


@pytest.mark.parametrize("step", ["first connection", "later connection"])
async def test_a_client_that_ends_leaves_no_connection_that_was_being_made(step: str) -> None:
    reached, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        reached.set()
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}")
    keep_connections(client, partial(renewed_options, KafkaConfig()), 60.0)
    client.cluster._brokers[1] = BrokerMetadata(1, "127.0.0.1", port, None)
    first = step == "first connection"
    making = asyncio.ensure_future(client.bootstrap() if first else client.ready(1))
    try:
        await asyncio.wait_for(reached.wait(), 60)
        if first:
            making.cancel()
        await asyncio.wait_for(client.close(), 60)
        await asyncio.wait((making,), timeout=20)
        assert making.cancelled() if first else making.result() is False
        await asyncio.wait_for(ended.wait(), 60)
    finally:
        server.close()


async def test_what_any_broker_can_answer_is_not_asked_of_one_that_cannot_be_reached() -> None:
    listening = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    client = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}")
    keep_connections(client, partial(renewed_options, KafkaConfig()), 60.0)
    for number in (1, 2, 3):
        client.cluster._brokers[number] = BrokerMetadata(number, "127.0.0.1", port, None)
    try:
        assert not await client.ready(2)
        assert {client.get_random_node() for _ in range(200)} == {1, 3}
        # If none can be reached, any of them.
        assert not await client.ready(1)
        assert not await client.ready(3)
        assert {client.get_random_node() for _ in range(200)} == {1, 2, 3}
    finally:
        await client.close()


async def test_a_leader_that_cannot_be_reached_is_named_to_who_publishes(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_partition_queue, "_REFUSED_FOR", 0.5)
    leader_of = ClusterMetadata.leader_for_partition
    async with bus_client(kafka.server) as client:
        await client.publish("a")
        place = TopicPartition(f"{client.config.prefix}a", 0)
        with monkeypatch.context() as patch:
            patch.setattr(
                ClusterMetadata,
                "leader_for_partition",
                lambda self, asked: 99 if asked == place else leader_of(self, asked),
            )
            publish = asyncio.ensure_future(
                client.bus.publish(Envelope(topic="a", payload=b"x"), timeout=60)
            )
            await eventually(lambda: client.bus.trouble)
            assert "its leader does not answer" in (client.bus.trouble or "")
        await publish
        await eventually(lambda: client.bus.trouble is None)


async def test_a_start_can_be_cancelled(kafka: Kafka) -> None:
    proxy = Proxy(kafka.host, kafka.port)
    async with proxy:
        proxy.blackhole()
        async with bus_client(f"{proxy.host}:{proxy.port}", start=False) as client:
            starting = asyncio.ensure_future(client.start())
            await eventually(lambda: proxy.connections > 0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting


async def test_closing_ends_a_start(kafka: Kafka) -> None:
    """It went on, and left connections that nobody closed."""
    async with kafka.proxy() as proxy:
        address = f"{proxy.host}:{proxy.port}"
        proxy.blackhole()
        options: dict[str, Any] = {"start_timeout": 3_600.0, "connect_timeout": 3_600.0}
        async with bus_client(address, start=False, **options) as client:
            starting = asyncio.ensure_future(client.start())
            await eventually(lambda: proxy.accepted > 0)
            await asyncio.wait_for(client.bus.close(), 60)
            with pytest.raises(ConnectFailed, match="closed before"):
                await asyncio.wait_for(starting, 60)
