"""Consuming from Kafka as the only member of a group: what is handed out, and what is committed."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from spa_dat.errors import ConnectFailed, ConnectionLost, UnknownTopic
from spa_dat.testing import Kafka
from spa_dat.transports import DeliveryState, Envelope
from spa_dat.transports.kafka.consuming import _consumer_sessions, _group_member
from support.kafka_bus import BusClient, admin, bus_client, create, new_prefix, publish_at
from support.kafka_consuming import committed, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka


async def publish(client: BusClient, numbers: range, topic: str = "a", **fields: Any) -> None:
    posts = [
        client.bus.post(Envelope(topic=topic, payload=b"%d" % number, **fields))
        for number in numbers
    ]
    await asyncio.wait_for(asyncio.gather(*posts), 60)


async def test_nothing_is_committed_past_what_is_not_settled(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, settle=False) as inbox,
    ):
        await publish(client, range(10))
        deliveries = await inbox.get(10)
        for number in (0, 1, 3, 9, 5):
            deliveries[number].settle()

        async def offset() -> int:
            return (await committed(kafka.server, prefix)).get("a/0", 0)

        await eventually(lambda: inbox.stats["kafka.commits"])
        assert await offset() == 2
        deliveries[2].settle()
        await eventually(lambda: inbox.stats["kafka.commits"] == 2)
        assert await offset() == 4
        for delivery in deliveries:
            delivery.settle()
    assert (await committed(kafka.server, prefix)) == {"a/0": 10}
    async with taker(kafka.server, "a", prefix=prefix) as later:
        async with bus_client(kafka.server, prefix=prefix) as client:
            await publish(client, range(10, 12))
        await later.get(2)
        assert later.numbers == [10, 11]


async def test_what_was_not_settled_comes_again_to_the_next_program(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        await publish(client, range(5))
        async with taker(kafka.server, "a", prefix=prefix, settle=False) as inbox:
            deliveries = await inbox.get(5)
            deliveries[0].settle()
            deliveries[2].settle()
        # Too late: it is somebody else's now.
        deliveries[1].settle()
        async with taker(kafka.server, "a", prefix=prefix) as later:
            await later.get(4)
            assert later.numbers == [1, 2, 3, 4]


async def test_a_restart_within_the_session_keeps_the_membership(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        await create(kafka.server, f"{prefix}a", 4)
        async with taker(kafka.server, "a", prefix=prefix, instance="other") as other:
            async with taker(kafka.server, "a", prefix=prefix) as inbox:
                await eventually(lambda: (len(inbox.partitions), len(other.partitions)) == (2, 2))
                mine, rebalances = inbox.partitions, other.stats["kafka.rebalances"]
            async with taker(kafka.server, "a", prefix=prefix) as inbox:
                assert inbox.partitions == mine
                await publish(client, range(40), key="k")
                await publish(client, range(40, 80), key="l")
                await eventually(lambda: len(inbox.numbers + other.numbers) >= 80)
            assert other.stats["kafka.rebalances"] == rebalances
            assert sorted(inbox.numbers + other.numbers) == list(range(80))


async def test_records_that_make_no_message_hold_nothing_up(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "spa_dat")
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    raw: list[dict[str, Any]] = [
        {"value": b"plain"},
        {"value": b"\xff", "headers": [("x", b"\xff")]},
        {"value": b"expired", "headers": [("ttl_ms", b"1")], "timestamp_ms": 1_000},
        {"value": None, "key": b"k"},
        {"value": b"poison", "headers": [("content-type", b"x"), ("reply_to", b"\xff\x00")]},
        {"value": b"end", "key": b"\xff"},
    ]
    async with AIOKafkaProducer(bootstrap_servers=kafka.server) as producer:
        for record in raw:
            await producer.send_and_wait(f"{prefix}a", **record)
    async with taker(kafka.server, "a", prefix=prefix, start=False) as inbox:
        consumer: Any = inbox.consumer
        codec = consumer._sessions._dispatcher._codec
        decode = codec.decode

        def strict(record: Any, *args: Any) -> Any:
            if record.value == b"poison":
                raise ValueError("not\nmine")
            return decode(record, *args)

        monkeypatch.setattr(codec, "decode", strict)
        await inbox.consumer.start()
        await eventually(lambda: len(inbox.deliveries) >= 4)
        payloads = [delivery.envelope.payload for delivery in inbox.deliveries]
        assert payloads == [b"plain", b"\xff", b"", b"end"]
        assert [d.envelope.tombstone for d in inbox.deliveries] == [False, False, True, False]
        assert inbox.stats["messages.malformed"] == 1
    assert await committed(kafka.server, prefix) == {"a/0": 6}
    assert f"record 4 of partition 0 of topic '{prefix}a' cannot be read" in caplog.text


async def test_records_of_transactions_leave_gaps_that_are_committed_over(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.server, transactional_id=f"{prefix}t"
    ) as producer:
        for good in (True, False, True):
            await producer.begin_transaction()
            await producer.send_and_wait(f"{prefix}a", b"good" if good else b"bad")
            if good:
                await producer.commit_transaction()
            else:
                await producer.abort_transaction()
    async with taker(kafka.server, "a", prefix=prefix) as inbox:
        await inbox.get(2)
        assert inbox.payloads == ["good", "good"]
        # Each transaction has ended with a record of its own; a group that has read all has no lag.
        await eventually(lambda: inbox.stats["kafka.commits"])

        async def place() -> bool:
            return await committed(kafka.server, prefix) == {"a/0": 6}

        await eventually(place)
        commits = inbox.stats["kafka.commits"]
        async with AIOKafkaProducer(
            bootstrap_servers=kafka.server, transactional_id=f"{prefix}t"
        ) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(f"{prefix}a", b"bad")
            await producer.abort_transaction()

        async def end() -> bool:
            return await committed(kafka.server, prefix) == {"a/0": 8}

        await eventually(end)
        # Once for each, and not again and again.
        assert inbox.stats["kafka.commits"] <= commits + 2


async def test_what_is_not_settled_is_not_committed_past(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.server, transactional_id=f"{prefix}t"
    ) as producer:
        for good in (True, True, False):
            await producer.begin_transaction()
            await producer.send_and_wait(f"{prefix}a", b"good" if good else b"bad")
            if good:
                await producer.commit_transaction()
            else:
                await producer.abort_transaction()
    async with taker(kafka.server, "a", prefix=prefix, settle=False) as inbox:
        first, second = await inbox.get(2)
        await eventually(lambda: inbox.library._fetcher._records == {})
        first.settle()

        async def place(expected: int) -> bool:
            return await committed(kafka.server, prefix) == {"a/0": expected}

        await eventually(lambda: place(1))
        for _ in range(20):
            assert await place(1)
        second.settle()
        await eventually(lambda: place(6))


async def test_a_partition_with_a_stuck_record_is_paused_and_the_others_go_on(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(
            kafka.server,
            "a",
            prefix=prefix,
            settle=False,
            max_uncommitted=50,
            subscription={"window": 20},
        ) as inbox,
    ):
        stuck: list[Any] = []

        def settle(delivery: Any) -> None:
            delivery.start()
            if delivery.envelope.partition == 0 and not stuck:
                stuck.append(delivery)
            else:
                delivery.settle()

        inbox.on_delivery = settle
        keys = [b"a", b"b", b"c", b"d", b"e", b"f"]
        for key in keys:
            await publish(client, range(200), key=key.decode())
        await eventually(lambda: inbox.stats["kafka.partitions_stuck"] == 1)

        def seen(partition: int) -> int:
            return sum(d.envelope.partition == partition for d in inbox.deliveries)

        async def total(partition: int) -> int:
            place = TopicPartition(f"{prefix}a", partition)
            ends: dict[TopicPartition, int] = await inbox.library.end_offsets([place])
            return ends[place]

        ends = [await total(0), await total(1)]
        assert min(ends) > 100
        await eventually(lambda: seen(1) == ends[1])
        assert 50 <= seen(0) < 50 + 20
        assert f"offset 0 of partition 0 of topic '{prefix}a' is not settled" in caplog.text
        stuck[0].settle()
        await eventually(lambda: seen(0) == ends[0])
        # Once for each time that it was stuck.
        assert inbox.stats["kafka.partitions_stuck"] == 1
    assert await committed(kafka.server, prefix) == {"a/0": ends[0], "a/1": ends[1]}


async def test_stopping_the_intake_leaves_the_rest_to_the_next_and_fetches_no_more(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, settle=False) as inbox,
    ):
        await publish(client, range(3))
        deliveries = await inbox.get(3)
        inbox.consumer.stop_intake()
        seeks: list[int] = []
        library = inbox.library
        seek = library.seek

        def noted(place: TopicPartition, offset: int) -> None:
            seeks.append(offset)
            seek(place, offset)

        library.seek = noted
        await publish(client, range(3, 6))
        await eventually(lambda: seeks == [3])
        for delivery in deliveries:
            delivery.settle()
        await eventually(lambda: inbox.stats["kafka.commits"])
        await publish(client, range(6, 9))
        # It is asked for no more, and not over and over.
        assert seeks == [3]
        assert len(inbox.deliveries) == 3
        await inbox.consumer.close()
        async with taker(kafka.server, "a", prefix=prefix) as later:
            await later.get(6)
            assert later.numbers == list(range(3, 9))


async def test_a_latest_group_starts_at_the_end_once_and_for_all(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 3)
    async with bus_client(kafka.server, prefix=prefix) as client:
        await publish(client, range(100))
        async with taker(kafka.server, "a", prefix=prefix, offset_reset="latest"):
            pass
        # Nobody is there, and nothing was ever handled.
        await publish(client, range(100, 130))
        async with taker(kafka.server, "a", prefix=prefix, offset_reset="latest") as inbox:
            await publish(client, range(130, 140))
            await inbox.get(40)
            assert sorted(inbox.numbers) == list(range(100, 140))
        # The group knows the rest of what it reads: what is new to it is read from its start.
        await publish(client, range(140, 145), "b")
        async with taker(kafka.server, "a", "b", prefix=prefix, offset_reset="latest") as inbox:
            await inbox.get(5)
            assert inbox.numbers == list(range(140, 145))


async def test_members_of_a_latest_group_that_start_together_skip_the_same(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 4)
    async with bus_client(kafka.server, prefix=prefix) as client:
        for key in "abcdefgh":
            await publish(client, range(100), key=key)
        options: dict[str, Any] = {"prefix": prefix, "offset_reset": "latest", "start": False}
        async with (
            taker(kafka.server, "a", **options) as one,
            taker(kafka.server, "a", instance="1", **options) as two,
        ):
            await asyncio.gather(one.consumer.start(), two.consumer.start())
            for key in "abcdefgh":
                await publish(client, range(100, 110), key=key)
            await eventually(lambda: len(one.numbers + two.numbers) >= 80)
            assert sorted(one.numbers + two.numbers) == sorted([*range(100, 110)] * 8)


@pytest.mark.parametrize("kind", ["time", "time in a zone", "while"])
async def test_a_new_group_starts_with_what_is_not_older_than_a_time(
    kafka: Kafka, kind: str
) -> None:
    prefix = new_prefix()
    now = datetime.now(UTC)
    hour_ago = now - timedelta(hours=1)
    reset = {
        "time": hour_ago.isoformat(),
        "time in a zone": hour_ago.astimezone(timezone(timedelta(hours=5.5))).isoformat(),
        "while": "60m",
    }[kind]
    base = now.timestamp()
    await create(kafka.server, f"{prefix}a", 3)
    # An older one after a newer one is read; a partition with old ones only is not.
    first = {1: base - 9_000, 2: base - 3_900, 3: base - 3_000, 4: base - 9_000, 5: base}
    await publish_at(kafka.server, f"{prefix}a", 0, first)
    await publish_at(kafka.server, f"{prefix}a", 1, {11: base - 9_000, 12: base - 3_900})
    async with bus_client(kafka.server, prefix=prefix) as client:
        async with taker(kafka.server, "a", prefix=prefix, offset_reset=reset) as inbox:
            await publish_at(kafka.server, f"{prefix}a", 1, {13: base - 9_000})
            await inbox.get(4)
            assert sorted(inbox.numbers) == [3, 4, 5, 13]
        # Now the group has its place, which no option moves.
        await publish_at(kafka.server, f"{prefix}a", 2, {21: base - 9_000})
        async with taker(kafka.server, "a", prefix=prefix, offset_reset=reset) as later:
            await publish(client, range(30, 31))
            await later.get(2)
            assert sorted(later.numbers) == [21, 30]


async def test_a_new_group_starts_with_the_very_millisecond(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    base = 1_700_000_000.0
    times = {1: base - 0.001, 2: base, 3: base + 0.001}
    await publish_at(kafka.server, f"{prefix}a", 0, times)
    for microseconds, expected in ((0, [2, 3]), (1, [3])):
        reset = (
            datetime.fromtimestamp(base, UTC) + timedelta(microseconds=microseconds)
        ).isoformat()
        named = {"name": f"from{microseconds}"}
        async with taker(
            kafka.server, "a", prefix=prefix, subscription=named, offset_reset=reset
        ) as inbox:
            await inbox.get(len(expected))
            assert inbox.numbers == expected


@pytest.mark.parametrize("reset", ["earliest", "latest", "1h"])
async def test_where_its_place_is_gone_a_group_goes_on_with_what_is_left(
    kafka: Kafka, reset: str
) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        await create(kafka.server, f"{prefix}a")
        async with taker(kafka.server, "a", prefix=prefix, offset_reset=reset) as inbox:
            await publish(client, range(5))
            await inbox.get(5)
        await publish(client, range(5, 20))
        async with admin(kafka.server) as operator:
            await operator.delete_records({TopicPartition(f"{prefix}a", 0): RecordsToDelete(10)})
        async with taker(kafka.server, "a", prefix=prefix, offset_reset=reset) as later:
            await later.get(10)
            assert later.numbers == list(range(10, 20))
            assert later.stats["kafka.records_removed"] == 5


async def test_on_receipt_it_is_committed_before_it_is_handed_out(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        await publish(client, range(10))
        async with taker(
            kafka.server, "a", prefix=prefix, settle=False, subscription={"qos": 0}
        ) as inbox:
            confirmed: list[int] = []
            inbox.on_delivery = lambda _: confirmed.append(inbox.stats["kafka.commits"])
            await inbox.get(10)
            assert {delivery.token for delivery in inbox.deliveries} == {-1}
            assert min(confirmed) > 0
            assert await committed(kafka.server, prefix) == {"a/0": 10}


async def test_what_can_not_be_committed_on_receipt_is_not_handed_out(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix) as client,
        taker(kafka.server, "a", prefix=prefix, subscription={"qos": 0}) as inbox,
    ):
        coordinator = inbox.library._coordinator
        refused: list[object] = []

        async def refuse(*args: object) -> None:
            refused.append(args)
            raise RuntimeError("no")

        monkeypatch.setattr(coordinator, "_do_commit_offsets", refuse)
        confirmed: list[int] = []
        inbox.on_delivery = lambda _: confirmed.append(inbox.stats["kafka.commits"])
        await publish(client, range(3))
        # The next consumer of the library can.
        await inbox.get(3)
        assert refused
        assert min(confirmed) > 0
        assert inbox.numbers == [0, 1, 2]


async def test_a_start_without_the_topic_says_so(kafka: Kafka) -> None:
    async with taker(
        kafka.server,
        "a/b",
        prefix=new_prefix(),
        start=False,
        create_topics="own",
        start_timeout=3,
    ) as inbox:
        with pytest.raises(UnknownTopic, match=r"a\.b.*create it"):
            await asyncio.wait_for(inbox.consumer.start(), 60)


async def test_a_start_that_waits_for_its_topic_says_so_meanwhile(kafka: Kafka) -> None:
    async with taker(
        kafka.server, "a/b", prefix=new_prefix(), start=False, create_topics="own"
    ) as inbox:
        starting = asyncio.ensure_future(inbox.consumer.start())
        await eventually(lambda: "does not exist on the cluster" in str(inbox.consumer.trouble))
        starting.cancel()
        await asyncio.wait([starting])


async def test_a_start_without_a_broker_says_so() -> None:
    async with taker("127.0.0.1:1", "a", prefix="", start=False, start_timeout=3) as inbox:
        # On a busy machine the last attempt may run out of time before it is refused.
        with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:1.*(refused|no answer in time)"):
            await asyncio.wait_for(inbox.consumer.start(), 60)


async def test_closing_ends_a_start_that_waits(kafka: Kafka) -> None:
    async with taker("127.0.0.1:1", "a", prefix="", start=False, start_timeout=60) as inbox:
        starting = asyncio.ensure_future(inbox.consumer.start())
        await eventually(lambda: inbox.stats["kafka.reconnects"])
        await inbox.consumer.close()
        with pytest.raises(ConnectionLost, match=r"app\.0\.actor.*closed"):
            await asyncio.wait_for(starting, 60)


async def test_closing_waits_for_no_commit_while_the_cluster_is_away(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_group_member, "COMMIT_TIMEOUT", 3_600.0)
    monkeypatch.setattr(_consumer_sessions, "_LONGEST_END", 3_600.0)
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        await publish(client, range(3))
    async with (
        kafka.proxy() as proxy,
        taker(f"{proxy.host}:{proxy.port}", "a", prefix=prefix, settle=False) as inbox,
    ):
        deliveries = await inbox.get(3)
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: "no connection" in (inbox.consumer.trouble or ""))
        for delivery in deliveries:
            delivery.settle()
        await asyncio.wait_for(inbox.consumer.close(), 60)


async def test_settling_after_the_end_changes_nothing(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as client:
        await publish(client, range(3))
        async with taker(kafka.server, "a", prefix=prefix, settle=False) as inbox:
            deliveries = await inbox.get(3)
            assert all(delivery.state is DeliveryState.QUEUED for delivery in deliveries)
        for delivery in deliveries:
            delivery.settle()
        assert await committed(kafka.server, prefix) == {}


@pytest.mark.parametrize("qos", [0, 1])
async def test_what_has_expired_is_passed_over_and_counted(
    kafka: Kafka, qos: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A request is also named: else two hosts whose clocks differ would fail without a word."""
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with AIOKafkaProducer(bootstrap_servers=kafka.server) as producer:
        request = ("reply_to", b"replies")
        for value, *headers in (
            (b"old", ("ttl_ms", b"0")),
            (b"old", ("ttl_ms", b"0"), request),
            (b"new", ("ttl_ms", b"3600000")),
        ):
            await producer.send_and_wait(f"{prefix}a", value, headers=headers)
    async with taker(kafka.server, "a", prefix=prefix, subscription={"qos": qos}) as inbox:
        await inbox.get(1)
        assert inbox.payloads == ["new"]
        assert inbox.stats["messages.expired"] == 2
    assert await committed(kafka.server, prefix) == {"a/0": 3}
    assert caplog.text.count("had expired when it was read") == 1
