"""The last commits of an assignment whose partitions are committed in transactions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from spa_dat._limited_log import LimitedLog
from spa_dat._logs import get_logger
from spa_dat.errors import PublishRefused
from spa_dat.transports import Delivery, Envelope
from spa_dat.transports._units import Outcome, OwnDelivery
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka._records import Record
from spa_dat.transports.kafka.consuming import _snapshots, _unit_commits
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._snapshot_file import SnapshotFile
from spa_dat.transports.kafka.consuming._snapshots import (
    PartitionStates,
    Snapshot,
    SnapshotLost,
)
from spa_dat.transports.kafka.consuming._unit_commits import UnitCommits
from spa_dat.transports.kafka.consuming._unit_tracker import (
    PartitionUnit,
    RefusedOutcomes,
    UnitTracker,
)
from spa_dat.transports.kafka.producing._transactions import Refusals, TransactionFailed
from support.waiting import eventually

PLACE = TopicPartition("orders", 0)
NOW = 1_000.0
EPOCH = 5


class Producer:
    """Commits when it is told to; the first commit fails."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.goes_on = asyncio.Event()

    async def commit(
        self, records: Any, offsets: Mapping[TopicPartition, OffsetAndMetadata], **_: Any
    ) -> dict[TopicPartition, int]:
        self.begun.append(offsets[PLACE].offset)
        first = len(self.begun) == 1
        await self.goes_on.wait()
        if first:
            raise TransactionFailed(OSError("cut"))
        return {}

    async def close(self) -> None:
        """Nothing is to be closed."""


def tracker_in(
    assignment: Assignment, states: PartitionStates | None = None, *more: str
) -> UnitTracker:
    """Return the tracker of a new unit in an assignment, which has further topics."""
    unit = PartitionUnit(assignment, PLACE.partition, RefusedOutcomes(), states)
    for topic in (PLACE.topic, *more):
        place = TopicPartition(topic, PLACE.partition)
        assignment.trackers[place] = UnitTracker(assignment, place, lambda _: None, unit)
    return unit.trackers[0]


def unit_of(tracker: UnitTracker) -> PartitionUnit:
    assert isinstance(tracker.unit, PartitionUnit)
    return tracker.unit


def handle(tracker: UnitTracker, offset: int, **outcome: Any) -> None:
    delivery = Delivery(
        Envelope(topic="orders"), tracker=tracker, epoch=tracker.epoch, token=offset
    )
    tracker.slots.append(delivery)
    unit_of(tracker).note(delivery, Outcome(**outcome))
    delivery.settle()


def commits_of(
    assignment: Assignment,
    producer: Producer,
    changelog: str = "",
    failures: list[TransactionFailed] | None = None,
) -> UnitCommits:
    return UnitCommits(
        assignment,
        KafkaConfig("cluster"),
        Counter(),
        "shop.orders",
        lambda _: producer,  # type: ignore[arg-type,return-value]
        lambda: None,
        (lambda _: None) if failures is None else failures.append,
        changelog,
        LimitedLog(get_logger("spa_dat.test")),
        lambda: None,
        lambda: NOW,
        lambda _: EPOCH,
    )


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_rebalance_while_a_member_leaves_commits_nothing_behind_what_has_failed(
    interrupted: bool,
) -> None:
    assignment, producer = Assignment(1), Producer()
    tracker = tracker_in(assignment)
    commits = commits_of(assignment, producer)
    handle(tracker, 0)
    leaving = asyncio.create_task(commits.finish(60.0))
    while not producer.begun:
        await asyncio.sleep(0)
    handle(tracker, 1)
    if interrupted:
        leaving.cancel()
    given_up = asyncio.create_task(commits.finish(60.0))
    for _ in range(20):
        await asyncio.sleep(0)
    producer.goes_on.set()
    await asyncio.gather(leaving, given_up, return_exceptions=True)
    assert producer.begun == [1]
    assert tracker.committed == -1


class Hanging(Producer):
    """Never gets an answer."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.mark.virtual
@pytest.mark.parametrize(("lost", "seconds"), [(False, 5.0), (True, 0.0)])
async def test_a_last_transaction_that_hangs_does_not_hold_up_the_end(
    lost: bool, seconds: float
) -> None:
    assignment, producer = Assignment(1), Hanging()
    tracker = tracker_in(assignment)
    commits = commits_of(assignment, producer)
    loop = asyncio.get_running_loop()
    handle(tracker, 0)
    await asyncio.sleep(1.0)
    assert producer.begun == [1]
    handle(tracker, 1)
    began = loop.time()
    await commits.finish(5.0, lost=lost)
    assert loop.time() - began == pytest.approx(seconds)
    assert producer.closed
    producer.goes_on.set()
    await asyncio.sleep(1.0)
    # Nothing is begun any more, and nothing counts as committed.
    assert producer.begun == [1]
    assert tracker.committed == -1


class Appending(Producer):
    """Commits, and says where the last state of the changelog is."""

    async def commit(self, *_: Any, **__: Any) -> dict[TopicPartition, int]:
        return {TopicPartition("log", 0): 7}


async def test_with_a_commit_all_that_there_is_of_a_partition_is_known() -> None:
    assignment, states = Assignment(1), PartitionStates()
    states.restored = True
    tracker = tracker_in(assignment, states)
    commits = commits_of(assignment, Appending(), "log")
    handle(tracker, 0, key="a", value=b"1")
    await commits.finish(60.0)
    assert (states.position, states.at, states.values) == (7, NOW, {b"a": b"1"})
    assert states.epoch == EPOCH


async def test_a_record_at_an_offset_that_is_known_shows_that_the_changelog_has_lost_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = Snapshot(lambda: tmp_path / "file", LimitedLog(get_logger("spa_dat.test")), print)
    await snapshot.open("id", 1)
    assignment, states = Assignment(1), PartitionStates(snapshot)
    states.values, states.position = {b"b": b"lost"}, 7
    await snapshot.write(states)
    states.restored = True
    failures: list[TransactionFailed] = []
    tracker = tracker_in(assignment, states)
    # The only record ends at 7, so it is at 6.
    commits = commits_of(assignment, Appending(), "log", failures)
    handle(tracker, 0, key="a", value=b"1")
    await eventually(lambda: failures)
    # All of it is read again.
    assert (states.position, states.restored, states.values) == (0, False, {})
    assert await snapshot.place(0) is None
    assert "known up to offset 7, and has lost its end: a record has got offset 6" in caplog.text
    await commits.finish(60.0)
    await snapshot.close()


@pytest.mark.virtual
async def test_one_transaction_has_no_more_outcomes_than_can_be_written_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_unit_commits, "_MOST_OUTCOMES", 2)
    sizes: list[int] = []

    class Counting(Producer):
        async def commit(
            self, records: Any, offsets: Mapping[TopicPartition, OffsetAndMetadata], **_: Any
        ) -> dict[TopicPartition, int]:
            sizes.append(len(records))
            self.begun.append(offsets[PLACE].offset)
            return {}

    assignment, producer = Assignment(1), Counting()
    tracker = tracker_in(assignment)
    commits = commits_of(assignment, producer)
    for offset in range(5):
        handle(tracker, offset, output=Record("invoices", None, b"%d" % offset, [], None))
    await asyncio.sleep(1.0)
    assert (producer.begun, sizes) == ([2, 4, 5], [2, 2, 1])
    await commits.finish(60.0)


async def test_an_outcome_in_place_of_an_earlier_one_does_not_count_twice() -> None:
    assignment = Assignment(1)
    tracker = tracker_in(assignment)
    delivery = Delivery(Envelope(topic="orders"), tracker=tracker, token=0)
    tracker.slots.append(delivery)
    for _ in range(3):
        # Two of them would be more than a partition may have.
        unit_of(tracker).note(delivery, Outcome(key="a", value=b"x" * 10_000_000))
    assert not tracker.holds(2)
    unit_of(tracker).note(delivery, Outcome())
    assert not tracker.holds(2)


@pytest.mark.virtual
@pytest.mark.parametrize("fails", [False, True])
async def test_who_commits_waits_when_too_much_is_not_in_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    lost: list[SnapshotLost] = []
    log = LimitedLog(get_logger("spa_dat.test"))
    snapshot = Snapshot(lambda: tmp_path / "file", log, lost.append)
    await snapshot.open("id", 1)
    states = PartitionStates(snapshot)
    states.restored = True
    write = SnapshotFile.write

    def written(*arguments: Any) -> None:
        if fails:
            raise OSError("no space left on device")
        write(*arguments)

    monkeypatch.setattr(SnapshotFile, "write", written)
    monkeypatch.setattr(_snapshots, "_MOST_KEYS", 2)
    assignment = Assignment(1)
    tracker = tracker_in(assignment, states)
    commits = commits_of(assignment, Appending(), "log")
    handle(tracker, 0, key="a", value=b"1")
    handle(tracker, 1, key="b", value=b"2")
    await commits.finish(60.0)
    assert tracker.committed == 2
    if fails:
        # Whoever reads them again is told.
        assert [str(error.__cause__) for error in lost] == ["no space left on device"]
    else:
        assert states.values == {}
        assert await snapshot.load(0, b"b") == b"2"
    await snapshot.close()


def tracker_of(states: PartitionStates | None = None) -> UnitTracker:
    """Return a tracker in which nothing is committed by itself."""
    assignment = Assignment(1)
    assignment.notify_at = 1_000_000
    return tracker_in(assignment, states)


def committed(tracker: UnitTracker, most: int = 100) -> tuple[int | None, list[bytes | None]]:
    """Commit what is due; return the offset, if any, and what the outcomes have made of keys."""
    due = unit_of(tracker).due(most)
    if due is None:
        return None, []
    unit_of(tracker).has_committed(due)
    return due.offsets.get(PLACE), [outcome.value for _, _, outcome in due.outcomes]


def add(tracker: UnitTracker, key: str, value: bytes, name: str = "") -> None:
    unit_of(tracker).add(Outcome(key=key, value=value), key, name)


def waiting(tracker: UnitTracker, offset: int) -> Delivery:
    delivery = Delivery(Envelope(topic="orders"), tracker=tracker, token=offset)
    tracker.slots.append(delivery)
    return delivery


def test_what_is_no_message_is_committed_after_the_last_message_of_its_key() -> None:
    states = PartitionStates()
    tracker = tracker_of(states)
    first = waiting(tracker, 0)
    handle(tracker, 1, key="a", value=b"a1")
    add(tracker, "a", b"a reminded")
    add(tracker, "b", b"b reminded")
    handle(tracker, 2, key="a", value=b"a2")
    # It has nothing to wait for, and moves no offset.
    assert committed(tracker) == (None, [b"b reminded"])
    assert committed(tracker) == (None, [])
    first.settle()
    assert committed(tracker) == (3, [b"a1", b"a reminded", b"a2"])
    assert states.values == {b"a": b"a2", b"b": b"b reminded"}
    assert not unit_of(tracker).has_due


def test_what_does_not_fit_into_a_commit_keeps_what_comes_after_it_from_being_committed() -> None:
    tracker = tracker_of(PartitionStates())
    handle(tracker, 0, key="a", value=b"a0")
    assert committed(tracker) == (1, [b"a0"])
    for number in range(3):
        add(tracker, "a", b"reminder %d" % number)
    handle(tracker, 1, key="a", value=b"a1")
    add(tracker, "a", b"reminder 3")
    assert committed(tracker, 2) == (None, [b"reminder 0", b"reminder 1"])
    assert committed(tracker, 2) == (2, [b"reminder 2", b"a1", b"reminder 3"])
    assert not unit_of(tracker).has_due


def test_what_is_refused_of_something_that_is_no_message_is_known_by_its_name() -> None:
    tracker = tracker_of(PartitionStates())
    unit = unit_of(tracker)
    delivery = OwnDelivery(Envelope(topic="t", id="a/late/1.0", key="a"), tracker=unit, token=0)
    refusals = unit.refusals
    add(tracker, "a", b"1", "a/late/1.0")
    due = unit.due(10)
    assert due is not None
    refusals.add(Refusals({0: PublishRefused("some")}, certain=False), ["a/late/1.0"])
    assert refusals.apart(due)
    assert unit.refused(delivery) is None
    refusals.add(Refusals({0: PublishRefused("this")}, certain=True), ["a/late/1.0"])
    refused = unit.refused(delivery)
    assert refused is not None
    assert not refused.letter_too
    # A message at the offset that is its token is another one.
    assert unit.refused(Delivery(Envelope(topic="t"), tracker=tracker, token=0)) is None
    unit.has_committed(due)
    assert unit.refused(delivery) is None
    assert not refusals.apart(due)


def test_what_is_refused_is_committed_before_anything_new_is_tried() -> None:
    assignment = Assignment(1)
    assignment.notify_at = 1_000_000
    orders = tracker_in(assignment, PartitionStates(), "returns")
    unit = unit_of(orders)
    returns = unit.trackers[1]
    for offset in range(3):
        orders.arrived(offset + 1)
        handle(orders, offset, key="a", value=b"order %d" % offset)
        returns.arrived(offset + 1)
        handle(returns, offset, key="b", value=b"return %d" % offset)
        add(orders, "b", b"reminder %d" % offset)
    error = PublishRefused("this")
    unit.refusals.add(Refusals({0: error}, certain=True), [(returns.partition, 0)])
    first = [b"order 0", b"return 0", b"reminder 0"]
    assert committed_of(unit) == ({"orders": 1, "returns": 1}, first)
    # Among those that are not known to be refused one may be.
    unit.refusals.add(Refusals({0: error}, certain=False), [(orders.partition, 1)])
    assert committed_of(unit) == ({"orders": 2}, [b"order 1"])
    left = [b"return 1", b"reminder 1", b"order 2", b"return 2", b"reminder 2"]
    assert committed_of(unit) == ({"orders": 3, "returns": 3}, left)


def test_what_is_refused_of_no_message_is_committed_before_anything_new_is_tried() -> None:
    tracker = tracker_of(PartitionStates())
    for number in range(3):
        add(tracker, "a", b"reminder %d" % number, f"a/late/{number}")
    handle(tracker, 0, key="b", value=b"message")
    refusals = Refusals({0: PublishRefused("this")}, certain=True)
    unit_of(tracker).refusals.add(refusals, ["a/late/1"])
    assert committed(tracker) == (None, [b"reminder 0", b"reminder 1"])
    assert committed(tracker) == (1, [b"reminder 2", b"message"])


def committed_of(unit: PartitionUnit, most: int = 100) -> tuple[dict[str, int], list[Any]]:
    """Commit what is due; return the offsets by topic, and what the outcomes have made of keys."""
    due = unit.due(most)
    if due is None:
        return {}, []
    unit.has_committed(due)
    offsets = {place.topic: offset for place, offset in due.offsets.items()}
    return offsets, [outcome.value for _, _, outcome in due.outcomes]


def test_topics_are_committed_up_to_the_first_message_that_is_not_settled_in_any() -> None:
    assignment, states = Assignment(1), PartitionStates()
    assignment.notify_at = 1_000_000
    orders = tracker_in(assignment, states, "returns")
    unit = unit_of(orders)
    returns = unit.trackers[1]
    orders.arrived(12)
    first = waiting(orders, 10)
    handle(orders, 11, key="a", value=b"a1")
    returns.arrived(8)
    handle(returns, 7, key="a", value=b"a2")
    add(orders, "a", b"a3")
    add(orders, "b", b"b1")
    orders.arrived(14)
    second = waiting(orders, 12)
    handle(orders, 13, key="a", value=b"a4")
    returns.arrived(9)
    handle(returns, 8, key="c", value=b"c1")
    assert committed_of(unit) == ({}, [b"b1"])
    assert not unit.has_due
    first.settle()
    assert unit.has_due
    assert committed_of(unit, 1) == ({"orders": 12, "returns": 7}, [b"a1"])
    assert committed_of(unit) == ({"returns": 8}, [b"a2", b"a3"])
    assert states.values == {b"a": b"a3", b"b": b"b1"}
    # Markers that lie behind everything that waits in its own topic wait, too.
    returns.commit_at = 10
    assert not unit.has_due
    second.settle()
    assert committed_of(unit) == ({"orders": 14, "returns": 10}, [b"a4", b"c1"])
    assert states.values == {b"a": b"a4", b"b": b"b1", b"c": b"c1"}
    assert not unit.has_due
    orders.commit_at = 15
    assert committed_of(unit) == ({"orders": 15}, [])


def test_outcomes_of_one_topic_count_where_another_one_is_full() -> None:
    assignment = Assignment(1)
    assignment.notify_at = 1_000_000
    orders = tracker_in(assignment, PartitionStates(), "returns")
    returns = unit_of(orders).trackers[1]
    orders.arrived(1)
    waiting(orders, 0)
    for offset in range(2):
        returns.arrived(offset + 1)
        handle(returns, offset, key="a", value=b"x" * 10_000_000)
    # Nothing of it can be committed.
    assert committed_of(unit_of(orders)) == ({}, [])
    assert orders.holds(2)
    assert returns.holds(2)


def test_what_nobody_commits_any_more_is_told_so() -> None:
    unit = unit_of(tracker_of(PartitionStates()))
    tracker, lost = unit.trackers[0], [0]

    def note() -> None:
        lost[0] += 1

    unit.add(Outcome(key="a", value=b"1", lost=(note,)), "a", "one")
    waiting(tracker, 0)
    handle(tracker, 1, key="b", value=b"1", lost=(note,))
    unit.add(Outcome(key="b", value=b"2", lost=(note,)), "b", "two")
    assert unit.due(1) is not None
    unit.add(Outcome(key="c", value=b"1", lost=(note,)), "c", "three")
    unit.give_up()
    assert lost == [4]
    unit.add(Outcome(key="d", value=b"1", lost=(note,)), "d", "four")
    handle(tracker, 2, key="e", value=b"1", lost=(note,))
    assert lost == [6]


async def test_what_is_due_first_is_found_in_memory_and_in_the_snapshot(tmp_path: Path) -> None:
    log = LimitedLog(get_logger("spa_dat.test"))
    snapshot = Snapshot(lambda: tmp_path / "file", log, lambda _: None)
    await snapshot.open("id", 1)
    states = PartitionStates(snapshot, 0)
    states.restored = True
    for key, wake in ((b"a", 5.0), (b"b", 3.0), (b"c", 4.0), (b"d", None)):
        states.apply(key, b"1", wake)
    await snapshot.write(states)
    assert not states.values
    for key, wake in ((b"b", 9.0), (b"c", None), (b"e", 1.0), (b"f", 6.0), (b"f", 6.0)):
        states.apply(key, b"2", wake)
    states.apply(b"e", None)
    assert [*await states.first_due(9, ())] == [(b"a", 5.0), (b"f", 6.0), (b"b", 9.0)]
    assert [*await states.first_due(1, (b"a",))] == [(b"f", 6.0)]
    await snapshot.write(states)
    assert [*await states.first_due(9, ())] == [(b"a", 5.0), (b"f", 6.0), (b"b", 9.0)]
    await snapshot.close()
    kept = PartitionStates()
    for number in range(5_000):
        kept.apply(b"k", b"1", float(number))
    assert [*await kept.first_due(9, ())] == [(b"k", 4_999.0)]
    assert len(kept._order) < 2_000
    kept.forget()
    assert [*await kept.first_due(9, ())] == []
