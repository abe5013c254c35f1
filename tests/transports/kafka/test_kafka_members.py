"""Members of consumer groups, on a simulated cluster: what they do at moments that are rare."""

from __future__ import annotations

import asyncio
from typing import Any

import aiokafka.errors as kafka
import pytest

from spa_dat.transports import DeliveryState
from spa_dat.transports.kafka.consuming._dispatcher import Dispatcher
from spa_dat.transports.kafka.consuming._units import Units
from spa_dat.transports.kafka.producing._transactions import (
    TransactionalProducer,
    TransactionFailed,
)
from support.kafka_consuming import taker
from support.simulated import SERVER, SimulatedCluster, world
from support.waiting import eventually

pytestmark = pytest.mark.virtual

GROUP = "app.actor"
TRANSACTIONAL: dict[str, Any] = {"transactional": True}


def publish(here: SimulatedCluster, numbers: range, topic: str = "a") -> None:
    for number in numbers:
        here.cluster.append(topic, key=b"%d" % number, value=b"%d" % number)


def done(here: SimulatedCluster, topic: str = "a") -> int:
    """Return how much of a topic the group has committed."""
    found = here.cluster.committed(GROUP)
    return sum(offset for (name, _), offset in found.items() if name == topic)


def expire(here: SimulatedCluster, instance: str = "0") -> None:
    """Have the group drop a member, as if it had been silent for too long."""
    group = here.cluster.groups[GROUP]
    (member,) = [one for one in group.members.values() if f".{instance}." in one.client_id]
    group._remove(member, "expire")


def failing_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception
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


async def test_what_goes_wrong_while_partitions_are_taken_over_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        async with taker(SERVER, "a", prefix="") as one:
            publish(here, range(10))
            await one.get(10)
            errors = failing_once(monkeypatch, Dispatcher, "keep", ValueError("no such luck"))
            assert here.cluster.groups[GROUP].rebalance()
            await eventually(lambda: not errors)
            publish(here, range(10, 20))
            await eventually(lambda: sorted(one.numbers) == [*range(20)])
            await eventually(lambda: done(here) == 20)
    assert "no such luck" in caplog.text


async def test_what_goes_wrong_while_partitions_are_given_up_is_said_and_they_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with world() as here:
        here.cluster.create_topic("a", 2)
        async with taker(SERVER, "a", prefix="") as one:
            publish(here, range(10))
            await one.get(10)
            errors = failing_once(monkeypatch, Dispatcher, "remember", ValueError("no such luck"))
            assert here.cluster.groups[GROUP].rebalance()
            await eventually(lambda: not errors)
            publish(here, range(10, 20))
            await eventually(lambda: sorted(one.numbers) == [*range(20)])
            await eventually(lambda: done(here) == 20)
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


async def test_a_member_that_is_dropped_while_its_filters_change_gets_the_new_ones() -> None:
    with world() as here:
        here.cluster.create_topic("a")
        here.cluster.create_topic("b")
        options: dict[str, Any] = {"rebalance_timeout": 60.0, "session_timeout": 30.0}
        async with taker(SERVER, "a", prefix="", settle=False, **options) as one:
            publish(here, range(1))
            (running,) = await one.get(1)
            running.start()
            adding = asyncio.ensure_future(one.consumer.add_filter("b"))
            # It waits for what is running before it leaves.
            await eventually(lambda: one.events == ["hold"])
            expire(here)
            await eventually(lambda: one.stats["kafka.memberships_lost"] == 1)
            assert not adding.done()
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
