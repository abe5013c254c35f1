"""The simulated Kafka cluster, seen by the real client library and by the real transport."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.producer import message_accumulator as accumulator
from aiokafka.record.util import calc_crc32c

from spa_dat.errors import UnknownTopic
from spa_dat.harness import VirtualEnvironment, VirtualLoop
from spa_dat.harness.kafka_cluster import (
    AppendedRecord,
    Cluster,
    ErrorCode,
    GroupState,
    RequestRefused,
    virtual_time,
)
from spa_dat.harness.kafka_cluster._partition_log import Log
from spa_dat.harness.kafka_cluster._record_batches import encode_record
from spa_dat.harness.loop._network import Network
from spa_dat.testing.conformance import Inbox
from spa_dat.transports import Envelope, Identity, KafkaConfig, Subscription, Surroundings
from spa_dat.transports.kafka import KafkaProvider
from spa_dat.transports.kafka.consuming._history import read_history
from support.simulated import SERVER, SimulatedCluster, world
from support.waiting import eventually

pytestmark = pytest.mark.virtual


async def take(consumer: Any, count: int) -> list[Any]:
    records: list[Any] = []
    async with asyncio.timeout(60):
        while len(records) < count:
            for batch in (await consumer.getmany(timeout_ms=1000)).values():
                records += batch
    return records


async def admin() -> AIOKafkaAdminClient:
    client = AIOKafkaAdminClient(bootstrap_servers=SERVER)
    await client.start()
    return client


# Records.


async def test_what_is_published_is_read_in_the_order_of_each_partition() -> None:
    with world() as here:
        here.cluster.create_topic("t", 3)
        async with here.producer() as producer, here.consumer("t") as consumer:
            for number in range(12):
                key = b"%d" % (number % 4)
                await producer.send("t", b"%d" % number, key=key, headers=[("h", b"v")])
            records = await take(consumer, 12)
        by_key: dict[bytes, list[int]] = {}
        for record in records:
            by_key.setdefault(record.key, []).append(int(record.value))
            assert record.headers == (("h", b"v"),)
        assert by_key == {b"%d" % n: [n, n + 4, n + 8] for n in range(4)}
        stored = here.cluster.records("t")
        assert len(stored) == 12
        assert [record.number for record in stored] == sorted(r.number for r in stored)
        ends = [here.cluster.end_offset("t", number) for number in range(3)]
        assert ends == [len(log.records) for log in here.cluster.topics["t"].partitions]


async def test_time_is_that_of_the_loop() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        await asyncio.sleep(3600)
        async with here.producer() as producer:
            sent = await producer.send_and_wait("t", b"x")
        (record,) = here.cluster.records("t")
        assert record.timestamp == sent.timestamp == int(here.cluster.now() * 1000)


async def test_a_fetch_waits_for_records_and_not_longer_than_asked() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        loop = here.loop
        async with here.consumer("t", fetch_max_wait_ms=500) as consumer:
            start = loop.time()
            assert await consumer.getmany(timeout_ms=2000) == {}
            assert loop.time() - start == pytest.approx(2.0)
            reading = asyncio.ensure_future(take(consumer, 1))
            await asyncio.sleep(0.7)
            here.cluster.append("t", value=b"x")
            sent = loop.time()
            await reading
            assert loop.time() == sent


async def test_offsets_are_found_by_time_and_lost_ones_are_out_of_range() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        place = TopicPartition("t", 0)
        for number in range(5):
            here.cluster.append("t", value=b"%d" % number, timestamp=1000 * number)
        async with here.consumer(auto_offset_reset="none") as consumer:
            consumer.assign([place])
            found = await consumer.offsets_for_times({place: 2500})
            assert (found[place].offset, found[place].timestamp) == (3, 3000)
            assert await consumer.offsets_for_times({place: 9000}) == {place: None}
            client = await admin()
            await client.delete_records({place: RecordsToDelete(before_offset=2)})
            await client.close()
            assert await consumer.beginning_offsets([place]) == {place: 2}
            assert await consumer.end_offsets([place]) == {place: 5}
            consumer.seek(place, 1)
            with pytest.raises(kafka.OffsetOutOfRangeError):
                await consumer.getone()
            consumer.seek(place, 2)
            assert [record.value for record in await take(consumer, 3)] == [b"2", b"3", b"4"]


async def test_the_history_of_its_topics_is_read_from_a_time() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        for number in range(6):
            here.cluster.append("t", number % 2, value=b"%d" % number, timestamp=1000 * number)
        here.cluster.append("t", 0, value=b"older", timestamp=500)
        config = KafkaConfig(SERVER)
        found = [it async for it in read_history(config, ["t"], since=2001)]
        assert [(at, envelope.payload) for at, envelope in found] == [
            (3.0, b"3"),
            (4.0, b"4"),
            (0.5, b"older"),
            (5.0, b"5"),
        ]
        found = [it async for it in read_history(config, ["+"], since=1000, until=4000)]
        assert [envelope.payload for _, envelope in found] == [b"1", b"2", b"3"]
        with pytest.raises(UnknownTopic, match="there is no topic 'u'"):
            await anext(read_history(config, ["u"], since=0))


async def test_little_of_each_partition_is_in_memory_while_its_history_is_read() -> None:
    with world() as here:
        here.cluster.create_topic("t", 20)
        for number in range(2_000):
            value = b"%d" % number + b"x" * 10_000
            here.cluster.append("t", number % 20, value=value, timestamp=number)
        sent = 0
        for log in here.cluster.topics["t"].partitions:
            read = log.read

            def counted(
                offset: int, most: int, end: int, *, at_least_one: bool, read: Any = read
            ) -> bytes:
                nonlocal sent
                found: bytes = read(offset, most, end, at_least_one=at_least_one)
                sent += len(found)
                return found

            log.read = counted  # type: ignore[method-assign]
        history = read_history(KafkaConfig(SERVER), ["t"], since=0)
        await anext(history)
        # Of 20 MB.
        assert sent < 3_000_000
        numbers = [int(it.payload.rstrip(b"x")) async for _, it in history]
        assert numbers == list(range(1, 2_000))


async def test_a_batch_that_comes_again_is_stored_once() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        async with here.producer(request_timeout_ms=2000, retry_backoff_ms=50) as producer:
            await producer.send_and_wait("t", b"0")
            # The answers are lost, so that the library sends again what has arrived.
            for wire in here.network.connections:
                wire.down.delay = lambda data, wire=wire: wire.fall_silent() or 0.0
            sent = await producer.send_and_wait("t", b"1")
        assert sent.offset == 1
        assert [record.value for record in here.cluster.records("t")] == [b"0", b"1"]
        assert [detail for _, _, detail in here.happened("duplicate")] == ["1"]


def batch(value: bytes, producer: int = 7, epoch: int = 0, sequence: int = 0) -> bytes:
    builder = accumulator.BatchBuilder(10_000, 0)
    builder.append(timestamp=1, key=None, value=value)
    builder._builder.set_producer_state(producer, epoch, sequence)
    return bytes(builder._build())


def code_of(log: Log, data: bytes) -> ErrorCode:
    with pytest.raises(RequestRefused) as caught:
        log.append(data)
    return caught.value.code


def test_producers_are_held_to_their_order() -> None:
    log = Log("t", 0, 1000)
    assert log.append(batch(b"a"))[0] == 0
    assert log.append(batch(b"b", sequence=1))[0] == 1
    offset, records = log.append(batch(b"a"))
    assert (offset, records) == (0, [])
    assert code_of(log, batch(b"d", sequence=3)) is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert code_of(log, batch(b"e", epoch=1, sequence=2)) is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert log.append(batch(b"f", epoch=1))[0] == 2
    assert code_of(log, batch(b"g", sequence=2)) is ErrorCode.INVALID_PRODUCER_EPOCH
    # One that the partition knows nothing of may begin anywhere.
    assert log.append(batch(b"h", producer=8, sequence=40))[0] == 3
    # Only the last five batches are remembered.
    for number in range(1, 6):
        log.append(batch(b"f", epoch=1, sequence=number))
    assert code_of(log, batch(b"f", epoch=1)) is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


def test_broken_and_large_batches_are_refused() -> None:
    log = Log("t", 0, 200)
    good = encode_record(b"k", b"v", [], 1)
    assert code_of(log, good[:-1] + b"?") is ErrorCode.CORRUPT_MESSAGE
    assert code_of(log, good[:-1]) is ErrorCode.CORRUPT_MESSAGE
    assert code_of(log, b"") is ErrorCode.CORRUPT_MESSAGE
    assert code_of(log, encode_record(None, bytes(200), [], 1)) is ErrorCode.MESSAGE_TOO_LARGE
    assert log.append(good)[1] == [AppendedRecord("t", 0, 0, b"k", b"v", (), 1)]


def test_a_name_of_a_header_may_be_any_bytes() -> None:
    log = Log("t", 0, 1000)
    good = encode_record(None, b"v", [("name", b"x")], 1)
    bad = bytearray(good.replace(b"name", b"na\xffe"))
    # The checksum is over everything behind it.
    bad[17:21] = calc_crc32c(bytes(bad[21:])).to_bytes(4, "big")
    ((record,),) = [log.append(bytes(bad))[1]]
    assert record.headers == (("na\\xffe", b"x"),)


# Topics.


async def test_topics_are_made_grown_and_deleted() -> None:
    with world() as here:
        client = await admin()
        made = await client.create_topics([NewTopic("a", 2, 1), NewTopic("b", 1, 1)])
        assert [code for _, code, _ in made.topic_errors] == [0, 0]
        refused = await client.create_topics([NewTopic("a", 1, 1), NewTopic("?", 1, 1)])
        codes = [code for _, code, _ in refused.topic_errors]
        assert codes == [ErrorCode.TOPIC_ALREADY_EXISTS, ErrorCode.INVALID_TOPIC]
        await client.create_topics([NewTopic("plant.boiler_1", 1, 1)])
        (alike,) = (await client.create_topics([NewTopic("plant.boiler.1", 1, 1)])).topic_errors
        assert alike[1] == ErrorCode.INVALID_TOPIC
        assert "collides with existing topic: plant.boiler_1" in alike[2]
        await client.delete_topics(["plant.boiler_1"])
        await client.create_partitions({"a": NewPartitions(4)})
        assert sorted(await client.list_topics()) == ["a", "b"]
        assert len(here.cluster.topics["a"].partitions) == 4
        here.cluster.append("b", value=b"x")
        await client.delete_topics(["b"])
        assert list(here.cluster.topics) == ["a"]
        with pytest.raises(RequestRefused):
            here.cluster.append("b", value=b"x")
        assert here.cluster.records("b") == []
        await client.close()


async def test_a_topic_that_is_missing_is_made_only_where_that_is_allowed() -> None:
    with world() as here:
        async with here.producer(request_timeout_ms=1000) as producer:
            with pytest.raises(kafka.UnknownTopicOrPartitionError):
                await producer.send("new", b"x")
            here.cluster.auto_create = True
            here.cluster.partitions_default = 3
            await producer.send_and_wait("new", b"x")
        assert len(here.cluster.topics["new"].partitions) == 3


async def test_a_topic_that_is_deleted_does_not_stop_the_clock() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        async with here.consumer("t", metadata_max_age_ms=500) as consumer:
            await consumer.getmany(timeout_ms=100)
            here.cluster.delete_topic("t")
            await consumer.getmany(timeout_ms=5000)
            here.cluster.create_topic("t")
            here.cluster.append("t", value=b"x")
            assert [record.value for record in await take(consumer, 1)] == [b"x"]


# Groups.


def shares(here: SimulatedCluster, group: str = "g") -> list[int]:
    return sorted(len(member.assignment) for member in here.cluster.groups[group].members.values())


async def join(here: SimulatedCluster, **options: Any) -> tuple[Any, Any]:
    entering = here.consumer("t", **{"group_id": "g", "heartbeat_interval_ms": 100, **options})
    return entering, await entering.__aenter__()


async def test_partitions_are_shared_among_members_that_come_and_go() -> None:
    with world() as here:
        here.cluster.create_topic("t", 4)
        async with here.consumer("t", group_id="g", heartbeat_interval_ms=100):
            assert shares(here) == [4]
            async with here.consumer("t", group_id="g", heartbeat_interval_ms=100) as second:
                group = here.cluster.groups["g"]
                assert group.state.value == GroupState.STABLE
                assert shares(here) == [2, 2]
                assert len(second.assignment()) == 2
                assert [m.topics for m in group.members.values()] == [["t"], ["t"]]
            await eventually(lambda: shares(here) == [4])
        assert group.state.value == GroupState.EMPTY
        assert len(here.happened("leave")) == 2
        # None is ever assigned the same number twice.
        generations = [int(detail) for _, detail, _ in here.happened("generation")]
        assert generations == sorted(set(generations))


async def test_a_member_that_dies_is_missed_after_its_session() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        options = {"heartbeat_interval_ms": 100, "session_timeout_ms": 6000}
        first, _ = await join(here, **options)
        second, _ = await join(here, client_id="dies", **options)
        assert shares(here) == [1, 1]
        for wire in list(here.network.connections):
            if wire.name == "dies":
                wire.fall_silent()
        died = here.loop.time()
        await eventually(lambda: shares(here) == [2], timeout=30)
        assert 5.5 < here.loop.time() - died < 7.0
        assert here.happened("expire") == [("dies", "g", "")]
        for wire in list(here.network.connections):
            wire.reset()
        for one in (first, second):
            await one.__aexit__(None, None, None)


async def test_a_static_member_that_returns_gets_what_it_had() -> None:
    with world() as here:
        here.cluster.create_topic("t", 4)
        first, _ = await join(here, group_instance_id="one")
        second, consumer = await join(here, group_instance_id="two")
        had = consumer.assignment()
        generation = here.cluster.groups["g"].generation
        await second.__aexit__(None, None, None)
        again, consumer = await join(here, group_instance_id="two")
        assert consumer.assignment() == had
        group = here.cluster.groups["g"]
        assert group.generation == generation
        assert [member.instance_id for member in group.members.values()] == ["one", "two"]
        assert len(here.happened("return")) == 1
        for one in (first, again):
            await one.__aexit__(None, None, None)


async def test_a_second_one_with_the_same_name_fences_the_first() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        first, old = await join(here, group_instance_id="one")
        generation, member = old._coordinator.generation, old._coordinator.member_id
        second, new = await join(here, group_instance_id="one")
        group = here.cluster.groups["g"]
        with pytest.raises(RequestRefused, match="UNKNOWN_MEMBER_ID"):
            group.heartbeat(member, generation)
        answers: list[ErrorCode] = []
        group.sync(member, "one", generation, [], lambda code, _: answers.append(code))
        assert answers == [ErrorCode.FENCED_INSTANCE_ID]
        assert len(new.assignment()) == 2
        old._closed = True
        for task in (old._coordinator._coordination_task, old._coordinator._heartbeat_task):
            task.cancel()
        await asyncio.sleep(1)
        old._closed = False
        await second.__aexit__(None, None, None)
        await first.__aexit__(None, None, None)


async def test_commits_count_for_members_of_the_generation_only() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        place = TopicPartition("t", 0)
        async with here.consumer("t", group_id="g", heartbeat_interval_ms=100) as consumer:
            await consumer.commit({place: 5})
            assert here.cluster.committed("g") == {("t", 0): 5}
            assert await consumer.committed(place) == 5
            assert await consumer.committed(TopicPartition("t", 1)) is None
            coordinator = consumer._coordinator
            coordinator.generation -= 1
            with pytest.raises(kafka.CommitFailedError):
                await consumer.commit({place: 6})
            await eventually(lambda: coordinator.generation > 1)
        group = here.cluster.groups["g"]
        with pytest.raises(RequestRefused, match="UNKNOWN_MEMBER_ID"):
            group.check_commit("nobody", group.generation)
        # Who has partitions without being a member may commit while there is none.
        group.check_commit("", -1)
        assert here.cluster.committed("g") == {("t", 0): 5}
        assert here.cluster.committed("no such group") == {}


async def test_a_rebalance_can_be_forced() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        async with here.consumer("t", group_id="g", heartbeat_interval_ms=100) as consumer:
            group = here.cluster.groups["g"]
            before = group.generation
            assert group.rebalance()
            assert not group.rebalance()
            assert group.state.value == GroupState.PREPARING_REBALANCE
            await eventually(lambda: group.state.value == GroupState.STABLE)
            assert group.generation == before + 1
            await eventually(lambda: len(consumer.assignment()) == 2)
        assert not group.rebalance()


async def test_who_does_not_join_in_time_is_left_out() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        options = {"rebalance_timeout_ms": 3000, "session_timeout_ms": 60_000}
        first, _ = await join(here, client_id="stays", **options)
        second, late = await join(here, client_id="late", **options)
        # Its signs of life go on, but it does not join.
        late._coordinator._coordination_task.cancel()
        here.cluster.groups["g"].rebalance()
        start = here.loop.time()
        await eventually(lambda: shares(here) == [2], timeout=30)
        assert 3.0 <= here.loop.time() - start < 4.0
        assert here.happened("expire") == [("late", "g", "")]
        for one in (second, first):
            await one.__aexit__(None, None, None)


async def test_an_empty_group_waits_for_others_where_it_is_told_to() -> None:
    with world() as here:
        here.cluster.create_topic("t", 2)
        here.cluster.initial_delay = 3.0
        start = here.loop.time()
        (one, _), (other, _) = await asyncio.gather(join(here), join(here))
        assert here.loop.time() - start >= 3.0
        assert shares(here) == [1, 1]
        assert here.cluster.groups["g"].generation == 1
        for entered in (one, other):
            await entered.__aexit__(None, None, None)


async def test_a_session_can_be_too_short() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        here.cluster.session_timeouts = (6.0, 60.0)
        entering = here.consumer("t", group_id="g", session_timeout_ms=5000)
        with pytest.raises(kafka.InvalidSessionTimeoutError):
            await entering.__aenter__()


# The whole.


async def application(here: SimulatedCluster, topics: int) -> list[str]:
    """Use a bus, a consumer and a reply; return what happened in the cluster meanwhile."""
    replies: list[tuple[str, bytes]] = []
    environment = VirtualEnvironment(1)
    surroundings = Surroundings(
        Identity("app", "0", False),
        stats=Counter(),
        fatal=lambda error: None,
        environment=environment,
    )
    config = KafkaConfig(SERVER, create_topics="all", partitions=topics)
    bus = KafkaProvider(config).open(surroundings)
    await bus.start(lambda correlation, reply: replies.append((correlation, reply.payload)))
    inbox = Inbox()
    consumer = bus.consumer(Subscription("actor", filters=("a",), share=True), inbox)
    await consumer.start()
    for number in range(10):
        await bus.publish(Envelope(topic="a", payload=b"%d" % number, key="k"), timeout=10)
    await bus.publish(Envelope(topic=bus.reply_address("1f"), payload=b"re"), timeout=10)
    await eventually(lambda: len(inbox.payloads) == 10 and replies)
    assert inbox.payloads == [str(number) for number in range(10)]
    assert replies == [("1f", b"re")]
    await consumer.close()
    await bus.close()
    assert sum(here.cluster.committed("app.actor").values()) == 10
    return [" ".join(event) for event in here.events]


async def test_the_transport_works_on_it_and_twice_the_same() -> None:
    with world() as here:
        first = await application(here, 1)
    with world() as here:
        assert await application(here, 1) == first


async def test_a_broken_connection_is_made_again() -> None:
    with world() as here:
        here.cluster.create_topic("t")
        async with here.producer() as producer, here.consumer("t", group_id="g") as consumer:
            await producer.send_and_wait("t", b"0")
            for wire in list(here.network.connections):
                wire.reset()
            await producer.send_and_wait("t", b"1")
            assert [record.value for record in await take(consumer, 2)] == [b"0", b"1"]


async def test_a_client_that_talks_nonsense_is_thrown_out() -> None:
    with world():
        reader, writer = await asyncio.open_connection("kafka", 9092)
        writer.write((8).to_bytes(4, "big") + b"\x7f" * 8)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


# Time.


def test_other_loops_keep_the_time_of_the_system() -> None:
    loop, other = VirtualLoop(), asyncio.SelectorEventLoop()
    outer = accumulator.__dict__["time"]
    builder = accumulator.__dict__["DefaultRecordBatchBuilder"]

    async def now() -> tuple[float, float]:
        clock = accumulator.__dict__["time"]
        return clock.time(), clock.monotonic()

    try:
        with virtual_time(loop, lambda: 5.0):
            with virtual_time(other, lambda: 6.0):
                pass
            assert loop.run_until_complete(now()) == (5.0, loop.time())
            wall, monotonic = other.run_until_complete(now())
            assert abs(wall - time.time()) < 60
            assert abs(monotonic - time.monotonic()) < 60
    finally:
        loop.close()
        other.close()
    assert accumulator.__dict__["time"] is outer is time
    assert accumulator.__dict__["DefaultRecordBatchBuilder"] is builder


async def test_who_reads_from_outside_sees_each_record_as_it_comes() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    Network(loop)
    seen: list[tuple[str, int, bytes | None]] = []
    cluster = Cluster(loop)
    cluster.on_append = lambda topic, partition, record: seen.append(
        (topic, partition, record.value)
    )
    cluster.create_topic("t", 2)
    for number in range(3):
        cluster.append("t", value=b"%d" % number)
    cluster.append("t", 1, key=b"k", value=None)
    assert seen == [("t", 0, b"0"), ("t", 1, b"1"), ("t", 0, b"2"), ("t", 1, None)]
