"""Members of Kafka groups, and brokers, connections and parts of the library that end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import pytest

from spa_dat.harness.brokers._broker_process import PortClaims
from spa_dat.testing import Kafka
from spa_dat.transports import Envelope
from support.kafka_bus import BusClient, bus_client, create, new_prefix
from support.kafka_consuming import committed, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka


async def publish(client: BusClient, numbers: range, topic: str = "a") -> None:
    posts = [
        client.bus.post(Envelope(topic=topic, payload=b"%d" % number, key=str(number)))
        for number in numbers
    ]
    await asyncio.wait_for(asyncio.gather(*posts), 40)


@pytest.mark.parametrize("kill", [True, False])
async def test_a_broker_that_comes_back_has_lost_nothing(kafka_to_break: Kafka, kill: bool) -> None:
    broker, prefix = kafka_to_break, new_prefix()
    await create(broker.server, f"{prefix}a", 3)
    async with (
        bus_client(broker.server, prefix=prefix) as client,
        taker(broker.server, "a", prefix=prefix, settle=False) as inbox,
    ):
        await publish(client, range(100))
        deliveries = await inbox.get(100)
        for number, delivery in enumerate(deliveries):
            if number % 3:
                delivery.settle()
        await asyncio.to_thread(broker.restart, kill=kill)
        posted = asyncio.ensure_future(publish(client, range(100, 200)))
        for delivery in deliveries:
            delivery.settle()
        await posted
        inbox.on_delivery = lambda delivery: delivery.settle()
        await eventually(lambda: set(inbox.numbers) == set(range(200)), 60.0)
        for delivery in inbox.deliveries:
            delivery.settle()
        assert inbox.client.fatal == []
    assert sum((await committed(broker.server, prefix)).values()) == 200


@pytest.mark.slow
async def test_a_cluster_that_comes_back_at_other_addresses_is_found(
    own_kafka: Callable[..., Kafka], ports: PortClaims
) -> None:
    broker = own_kafka()
    (elsewhere,) = ports.take(1)
    servers = f"{broker.server},{broker.host}:{elsewhere}"
    await create(broker.server, "a")
    async with (
        bus_client(servers, prefix="") as client,
        taker(servers, "a", prefix="") as member,
        taker(servers, "a", prefix="", instance="reader", ephemeral=True) as reader,
    ):
        await publish(client, range(1))
        await client.publish(client.bus.reply_address("0"))
        await eventually(lambda: client.replies)
        for inbox in (member, reader):
            await inbox.get(1)
        await eventually(lambda: member.stats["kafka.commits"])
        await asyncio.to_thread(broker.stop)
        move(broker, elsewhere)
        await asyncio.to_thread(broker.start)
        await publish(client, range(1, 2))
        await client.publish(client.bus.reply_address("1"))
        await eventually(lambda: member.numbers == reader.numbers == [0, 1])
        await eventually(lambda: len(client.replies) == 2)
    assert await committed(broker.server, "") == {"a/0": 2}


def move(broker: Kafka, port: int) -> None:
    """Where the broker listens, and says that it does, from its next start on."""
    config = broker.folder / "server.properties"
    config.write_text(re.sub(rf":{broker.port}\b", f":{port}", config.read_text()))
    broker.port = port


@pytest.mark.parametrize("part", ["_client._sync_task", "_fetcher._fetch_task", "coordination"])
async def test_a_part_of_the_library_that_ends_is_restarted(
    kafka: Kafka, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    caplog.set_level(logging.WARNING, "spa_dat")
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, settle=False, commit_interval=600) as inbox,
    ):
        await publish(client, range(4))
        settled, running, queued, behind = await inbox.get(4)
        for delivery in (settled, running, behind):
            delivery.start()
        settled.settle()
        behind.settle()
        library = inbox.library
        if part == "coordination":
            # As after a bug: the library only says so when it is asked.
            library._coordinator._coordination_task.cancel()
            await eventually(library._coordinator._coordination_task.done)
            library._coordinator.check_errors = _failing
        else:
            owner, task = part.split(".")
            getattr(getattr(library, owner), task).cancel()
        await eventually(lambda: inbox.library not in (library, None))
        await inbox.back()
        assert await committed(kafka.server, prefix) == {"a/0": 1}
        await publish(client, range(4, 5))
        await inbox.has("4")
        # The running one, and the one that was settled behind it, are known.
        assert inbox.numbers == [0, 1, 2, 3, 2, 4]
        assert not queued.start()
        assert [d.envelope.redelivered for d in inbox.deliveries[4:]] == [True, False]
        assert "retrying" in caplog.text
        running.settle()
        for delivery in inbox.deliveries[4:]:
            delivery.settle()
    assert await committed(kafka.server, prefix) == {"a/0": 5}


def _failing() -> None:
    raise RuntimeError("a bug")


async def test_filters_change_while_the_broker_is_away(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        kafka.proxy() as proxy,
        bus_client(kafka.server, prefix=prefix) as client,
        taker(f"{proxy.host}:{proxy.port}", "a", prefix=prefix) as inbox,
    ):
        await create(kafka.server, f"{prefix}x.1")
        await proxy.refuse()
        proxy.cut()
        changes = [
            asyncio.ensure_future(inbox.consumer.add_filter("x/+")),
            asyncio.ensure_future(inbox.consumer.remove_filter("a")),
        ]
        await eventually(lambda: inbox.stats["kafka.reconnects"] > 2)
        assert not any(change.done() for change in changes)
        await proxy.allow()
        await asyncio.wait_for(asyncio.gather(*changes), 60)
        await publish(client, range(1), "a")
        await publish(client, range(1, 2), "x/1")
        await inbox.get(1)
        assert inbox.numbers == [1]


async def test_closing_is_bounded_while_the_broker_says_nothing(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        kafka.proxy() as proxy,
        bus_client(kafka.server, prefix=prefix) as client,
        taker(
            f"{proxy.host}:{proxy.port}", "a", prefix=prefix, settle=False, commit_interval=600
        ) as inbox,
    ):
        await publish(client, range(3))
        for delivery in await inbox.get(3):
            delivery.settle()
        proxy.blackhole()
        await asyncio.wait_for(inbox.consumer.close(), 60)
        # What was held back is lost with the connections.
        proxy.cut()
        proxy.heal()
        async with taker(kafka.server, "a", prefix=prefix) as later:
            await later.get(3)


async def test_a_start_that_is_cancelled_leaves_nothing_behind(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with bus_client(kafka.server, prefix=prefix) as client:
        for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
            async with taker(kafka.server, "a", prefix=prefix, start=False) as inbox:
                starting = asyncio.ensure_future(inbox.consumer.start())
                # Somewhere on its way, wherever that is.
                await asyncio.wait({starting}, timeout=delay)
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        await publish(client, range(1))
        async with taker(kafka.server, "a", prefix=prefix) as inbox:
            await inbox.get(1)
