"""Members of consumer groups, on a simulated cluster: what they do at moments that are rare."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.record.util import calc_crc32c

from spa_dat.errors import ConfigurationError, ConnectFailed, ConnectionLost, TransportError
from spa_dat.harness.kafka_cluster import serve
from spa_dat.harness.kafka_cluster._record_batches import encode_record
from spa_dat.harness.loop._network import ServerConnection
from spa_dat.transports import Delivery, DeliveryState, KafkaConfig, KafkaTopic
from spa_dat.transports._units import Outcome
from spa_dat.transports.kafka._aiokafka_private import producer_tasks, stop_consumer
from spa_dat.transports.kafka._takeovers import Takeovers
from spa_dat.transports.kafka._topic_facts import TopicFacts
from spa_dat.transports.kafka._topic_names import Names
from spa_dat.transports.kafka.consuming import (
    _commits,
    _partition_guard,
    _rebalances,
    _start_positions,
    _units,
)
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._changelog import restore
from spa_dat.transports.kafka.consuming._committable_offsets import PartitionTracker
from spa_dat.transports.kafka.consuming._dispatcher import Dispatcher
from spa_dat.transports.kafka.consuming._group_requests import commit, misassigned
from spa_dat.transports.kafka.consuming._lag import lag_of
from spa_dat.transports.kafka.consuming._partition_guard import PartitionGuard
from spa_dat.transports.kafka.consuming._start_positions import compare, recreated_since
from spa_dat.transports.kafka.consuming._unit_commits import UnitCommits
from spa_dat.transports.kafka.consuming._units import Units
from spa_dat.transports.kafka.consuming._unreadable_reports import Troubles, Unreadable
from spa_dat.transports.kafka.producing._topic_creation import Topics
from spa_dat.transports.kafka.producing._transactions import (
    TransactionalProducer,
    TransactionFailed,
)
from support.kafka_consuming import Taker, taker
from support.simulated import SERVER, SimulatedCluster, world
from support.waiting import eventually

pytestmark = pytest.mark.virtual

GROUP = "app.actor"
TRANSACTIONAL: dict[str, Any] = {"transactional": True}
STRUCTURED = b"application/cloudevents+json"
EVENT = b'{"specversion": "1.0", "id": "id-7", "source": "/x", "type": "t", "data": 7}'


def publish(here: SimulatedCluster, numbers: range, topic: str = "a") -> None:
    for number in numbers:
        here.cluster.append(topic, key=b"%d" % number, value=b"%d" % number)


def done(here: SimulatedCluster, topic: str = "a") -> int:
    """Return how much of a topic the group has committed."""
    found = here.cluster.committed(GROUP)
    return sum(offset for (name, _), offset in found.items() if name == topic)


def trouble_of(one: Taker) -> str | None:
    consumer: Any = one.consumer
    trouble: str | None = consumer.trouble
    return trouble


def expire(here: SimulatedCluster, instance: str = "0") -> None:
    """Have the group drop a member, as if it had been silent for too long."""
    group = here.cluster.groups[GROUP]
    (member,) = [one for one in group.members.values() if f".{instance}." in one.client_id]
    group._remove(member, "expire")


def failing_once(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: Exception
) -> list[Exception]:
    """Let a method raise an error the next time; return the errors that are left."""
    method, errors = getattr(owner, name), [error]

    def fails(*arguments: Any, **more: Any) -> Any:
        if errors:
            raise errors.pop()
        return method(*arguments, **more)

    monkeypatch.setattr(owner, name, fails)
    return errors


# What goes wrong inside.


async def goes_on_although_a_rebalance_fails_once(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Let a step of a rebalance fail once, and expect each message once nevertheless."""
    with world() as here:
        here.cluster.create_topic("a", 2)
        async with taker(SERVER, "a", prefix="") as one:
            publish(here, range(10))
            await one.get(10)
            errors = failing_once(monkeypatch, Dispatcher, step, ValueError("no such luck"))
            assert here.cluster.groups[GROUP].rebalance()
            await eventually(lambda: not errors)
            publish(here, range(10, 20))
            await eventually(lambda: sorted(one.numbers) == [*range(20)])
            await eventually(lambda: done(here) == 20)


async def test_what_goes_wrong_while_partitions_are_taken_over_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await goes_on_although_a_rebalance_fails_once(monkeypatch, "keep")
    assert "no such luck" in caplog.text


async def test_what_goes_wrong_while_partitions_are_given_up_is_said_and_they_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await goes_on_although_a_rebalance_fails_once(monkeypatch, "remember")
    assert "could not give back partitions" in caplog.text
    assert "no such luck" in caplog.text


def failing_commits(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> list[Exception]:
    """Let the next transactions fail; return the errors that are left."""
    commit, left = TransactionalProducer.commit, [*errors]

    async def refused(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if left:
            raise TransactionFailed(left.pop(0))
        return await commit(self, *arguments, **more)

    monkeypatch.setattr(TransactionalProducer, "commit", refused)
    return left


async def test_what_goes_wrong_after_a_transaction_has_failed_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        failing_commits(monkeypatch, OSError("cut"))
        errors = failing_once(monkeypatch, Units, "leave", ValueError("no such luck"))
        async with taker(SERVER, "a", prefix="", subscription=TRANSACTIONAL):
            publish(here, range(10))
            await eventually(lambda: done(here) == 10)
        assert not errors
    assert "no such luck" in caplog.text


# Transactions.


async def test_after_a_failed_transaction_a_member_begins_nothing_where_others_are_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        errors = failing_commits(monkeypatch, kafka.ProducerFenced())
        async with taker(
            SERVER, "a", prefix="", subscription=TRANSACTIONAL, heartbeat_interval=2.0
        ) as one:
            publish(here, range(10))
            await eventually(lambda: not errors)
            # It waits to hear that others have the partitions.
            rebalances = one.stats["kafka.rebalances"]
            here.cluster.groups[GROUP].rebalance()
            await eventually(lambda: one.stats["kafka.rebalances"] > rebalances)
            await eventually(lambda: done(here) == 10)
            starts = len(here.happened("init-producer"))
            await asyncio.sleep(20)
            assert len(here.happened("init-producer")) == starts
            assert one.numbers == [*range(10), *range(10)]


async def test_a_transaction_that_gets_no_answer_for_long_is_told_of_until_one_is_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit, answering = TransactionalProducer.commit, asyncio.Event()

    async def silent(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if not answering.is_set():
            await asyncio.sleep(20)
            raise TransactionFailed(TimeoutError("no answer within 20 s"))
        return await commit(self, *arguments, **more)

    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="", subscription=TRANSACTIONAL) as one:
            monkeypatch.setattr(TransactionalProducer, "commit", silent)
            publish(here, range(10))
            await one.get(10)
            await asyncio.sleep(9)
            assert trouble_of(one) is None
            await asyncio.sleep(3)
            assert "have not confirmed a transaction for 10 s" in (trouble_of(one) or "")
            await eventually(lambda: one.stats["kafka.transactions_failed"] == 1)
            await asyncio.sleep(3)
            assert "no answer within 20 s" in (trouble_of(one) or "")
            answering.set()
            await eventually(lambda: done(here) == 10)
            await eventually(lambda: trouble_of(one) is None)


async def test_what_was_aborted_behind_the_last_record_is_committed_past_in_transactions_too() -> (
    None
):
    with world() as here:
        here.cluster.create_topic("a")
        async with (
            here.producer(transactional_id="other") as producer,
            taker(SERVER, "a", prefix="", subscription=TRANSACTIONAL) as one,
        ):
            publish(here, range(3))
            await eventually(lambda: done(here) == 3)
            await producer.begin_transaction()
            await producer.send_and_wait("a", b"never")
            await producer.abort_transaction()
            await eventually(lambda: here.cluster.end_offset("a", 0) == 5)
            await eventually(lambda: done(here) == 5)
            assert one.numbers == [0, 1, 2]
            assert one.consumer.lag == 0


# Taking and giving up.


async def test_two_programs_with_one_name_do_not_both_go_on_and_nothing_is_missing() -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        async with taker(SERVER, "a", prefix="") as one, taker(SERVER, "a", prefix="") as two:
            publish(here, range(10))
            await eventually(lambda: len(one.client.fatal) + len(two.client.fatal) == 1, 300)
            out, stays = (one, two) if one.client.fatal else (two, one)
            assert "another program runs as 'app.0' too" in str(out.client.fatal[0])
            had = len(out.deliveries)
            publish(here, range(10, 20))
            await eventually(lambda: set(range(10, 20)) <= set(stays.numbers))
            # Who gives way takes nothing any more, although it is still there.
            await asyncio.sleep(60)
            assert len(out.deliveries) == had
            assert stays.client.fatal == []


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_member_that_is_dropped_while_its_filters_change_gets_the_new_ones(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        here.cluster.create_topic("b")
        options: dict[str, Any] = {"rebalance_timeout": 60.0, "session_timeout": 30.0}
        async with taker(SERVER, "a", prefix="", settle=False, **options) as one:
            publish(here, range(1))
            (running,) = await one.get(1)
            running.start()
            lost = Takeovers.lost

            def losing(self: Takeovers, held: float, *, expired: bool) -> None:
                lost(self, held, expired=expired)
                if at_once:
                    running.settle()

            monkeypatch.setattr(Takeovers, "lost", losing)
            adding = asyncio.ensure_future(one.consumer.add_filter("b"))
            # It waits for what is running before it leaves.
            await eventually(lambda: one.events == ["hold"])
            expire(here)
            await eventually(lambda: one.stats["kafka.memberships_lost"] == 1)
            if not at_once:
                running.settle()
            await adding
            publish(here, range(1, 2), "b")
            # What it could not commit any more is recognised.
            await eventually(lambda: one.numbers == [0, 1])
            one.deliveries[-1].settle()
            await eventually(lambda: (done(here), done(here, "b")) == (1, 1))


async def test_a_handler_that_ends_after_the_consumer_was_closed_is_no_error() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="", settle=False, max_uncommitted=5) as one:
            publish(here, range(20))
            await one.get(5)
            first, *rest = one.deliveries
            for delivery in rest:
                delivery.settle()
            # The partition is paused until the first one is settled.
            await eventually(lambda: one.library.paused())
            first.start()
            await one.consumer.close()
            first.settle()
            assert first.state is DeliveryState.SETTLED
            assert one.numbers == [*range(len(one.numbers))]


# Positions, topics and what is fetched meanwhile.


async def test_members_that_start_together_at_the_end_all_get_their_places() -> None:
    with world() as here:
        here.cluster.create_topic("a", 4)
        publish(here, range(10))
        options: dict[str, Any] = {"prefix": "", "start": False, "offset_reset": "latest"}
        async with (
            taker(SERVER, "a", **options) as one,
            taker(SERVER, "a", instance="1", **options) as two,
            taker(SERVER, "a", instance="2", **options) as three,
        ):
            takers = (one, two, three)
            await asyncio.gather(*(it.consumer.start() for it in takers))
            publish(here, range(10, 20))
            await eventually(lambda: sum(len(it.deliveries) for it in takers) >= 10)
            numbers = sorted(number for it in takers for number in it.numbers)
            assert numbers == [*range(10, 20)]


@pytest.mark.parametrize(
    "error", [kafka.CommitFailedError(), kafka.IllegalStateError("a-0 is not assigned")]
)
async def test_a_start_during_which_partitions_are_reassigned_looks_for_its_places_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        publish(here, range(5))
        errors = failing_once(monkeypatch, _start_positions, "commit", error)
        async with taker(SERVER, "a", prefix="", offset_reset="latest") as one:
            assert not errors
            publish(here, range(5, 10))
            await one.get(5)
            assert one.numbers == [*range(5, 10)]
            assert one.stats["kafka.reconnects"] == 0


async def test_brokers_that_hang_while_topics_are_checked_are_waited_for() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="", connect_timeout=1.0) as one:
            publish(here, range(3))
            await one.get(3)
            reconnects = one.stats["kafka.reconnects"]
            slow = [it for it in here.network.connections if it.name == "app.0.actor"]
            for connection in slow:
                connection.fall_silent()
            await asyncio.sleep(3)
            for connection in slow:
                connection.reset()
            publish(here, range(3, 6))
            await eventually(lambda: one.numbers == [*range(6)])
            assert one.stats["kafka.reconnects"] == reconnects
            assert one.events in ([], ["hold", "resume, redelivered"])


async def test_how_far_a_member_is_behind_is_known_whenever_it_is_asked() -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        async with taker(SERVER, "a", prefix="", settle=False) as one:
            seen: list[int | None] = []

            async def look() -> None:
                for turn in itertools.count():
                    seen.append(one.consumer.lag)
                    await asyncio.sleep(0 if turn % 5 else 0.01)

            looking = asyncio.ensure_future(look())
            await eventually(lambda: one.consumer.lag == 0)
            publish(here, range(10))
            await one.get(10)
            assert one.consumer.lag == 10
            for delivery in [*one.deliveries]:
                delivery.settle()
            assert one.consumer.lag == 0
            async with taker(SERVER, "a", prefix="", instance="1") as two:
                await eventually(lambda: (len(one.partitions), len(two.partitions)) == (1, 1))
            expire(here)
            await eventually(lambda: one.stats["kafka.memberships_lost"] == 1)
            await eventually(lambda: one.consumer.lag == 0)
            await one.consumer.close()
            assert one.consumer.lag is None
            looking.cancel()
            assert None in seen
            assert {type(it) for it in seen} == {int, type(None)}


async def test_a_group_that_has_other_members_says_so_also_when_brokers_hang_at_last() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        strategy = {"partition_assignment_strategy": (RangePartitionAssignor,)}
        async with (
            here.consumer("a", group_id=GROUP, **strategy),
            taker(
                SERVER, "a", prefix="", start=False, start_timeout=1.0, connect_timeout=5.0
            ) as one,
        ):
            starting = asyncio.ensure_future(one.consumer.start())
            await eventually(lambda: "of another program" in (trouble_of(one) or ""))

            def hang(connection: ServerConnection) -> None:
                """Answer nothing."""

            here.network.listen("kafka", 9092, hang)
            with pytest.raises(ConfigurationError, match=r"'app\.actor' has members of another"):
                await starting


@pytest.mark.parametrize("error", [AssertionError(), AttributeError("_state"), KeyError("a-0")])
async def test_another_thread_may_ask_how_far_it_is_behind_while_partitions_go(
    error: Exception,
) -> None:
    def gone(place: TopicPartition) -> int:
        raise error

    assignment, place = Assignment(1), TopicPartition("a", 0)
    assignment.trackers[place] = PartitionTracker(assignment, place)
    assert lag_of(assignment, SimpleNamespace(highwater=gone)) is None


async def test_filters_may_change_before_the_start_and_not_after_the_end() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        here.cluster.create_topic("b")
        async with taker(SERVER, "a", prefix="", start=False) as one:
            await one.consumer.add_filter("b")
            await one.consumer.remove_filter("a")
            await one.consumer.start()
            publish(here, range(3))
            publish(here, range(3, 6), "b")
            await one.get(3)
            assert one.numbers == [3, 4, 5]
            await one.consumer.close()
            with pytest.raises(ConnectionLost, match="is closed"):
                await one.consumer.remove_filter("b")
            with pytest.raises(ConnectionLost, match="is closed"):
                await one.consumer.add_filter("a")


async def test_a_consumer_that_was_never_started_can_be_closed() -> None:
    with world():
        async with taker(SERVER, "a", prefix="", start=False) as one:
            assert one.consumer.trackers == ()
            await one.consumer.close()


async def test_who_gives_up_waiting_for_a_filter_keeps_nobody_else_from_it() -> None:
    with world() as here:
        for name in "abc":
            here.cluster.create_topic(name)
        async with taker(
            SERVER, "a", prefix="", settle=False, rebalance_timeout=60.0, session_timeout=30.0
        ) as one:
            publish(here, range(1))
            (running,) = await one.get(1)
            running.start()
            first = asyncio.ensure_future(one.consumer.add_filter("b"))
            # It waits for what is running.
            await eventually(lambda: one.events == ["hold"])
            second = asyncio.ensure_future(one.consumer.add_filter("c"))
            first.cancel()
            running.settle()
            await second
            publish(here, range(1, 2), "b")
            publish(here, range(2, 3), "c")
            await eventually(lambda: sorted(one.numbers) == [0, 1, 2])


@pytest.mark.parametrize("qos", [0, 1])
async def test_what_is_too_large_expired_or_not_to_be_read_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, qos: int
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        here.cluster.append("a", value=b"x" * 2_000)
        now = int(here.cluster.now() * 1000)
        headers = [("ttl_ms", b"1000"), ("reply_to", b"there"), ("correlation_id", b"1")]
        here.cluster.append("a", value=b"late", headers=headers, timestamp=now - 60_000)
        here.cluster.append("a", value=b"4", headers=[("content-type", STRUCTURED)])
        here.cluster.append("a", value=EVENT, headers=[("content-type", STRUCTURED)])
        here.cluster.append("a", value=b"poison")
        publish(here, range(5, 6))
        options: dict[str, Any] = {
            "max_payload": 1_000,
            "max_received": 1_000,
            "start": False,
            "subscription": {"qos": qos},
        }
        async with taker(SERVER, "a", prefix="", **options) as one:
            consumer: Any = one.consumer
            codec = consumer._sessions._dispatcher._codec
            decode = codec.decode

            def strict(record: Any, *more: Any) -> Any:
                if record.value == b"poison":
                    raise ValueError("not mine")
                return decode(record, *more)

            monkeypatch.setattr(codec, "decode", strict)
            await one.consumer.start()
            await one.has("5")
            large, *rest = one.deliveries
            left_out = large.envelope.left_out
            assert left_out is not None
            assert left_out.size == 2_000
            assert rest[-2].envelope.payload == b"7"
            assert rest[-2].envelope.id == "id-7"
            assert one.stats["messages.expired"] == 1
            assert one.stats["messages.malformed"] >= 1
            await eventually(lambda: done(here) == 6)


@pytest.mark.parametrize("qos", [0, 1])
async def test_what_nobody_wants_of_a_bound_topic_is_skipped_and_committed(qos: int) -> None:
    with world() as here:
        here.cluster.create_topic("fleet")
        topics = {"fleet/{truck}": KafkaTopic("fleet", key="truck")}
        for number in range(4):
            here.cluster.append("fleet", key=b"x", value=b"%d" % number)
        async with taker(
            SERVER, "fleet/y", prefix="", subscription={"qos": qos}, topics=topics
        ) as one:
            await eventually(lambda: done(here, "fleet") == 4)
            here.cluster.append("fleet", key=b"y", value=b"4")
            await one.get(1)
            assert one.numbers == [4]
            assert one.deliveries[0].envelope.topic == "fleet/y"


# Partitions that cannot be read, or are not read for a while.


def oddly_named(value: bytes, number: int) -> bytes:
    """Return a batch with a record that has a header whose name is not text."""
    good = encode_record(None, value, [("name", b"x")], number)
    bad = bytearray(good.replace(b"name", b"na\xffe"))
    bad[17:21] = calc_crc32c(bytes(bad[21:])).to_bytes(4, "big")
    return bytes(bad)


async def test_names_that_are_not_text_are_said_once_and_all_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        log = here.cluster.log("a", 0)
        # One attempt to read them in another way fails.
        errors = failing_once(
            monkeypatch, _partition_guard, "read_leniently", kafka.KafkaError("no records")
        )
        async with taker(SERVER, "a", prefix="") as one:
            for number in range(0, 6, 2):
                here.cluster.append_batch("", log, oddly_named(b"%d" % number, number), None)
                publish(here, range(number + 1, number + 2))
                await one.has(str(number + 1))
            assert one.numbers == [*range(6)]
            assert not errors
            await eventually(lambda: trouble_of(one) is None)
            await eventually(lambda: done(here) == 6)
            assert one.stats["messages.malformed"] >= 3
    assert caplog.text.count("the name of a header is not text") == 1


async def test_an_offset_that_is_out_of_range_for_a_moment_is_no_gap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        log = here.cluster.log("a", 0)
        async with taker(SERVER, "a", prefix="") as one:
            # As of a broker that does not know yet that it leads the partition.
            log.start = 5
            log.end = 5
            log.notify()
            await asyncio.sleep(0.005)
            log.start = log.end = 0
            publish(here, range(3))
            await one.get(3)
            assert one.numbers == [0, 1, 2]
            assert one.stats["kafka.records_removed"] == 0
    assert "no longer exists" not in caplog.text


async def test_an_offset_that_is_out_of_range_where_nobody_reads_any_more_is_no_trouble() -> None:
    with world() as here:
        for name in "ab":
            here.cluster.create_topic(name)
        async with taker(SERVER, "a", "b", prefix="", ephemeral=True) as one:
            for name in "ab":
                publish(here, range(3), name)
            await one.get(6)
            await one.consumer.remove_filter("b")
            # As of a fetch that was under way.
            consumer: Any = one.consumer
            consumer._sessions._hear([("b", [(0, 1, -1, b"")])])
            publish(here, range(3, 6))
            await one.get(9)
            assert trouble_of(one) is None


async def test_what_a_broker_says_between_two_assignments_is_of_no_use_any_more() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="") as one:
            publish(here, range(3))
            await one.get(3)
            consumer: Any = one.consumer
            await consumer.close()
            assert consumer._sessions.assignment is None
            consumer._sessions._hear([("a", [(0, 1, -1, b"")])])


async def test_a_transaction_that_stays_open_is_named_when_it_lasts_and_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        async with (
            here.producer(transactional_id="other", transaction_timeout_ms=120_000) as producer,
            taker(SERVER, "a", prefix="") as one,
        ):
            for seconds, times in ((5, 0), (60, 1)):
                await producer.begin_transaction()
                await producer.send_and_wait("a", b"%d" % seconds, partition=0)
                await asyncio.sleep(seconds)
                assert caplog.text.count("a transaction has been open there") == times
                await producer.commit_transaction()
                await one.has(str(seconds))


async def test_a_transaction_that_takes_long_is_waited_for_without_blaming_a_handler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, goes_on = TransactionalProducer.commit, asyncio.Event()

    async def slow(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        await goes_on.wait()
        return await commit(self, *arguments, **more)

    def note(delivery: Delivery) -> None:
        unit: Any = delivery.unit
        unit.note(delivery, Outcome())

    monkeypatch.setattr(TransactionalProducer, "commit", slow)
    with world() as here:
        here.cluster.create_topic("a")
        async with taker(
            SERVER, "a", prefix="", subscription=TRANSACTIONAL, max_uncommitted=20
        ) as one:
            one.on_delivery = note
            for number in range(100):
                publish(here, range(number, number + 1))
                await asyncio.sleep(0.01)
            assert len(one.deliveries) < 60
            goes_on.set()
            await eventually(lambda: done(here) == 100)
            assert one.numbers == [*range(100)]
            assert one.stats["kafka.partitions_stuck"] == 0
    assert "is not settled" not in caplog.text


async def test_what_a_rebalance_begins_while_a_member_is_leaving_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[TransactionalProducer] = []
    start, finish, times = TransactionalProducer.start, UnitCommits.finish, [0]

    async def note(self: TransactionalProducer) -> None:
        await start(self)
        started.append(self)

    monkeypatch.setattr(TransactionalProducer, "start", note)
    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="", subscription=TRANSACTIONAL) as one:
            member: Any = one.consumer
            rebalances = member._sessions._rebalances

            async def interrupted(self: UnitCommits, seconds: float, *, lost: bool = False) -> None:
                await finish(self, seconds, lost=lost)
                times[0] += 1
                if times[0] == 1:
                    await rebalances.on_partitions_revoked([])
                    await rebalances.on_partitions_assigned([TopicPartition("a", 0)])

            monkeypatch.setattr(UnitCommits, "finish", interrupted)
    assert len(started) == 2
    assert all(producer._closed for producer in started)


async def test_a_producer_that_is_ended_while_it_starts_does_not_start() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        config = KafkaConfig(SERVER)
        topics = Topics(config, Names(config), "test")
        for steps in itertools.count():
            producer = TransactionalProducer(config, "test", "a.0", "a", topics, random.Random(1))
            starting = asyncio.ensure_future(producer.start())
            for _ in range(steps):
                await asyncio.sleep(0)
            if starting.done():
                await producer.close()
                break
            await producer.close()
            with pytest.raises((kafka.KafkaError, OSError)):
                await starting
            tasks = producer_tasks(producer._library)
            assert all(task is None or task.done() for task in tasks), steps
        assert steps > 10


# Starting, stopping, and what is fetched meanwhile.


async def test_a_start_takes_as_long_as_the_group_waits_for_other_members() -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        options: dict[str, Any] = {"rebalance_timeout": 60.0, "session_timeout": 30.0}
        async with taker(SERVER, "a", prefix="", settle=False, **options) as one:
            publish(here, range(2))
            first, _ = await one.get(2)
            first.start()
            async with taker(
                SERVER, "a", prefix="", instance="1", start=False, start_timeout=1.0, **options
            ) as two:
                starting = asyncio.ensure_future(two.consumer.start())
                await asyncio.sleep(10)
                assert not starting.done()
                first.settle()
                await starting
                assert (len(one.partitions), len(two.partitions)) == (1, 1)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("answered", range(9))
async def test_whenever_brokers_begin_to_hang_while_it_starts_it_can_be_closed_at_once(
    durable: bool, answered: int
) -> None:
    with world() as here:
        here.cluster.create_topic("a")
        left = answered

        def accept(connection: ServerConnection) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                serve(here.cluster, connection)

        here.network.listen("kafka", 9092, accept)
        async with taker(
            SERVER, "a", prefix="", start=False, subscription={"durable": durable}
        ) as one:
            starting = asyncio.ensure_future(one.consumer.start())
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await one.consumer.close()
            assert loop.time() - began < 7.0
            await asyncio.wait((starting,))
            error = starting.exception()
            assert error is None or isinstance(error, ConnectionLost)


async def test_what_is_fetched_before_it_is_known_what_is_committed_waits_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, had = asyncio.Event(), list[int]()

    async def slowly(*arguments: Any) -> set[str]:
        looking.set()
        await asyncio.sleep(1)
        had.extend(one.numbers)
        return await compare(*arguments)

    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="") as one:
            publish(here, range(3))
            await eventually(lambda: done(here) == 3)
            monkeypatch.setattr(_rebalances, "compare", slowly)
            here.cluster.groups[GROUP].rebalance()
            await looking.wait()
            publish(here, range(3, 6))
            await eventually(lambda: done(here) == 6)
            assert one.numbers == [*range(6)]
            assert had == [0, 1, 2]
            # It has not asked for them again and again.
            assert len([it for it in here.happened("fetch") if it[2] == "3"]) <= 2


async def test_what_comes_after_it_was_told_to_stop_is_left_to_others() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="") as one:
            publish(here, range(3))
            await one.get(3)
            one.consumer.stop_intake()
            publish(here, range(3, 6))
            await asyncio.sleep(5)
            assert one.numbers == [0, 1, 2]
            assert done(here) == 3
        async with taker(SERVER, "a", prefix="", instance="1") as two:
            await two.get(3)
            assert two.numbers == [3, 4, 5]


async def test_without_a_group_it_stops_within_what_was_fetched_at_once() -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        fields = {"durable": False, "share": False, "window": 10}
        async with taker(SERVER, "a", prefix="", settle=False, subscription=fields) as one:
            for number in range(10):
                here.cluster.append("a", number % 2, value=b"%d" % number)
            await one.get(10)
            for number in range(10, 18):
                here.cluster.append("a", number % 2, value=b"%d" % number)
            # As the window is full, they wait in the library.
            await asyncio.sleep(2)
            assert len(one.deliveries) == 10
            one.on_delivery = lambda delivery: one.consumer.stop_intake()
            for delivery in [*one.deliveries]:
                delivery.settle()
            await one.get(11)
            await asyncio.sleep(5)
            assert len({it.envelope.partition for it in one.deliveries[10:]}) == 1
            # It has no place that is kept, so nothing can be said of a lag.
            assert one.consumer.lag is None


async def test_a_topic_that_is_gone_when_filters_change_is_waited_for() -> None:
    with world() as here:
        for name in "ab":
            here.cluster.create_topic(name)
        async with taker(SERVER, "a", prefix="", create_topics="own", start_timeout=2.0) as one:
            here.cluster.delete_topic("a")
            adding = asyncio.ensure_future(one.consumer.add_filter("b"))
            await eventually(lambda: "'a'" in (trouble_of(one) or ""))
            assert not adding.done()
            here.cluster.create_topic("a")
            await adding
            await eventually(lambda: trouble_of(one) is None)
            publish(here, range(1))
            publish(here, range(1, 2), "b")
            await eventually(lambda: sorted(one.numbers) == [0, 1])


async def test_a_start_that_is_refused_for_a_while_fails_with_what_the_cluster_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object) -> None:
        raise TransportError("the cluster says: not now")

    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="", start=False, start_timeout=1.0) as one:
            monkeypatch.setattr(Topics, "ensure", refuse)
            with pytest.raises(ConnectFailed, match="the cluster says: not now"):
                await one.consumer.start()


@pytest.mark.parametrize("how", ["refused", "reassigned"])
async def test_at_most_once_nothing_comes_twice_whatever_becomes_of_its_commit(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    left = [how]

    async def failing(*arguments: Any) -> None:
        if not left:
            await commit(*arguments)
        elif left.pop() == "refused":
            raise kafka.UnknownError
        else:
            await commit(*arguments)
            here.cluster.groups[GROUP].rebalance()
            await asyncio.sleep(1)

    with world() as here:
        here.cluster.create_topic("a")
        async with taker(SERVER, "a", prefix="", subscription={"qos": 0}) as one:
            monkeypatch.setattr(_commits, "commit", failing)
            publish(here, range(3))
            await eventually(lambda: not left)
            await asyncio.sleep(5)
            publish(here, range(3, 6))
            await one.has("5")
            await eventually(lambda: done(here) == 6)
            assert one.numbers == ([*range(6)] if how == "refused" else [3, 4, 5])


async def test_what_is_fetched_while_states_are_restored_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit, read, errors = TransactionalProducer.commit, restore, [OSError("cut")]
    goes_on = asyncio.Event()

    async def unsure(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        ends = await commit(self, *arguments, **more)
        if errors:
            # It is committed all the same.
            raise TransactionFailed(errors.pop())
        return ends

    async def slowly(*arguments: Any) -> None:
        if not errors:
            await goes_on.wait()
        await read(*arguments)

    monkeypatch.setattr(TransactionalProducer, "commit", unsure)
    monkeypatch.setattr(_units, "restore", slowly)
    with world() as here:
        here.cluster.create_topic("a")
        fields = {**TRANSACTIONAL, "keeps_states": True}
        async with taker(SERVER, "a", prefix="", subscription=fields) as one:
            publish(here, range(1))
            await eventually(lambda: not errors)
            await eventually(lambda: "restoring the states" in (trouble_of(one) or ""))
            # The broker has been asked for it before the partition was paused.
            publish(here, range(1, 2))
            await asyncio.sleep(2)
            assert one.numbers == [0]
            goes_on.set()
            await eventually(lambda: one.numbers == [0, 1])
            await eventually(lambda: done(here) == 2)


# Which topic of its name it is.


def test_a_topic_that_had_only_just_been_created_is_not_taken_for_another_one() -> None:
    assignment, place = Assignment(1), TopicPartition("a", 0)
    tracker = assignment.trackers[place] = PartitionTracker(assignment, place)
    # The broker that was asked did not know it yet.
    assignment.ids = {"a": "", "b": "1"}
    facts = {name: TopicFacts("1", readable=True, leaders={}, epochs={}) for name in "ab"}
    assert recreated_since(assignment, facts) == []
    assert assignment.ids == {"a": "1", "b": "1"}
    # What was handed out was of one that did not exist any more then.
    assignment.ids = {"a": "", "b": "1"}
    tracker.first = 0
    assert recreated_since(assignment, facts) == ["a"]


async def test_nothing_is_taken_for_unassigned_where_a_group_has_not_settled() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        async with here.consumer("a", group_id="one") as consumer:
            await eventually(consumer.assignment)
            assert await misassigned(consumer, "one") == []
            # Nobody has anything of this group.
            assert await misassigned(consumer, "other") == []


# The guard of partitions that cannot be read.


@contextlib.asynccontextmanager
async def guarded(
    *, passes_over: bool = False
) -> AsyncIterator[tuple[Any, PartitionGuard, Troubles]]:
    """Start a plain consumer of two partitions with a guard."""
    with world() as here:
        here.cluster.create_topic("a", 2)
        consumer = AIOKafkaConsumer(bootstrap_servers=SERVER, enable_auto_commit=False)
        troubles = Troubles("test", Counter())
        guard = PartitionGuard(consumer, troubles, passes_over=passes_over)
        try:
            await consumer.start()
            guard.start()
            consumer.assign([TopicPartition("a", 0), TopicPartition("a", 1)])
            yield consumer, guard, troubles
        finally:
            # Its own method may wait for ever for fetches of partitions that were taken away.
            await stop_consumer(consumer, 3.0)


DAMAGED = kafka.CorruptRecordException("checksum")


async def test_what_comes_of_partitions_that_others_have_now_is_no_trouble() -> None:
    here, others = TopicPartition("a", 0), TopicPartition("a", 1)
    async with guarded() as (consumer, guard, troubles):
        guard.note(here, Unreadable(DAMAGED, 0))
        guard.note(others, Unreadable(DAMAGED, 0))
        consumer.assign([here])
        await guard.mend(lambda place: None)
        guard.note(others, Unreadable(DAMAGED, 0))
        assert [*troubles.known] == [*guard.held] == [here]
        assert not guard.found


async def test_what_is_passed_over_is_held_where_it_is_not_known_how_long_it_is() -> None:
    known, unknown = TopicPartition("a", 0), TopicPartition("a", 1)
    async with guarded(passes_over=True) as (_, guard, troubles):
        guard.note(known, Unreadable(DAMAGED, 0, 7))
        guard.note(unknown, Unreadable(DAMAGED, 0))
        resumed: list[TopicPartition] = []
        await guard.mend(resumed.append)
        assert resumed == [known]
        assert guard.position(known) == 7
        assert [*troubles.known] == [*guard.held] == [unknown]
