"""Members of Kafka consumer groups: partitions that come and go."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.commit import OffsetFetchRequest

from spa_dat.errors import ConnectionLost
from spa_dat.testing import Kafka, Proxy
from spa_dat.transports import DeliveryState, Envelope
from spa_dat.transports.kafka import _bus
from support.kafka_bus import BusClient, admin, bus_client, create, new_prefix
from support.kafka_consuming import Taker, committed, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka


async def publish(client: BusClient, numbers: range, topic: str = "a") -> None:
    posts = [
        client.bus.post(Envelope(topic=topic, payload=b"%d" % number, key=str(number)))
        for number in numbers
    ]
    await asyncio.wait_for(asyncio.gather(*posts), 60)


def all_of(*takers: Taker) -> list[int]:
    return sorted(number for one in takers for number in one.numbers)


def is_paired(one: Taker) -> bool:
    """Return whether it was told to resume after each time that it was told to hold."""
    pairs = ["hold", "resume, redelivered"] * (len(one.events) // 2)
    return one.events == pairs


async def test_what_is_committed_is_asked_for_all_partitions_at_once(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, asked = new_prefix(), 0
    await create(kafka.server, f"{prefix}a", 20)
    original = AIOKafkaClient.send

    async def send(client: Any, node: Any, request: Any, **options: Any) -> Any:
        nonlocal asked
        asked += isinstance(request, OffsetFetchRequest)
        return await original(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    async with bus_client(kafka.server, prefix=prefix) as client:
        # Nothing is committed at first, and all of it then.
        for _ in range(2):
            async with taker(kafka.server, "a", prefix=prefix) as inbox:
                await publish(client, range(100))
                await inbox.get(100)
                assert len(inbox.numbers) == 100
    # The library has asked for some before the answer is there.
    assert asked < 12


async def test_a_member_more_takes_over_what_is_committed_and_nothing_runs_twice(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 4)
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        # By time nothing would be committed: what is, is because of the rebalance.
        taker(kafka.server, "a", prefix=prefix, commit_interval=600) as one,
    ):
        await publish(client, range(100))
        await one.get(100)
        async with taker(kafka.server, "a", prefix=prefix, instance="1") as two:
            await eventually(lambda: (len(one.partitions), len(two.partitions)) == (2, 2))
            await publish(client, range(100, 200))
            await eventually(lambda: len(all_of(one, two)) >= 200)
            assert all_of(one, two) == list(range(200))
            assert len(two.numbers) > 10
        assert is_paired(one)


@pytest.mark.parametrize("stays", [True, False])
async def test_unsettled_records_hold_commits_back_across_a_rebalance(
    kafka: Kafka, stays: bool
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    # The one partition goes to the first name.
    names = ("0", "1") if stays else ("1", "0")
    options: dict[str, Any] = {"prefix": prefix, "settle": False, "rebalance_timeout": 0.5}
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", instance=names[0], **options) as one,
    ):
        await publish(client, range(10))
        old = list(await one.get(10))
        running = old[3]
        running.start()
        for number in (0, 1, 2, 5):
            old[number].settle()
        async with taker(kafka.server, "a", instance=names[1], **options) as two:
            # Elsewhere nobody knows what was settled behind the gap, or still runs.
            again = [4, 6, 7, 8, 9] if stays else [3, 4, 5, 6, 7, 8, 9]
            await eventually(lambda: one.numbers[10:] + two.numbers == again)
            assert await committed(kafka.server, prefix) == {"a/0": 3}
            # Of the assignment that is over.
            for delivery in old:
                if delivery is not running:
                    delivery.settle()
            await publish(client, range(10, 11))
            await eventually(lambda: one.numbers[10:] + two.numbers == [*again, 10])
            commits = one.stats["kafka.commits"] + two.stats["kafka.commits"]
            for delivery in [*one.deliveries[10:], *two.deliveries]:
                delivery.settle()
            running.settle()
            await eventually(
                lambda: one.stats["kafka.commits"] + two.stats["kafka.commits"] > commits
            )
            assert await committed(kafka.server, prefix) == {"a/0": 11}


async def test_a_running_handler_is_waited_for_before_partitions_are_given_up(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, settle=False, rebalance_timeout=30) as one,
    ):
        await publish(client, range(2))
        running, queued = await one.get(2)
        assert running.start()
        async with taker(
            kafka.server, "a", prefix=prefix, instance="1", start=False, rebalance_timeout=30
        ) as two:
            starting = asyncio.ensure_future(two.consumer.start())
            await eventually(lambda: one.events == ["hold"])
            assert not starting.done()
            running.settle()
            await asyncio.wait_for(starting, 60)
            await eventually(lambda: one.events == ["hold", "resume, redelivered"])
            assert queued.state is DeliveryState.WITHDRAWN
            await eventually(lambda: len(one.deliveries) + len(two.deliveries) == 3)
            assert [*one.numbers[2:], *two.numbers] == [1]


async def test_more_members_than_partitions(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix) as one,
        taker(kafka.server, "a", prefix=prefix, instance="1") as two,
        taker(kafka.server, "a", prefix=prefix, instance="2") as three,
    ):
        members = (one, two, three)
        await eventually(lambda: sum(len(member.partitions) for member in members) == 1)
        await publish(client, range(20))
        await eventually(lambda: len(all_of(*members)) == 20)
        assert all(map(is_paired, members))
        (busy,) = (member for member in members if member.numbers)
        idle = [member for member in members if member is not busy]
        await busy.consumer.close()
        async with taker(kafka.server, "a", prefix=prefix, instance="3", session_timeout=7):
            await publish(client, range(20, 30))
        assert all(map(is_paired, idle))


async def test_a_name_that_comes_back_for_other_topics_gets_them(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        async with taker(kafka.server, "a", "b", prefix=prefix) as before:
            await publish(client, range(1), "a")
            await before.get(1)
        await publish(client, range(1, 2), "b")
        await publish(client, range(2, 3), "c")
        async with taker(kafka.server, "b", "c", prefix=prefix) as after:
            await after.get(2)
            assert sorted(after.numbers) == [1, 2]
            assert after.stats["kafka.memberships_lost"] == 0
        async with taker(kafka.server, "+", prefix=prefix) as every:
            await publish(client, range(3, 4), "a")
            await every.get(1)
            assert every.numbers == [3]
            # It left by itself.
            assert every.stats["kafka.rebalances"] == 1
            assert every.stats["kafka.memberships_lost"] == 0


async def test_filters_that_change_often_are_no_lost_memberships(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix) as inbox,
    ):
        for number in range(8):
            await inbox.consumer.add_filter(f"b/{number}")
            await inbox.consumer.remove_filter(f"b/{number}")
        # Both while the other one is on its way.
        await asyncio.gather(
            inbox.consumer.add_filter("c"),
            inbox.consumer.add_filter("d"),
            inbox.consumer.remove_filter("a"),
        )
        await publish(client, range(1), "c")
        await publish(client, range(1, 2), "d")
        await publish(client, range(2, 3), "a")
        await inbox.get(2)
        assert sorted(inbox.numbers) == [0, 1]
        assert inbox.client.fatal == []
        assert inbox.stats["kafka.memberships_lost"] == 0
        await inbox.consumer.remove_filter("c")
        await inbox.consumer.remove_filter("d")
        assert is_paired(inbox)
        await inbox.consumer.add_filter("a")
        await inbox.has("2")
        assert is_paired(inbox)


async def test_a_pattern_takes_new_topics_from_their_start_and_repeats_nothing(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "x/+", "fixed", prefix=prefix, commit_interval=600) as one,
        taker(
            kafka.server, "x/+", "fixed", prefix=prefix, instance="1", commit_interval=600
        ) as two,
    ):

        def has(count: int) -> bool:
            return len(all_of(one, two)) >= count

        await publish(client, range(10), "fixed")
        for topic in range(4):
            await publish(client, range(10 + 10 * topic, 20 + 10 * topic), f"x/{topic}")
            await eventually(functools.partial(has, 20 + 10 * topic))
        await publish(client, range(50, 51), "x/0")
        await publish(client, range(51, 52), "fixed")
        await eventually(lambda: {50, 51} <= set(all_of(one, two)))
        assert all_of(one, two) == list(range(52))
        await publish(client, range(99, 100), "x")
        await publish(client, range(99, 100), "x/0/y")
        await publish(client, range(52, 53), "x/1")
        await eventually(lambda: 52 in all_of(one, two))
        assert 99 not in all_of(one, two)


@pytest.mark.parametrize("back", [False, True])
async def test_new_partitions_are_noticed(kafka: Kafka, back: bool) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with bus_client(kafka.server, prefix=prefix) as client:
        if back:
            # The leader of a group that comes back is not told that it is.
            async with taker(kafka.server, "a", prefix=prefix):
                pass
        async with taker(kafka.server, "a", prefix=prefix) as inbox:
            async with admin(kafka.server) as operator:
                await operator.create_partitions({f"{prefix}a": NewPartitions(3)})
            await eventually(lambda: inbox.partitions == [0, 1, 2])
            await publish(client, range(30))
            await inbox.get(30)


async def test_a_topic_that_is_recreated_is_read_from_its_start(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", "b", prefix=prefix) as inbox,
    ):
        await publish(client, range(20))
        await inbox.get(20)
        async with admin(kafka.server) as operator:
            await operator.delete_topics([f"{prefix}a"])
        await publish(client, range(20, 25), "b")
        await inbox.get(25)
        await eventually(lambda: len(inbox.partitions) == 1)
        await create(kafka.server, f"{prefix}a")
        async with bus_client(kafka.server, prefix=prefix) as later:
            await publish(later, range(25, 30))
            await inbox.get(30)
        assert inbox.numbers == list(range(30))


async def test_closing_in_the_middle_of_a_rebalance_is_quick(kafka: Kafka) -> None:
    prefix = new_prefix()
    options: dict[str, Any] = {"prefix": prefix, "rebalance_timeout": 300.0}
    await create(kafka.server, f"{prefix}a")
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", settle=False, **options) as one,
        taker(kafka.server, "a", start=False, instance="1", **options) as two,
    ):
        await publish(client, range(2))
        settled, running = await one.get(2)
        settled.settle()
        running.start()
        starting = asyncio.ensure_future(two.consumer.start())
        await eventually(lambda: one.events == ["hold"])
        await asyncio.wait_for(one.consumer.close(), 60)
        assert await committed(kafka.server, prefix) == {"a/0": 1}
        await asyncio.wait_for(two.consumer.close(), 60)
        with pytest.raises(ConnectionLost):
            await starting


async def test_a_filter_change_that_waits_for_a_handler_ends_with_the_consumer(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, settle=False, rebalance_timeout=300) as inbox,
    ):
        await publish(client, range(1))
        (running,) = await inbox.get(1)
        running.start()
        adding = asyncio.ensure_future(inbox.consumer.add_filter("b"))
        await eventually(lambda: inbox.events == ["hold"])
        await asyncio.wait_for(inbox.consumer.close(), 60)
        with pytest.raises(ConnectionLost, match="closed"):
            await adding
        assert inbox.library is None


async def test_a_member_whose_handler_hangs_leaves_its_partitions_to_others(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    options: dict[str, Any] = {"prefix": prefix, "rebalance_timeout": 1.0}
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(
            kafka.server,
            "a",
            settle=False,
            max_poll_interval=1.0,
            subscription={"window": 1},
            **options,
        ) as one,
        taker(kafka.server, "a", instance="1", **options) as two,
    ):
        await eventually(lambda: (one.partitions, two.partitions) in (([0], [1]), ([1], [0])))
        await publish(client, range(20))
        await one.get(1)
        hanging = one.deliveries[-1]
        hanging.start()
        await eventually(lambda: two.partitions == [0, 1])
        await eventually(lambda: set(two.numbers) == set(range(20)))
        assert "nothing was settled for 1 s" in caplog.text
        assert one.client.fatal == []
        seen = len(one.deliveries)
        one.on_delivery = lambda delivery: delivery.settle()
        hanging.settle()
        await eventually(lambda: len(one.partitions) == 1)
        await publish(client, range(20, 60))
        await eventually(lambda: set(all_of(one, two)) == set(range(60)))
        assert len(one.deliveries) > seen
        assert is_paired(one)


async def test_a_member_that_was_away_too_long_comes_back(
    kafka: Kafka, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR, "spa_dat")
    # Its session has expired: that is no sign of another program, however little patience it has.
    monkeypatch.setattr(_bus, "_LEAST_PATIENCE", 1)
    monkeypatch.setattr(_bus, "_MOST_PATIENCE", 2)
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    options: dict[str, Any] = {"prefix": prefix, "session_timeout": 1.0}
    proxy: Proxy = kafka.proxy()
    async with (
        proxy,
        bus_client(kafka.server, prefix=prefix) as client,
        taker(f"{proxy.host}:{proxy.port}", "a", settle=False, **options) as one,
        taker(kafka.server, "a", instance="1", **options) as two,
    ):
        await eventually(lambda: (len(one.partitions), len(two.partitions)) == (1, 1))
        await publish(client, range(20))
        await eventually(lambda: len(one.deliveries) + len(two.deliveries) >= 20)
        running = one.deliveries[-1]
        running.start()
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: two.partitions == [0, 1])
        await eventually(lambda: set(two.numbers) == set(range(20)))
        # What comes once more is settled, from the first message of its new session on.
        one.on_delivery = lambda delivery: delivery.settle()
        await proxy.allow()
        await eventually(lambda: (len(one.partitions), len(two.partitions)) == (1, 1))
        assert one.stats["kafka.memberships_lost"] >= 1
        assert one.client.fatal == []
        running.settle()
        await publish(client, range(20, 60))
        await eventually(lambda: set(range(20, 60)) <= set(all_of(one, two)))
        assert one.client.fatal == []
        # On a busy machine a session may expire again: what was settled in it is not committed,
        # and comes once more to whoever is a member then.
        await eventually(lambda: is_paired(one))

        async def all_committed() -> bool:
            return sum((await committed(kafka.server, prefix)).values()) == 60

        await eventually(all_committed)
