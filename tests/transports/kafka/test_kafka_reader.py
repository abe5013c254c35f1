"""Consuming from Kafka without a group: everything, from now on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.cluster import ClusterMetadata

from spa_dat.errors import ConnectionLost, UnknownTopic
from spa_dat.testing import Kafka
from spa_dat.transports import Envelope
from support.kafka_bus import BusClient, admin, bus_client, create
from support.kafka_consuming import Taker, committed, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka


async def publish(client: BusClient, numbers: range, topic: str = "a") -> None:
    posts = [
        client.bus.post(Envelope(topic=topic, payload=b"%d" % number, key=str(number)))
        for number in numbers
    ]
    await asyncio.wait_for(asyncio.gather(*posts), 60)


def reader(
    server: str, *filters: str, prefix: str, window: int = 200, **options: Any
) -> AbstractAsyncContextManager[Taker]:
    fields = {"durable": False, "share": False, "window": window, **options.pop("fields", {})}
    return taker(server, *filters, prefix=prefix, subscription=fields, **options)


@asynccontextmanager
async def with_history(kafka: Kafka, *topics: str, partitions: int = 2) -> AsyncIterator[BusClient]:
    """An application, and topics with messages that no reader must get."""
    async with bus_client(kafka.server) as client:
        for topic in topics:
            await create(kafka.server, client.config.prefix + topic.replace("/", "."), partitions)
            await publish(client, range(900, 920), topic)
        yield client


async def test_it_reads_from_now_on_and_commits_nothing(kafka: Kafka) -> None:
    async with with_history(kafka, "a") as client:
        prefix = client.config.prefix
        async with reader(kafka.server, "a", prefix=prefix) as inbox:
            await publish(client, range(20))
            await inbox.get(20)
            assert sorted(inbox.numbers) == list(range(20))
        async with reader(kafka.server, "a", prefix=prefix) as later:
            await publish(client, range(20, 25))
            await later.get(5)
            assert sorted(later.numbers) == list(range(20, 25))
        assert await committed(kafka.server, prefix) == {}


async def test_an_application_without_a_name_reads_without_a_group(kafka: Kafka) -> None:
    async with with_history(kafka, "a") as client:
        prefix = client.config.prefix
        async with (
            taker(kafka.server, "a", prefix=prefix, ephemeral=True) as one,
            taker(kafka.server, "a", prefix=prefix, ephemeral=True) as two,
        ):
            await publish(client, range(5))
            await one.get(5)
            await two.get(5)
            assert sorted(one.numbers) == sorted(two.numbers) == list(range(5))
        assert await committed(kafka.server, prefix) == {}


async def test_filters_that_are_added_at_once_all_start_now(kafka: Kafka) -> None:
    async with (
        with_history(kafka, "a", "b", "c/1", "c/2", "d") as client,
        reader(kafka.server, prefix=client.config.prefix) as inbox,
    ):
        add = inbox.consumer.add_filter
        await asyncio.gather(add("a"), add("b"), add("c/+"), add("d"))
        for number, topic in enumerate(("a", "b", "c/1", "c/2", "d")):
            await publish(client, range(number, number + 1), topic)
        await inbox.get(5)
        assert sorted(inbox.numbers) == list(range(5))
        await inbox.consumer.remove_filter("a")
        await inbox.consumer.remove_filter("c/+")
        await publish(client, range(5, 10), "a")
        await add("a")
        await publish(client, range(10, 11), "a")
        await publish(client, range(11, 12), "d")
        await inbox.get(7)
        assert sorted(inbox.numbers) == [*range(5), 10, 11]


async def test_what_appears_later_is_read_from_its_start(kafka: Kafka) -> None:
    async with (
        with_history(kafka, "x/1", partitions=1) as client,
        reader(kafka.server, "x/+", prefix=client.config.prefix, topic_refresh=1.0) as inbox,
    ):
        # Long before it is noticed.
        await publish(client, range(5), "x/2")
        await inbox.get(5)
        async with admin(kafka.server) as operator:
            name = f"{client.config.prefix}x.1"
            await operator.create_partitions({name: NewPartitions(4)})
        async with bus_client(kafka.server, prefix=client.config.prefix) as later:
            await publish(later, range(5, 45), "x/1")
        await inbox.get(45)
        assert sorted(inbox.numbers) == list(range(45))


async def test_a_topic_that_is_not_to_be_seen_for_a_while_is_not_read_anew(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        with_history(kafka, "a") as client,
        reader(kafka.server, "a", prefix=client.config.prefix) as inbox,
    ):
        await publish(client, range(5))
        await inbox.get(5)
        library = inbox.library

        async def nothing() -> ClusterMetadata:
            return ClusterMetadata()

        monkeypatch.setattr(library._client, "fetch_all_metadata", nothing)
        await eventually(lambda: library.assignment() == set())
        await publish(client, range(5, 10))
        monkeypatch.undo()
        await inbox.get(10)
        await publish(client, range(10, 12))
        await inbox.get(12)
        assert sorted(inbox.numbers) == list(range(12))


async def test_a_topic_that_is_recreated_is_read_from_its_start(kafka: Kafka) -> None:
    async with (
        with_history(kafka, "a", partitions=1) as client,
        reader(kafka.server, "a", prefix=client.config.prefix) as inbox,
    ):
        await publish(client, range(5))
        await inbox.get(5)
        async with admin(kafka.server) as operator:
            await operator.delete_topics([f"{client.config.prefix}a"])
            await eventually(lambda: inbox.library.assignment() == set())
        await create(kafka.server, f"{client.config.prefix}a")
        async with bus_client(kafka.server, prefix=client.config.prefix) as later:
            await publish(later, range(5, 10))
        await inbox.get(10)
        assert inbox.numbers == list(range(10))


async def test_cuts_neither_lose_nor_repeat(kafka: Kafka) -> None:
    async with kafka.proxy() as proxy, with_history(kafka, "a") as client:
        server = f"{proxy.host}:{proxy.port}"
        async with reader(server, "a", prefix=client.config.prefix, settle=False) as inbox:
            for number in range(6):
                await publish(client, range(number * 20, number * 20 + 20))
                before = inbox.stats["kafka.reconnects"]
                proxy.cut()
                if number % 2:
                    await proxy.refuse()
                    # A session ends, and the library does not go on by itself.
                    await eventually(lambda before=before: inbox.stats["kafka.reconnects"] > before)  # type: ignore[misc]
                    await proxy.allow()
            await inbox.get(120, 30)
            await publish(client, range(120, 121))
            await inbox.get(121)
            assert sorted(inbox.numbers) == list(range(121))
            assert inbox.events == []


async def test_changes_that_wait_for_the_broker_come_in_force_or_end(kafka: Kafka) -> None:
    async with kafka.proxy() as proxy, with_history(kafka, "a", "b", "c") as client:
        server = f"{proxy.host}:{proxy.port}"
        async with reader(server, "a", prefix=client.config.prefix) as inbox:
            await proxy.refuse()
            proxy.cut()
            changes = [
                asyncio.ensure_future(inbox.consumer.add_filter("b")),
                asyncio.ensure_future(inbox.consumer.remove_filter("a")),
                # Nothing has to be made for it.
                asyncio.ensure_future(inbox.consumer.add_filter("c/#")),
            ]
            await eventually(lambda: inbox.stats["kafka.reconnects"] > 2)
            assert not any(change.done() for change in changes)
            await proxy.allow()
            await asyncio.wait_for(asyncio.gather(*changes), 60)
            await publish(client, range(1), "b")
            await publish(client, range(1, 2), "c")
            await publish(client, range(2, 3), "a")
            await inbox.get(2)
            assert sorted(inbox.numbers) == [0, 1]
            await proxy.refuse()
            proxy.cut()
            reconnects = inbox.stats["kafka.reconnects"]
            last = asyncio.ensure_future(inbox.consumer.remove_filter("b"))
            await eventually(lambda: inbox.stats["kafka.reconnects"] > reconnects + 1)
            assert not last.done()
            await asyncio.wait_for(inbox.consumer.close(), 60)
            with pytest.raises(ConnectionLost, match="closed"):
                await last
            with pytest.raises(ConnectionLost, match="closed"):
                await inbox.consumer.add_filter("b")


async def test_a_full_window_keeps_neither_changes_nor_the_end_waiting(kafka: Kafka) -> None:
    async with (
        with_history(kafka, "a", "b") as client,
        reader(kafka.server, "a", prefix=client.config.prefix, settle=False, window=3) as inbox,
    ):
        await publish(client, range(10))
        await inbox.get(3)
        await asyncio.wait_for(inbox.consumer.add_filter("b"), 60)
        assert len(inbox.deliveries) == 3
        for count in range(3, 10):
            inbox.deliveries[count - 3].settle()
            await inbox.get(count + 1)
        assert sorted(inbox.numbers) == list(range(10))
        await asyncio.wait_for(inbox.consumer.close(), 60)


async def test_a_filter_for_a_topic_that_does_not_exist_is_refused(kafka: Kafka) -> None:
    options: dict[str, Any] = {"create_topics": "own", "start_timeout": 0.5}
    async with (
        with_history(kafka, "a") as client,
        reader(kafka.server, prefix=client.config.prefix, **options) as inbox,
    ):
        with pytest.raises(UnknownTopic, match="nowhere"):
            await inbox.consumer.add_filter("nowhere")
        await inbox.consumer.add_filter("a")
        await publish(client, range(1))
        await inbox.get(1)


async def test_on_receipt_nothing_is_waited_for(kafka: Kafka) -> None:
    async with (
        with_history(kafka, "a") as client,
        reader(
            kafka.server,
            "a",
            prefix=client.config.prefix,
            settle=False,
            window=2,
            fields={"qos": 0},
        ) as inbox,
    ):
        await publish(client, range(20))
        await inbox.get(20)
        assert {delivery.token for delivery in inbox.deliveries} == {-1}
