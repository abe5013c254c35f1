"""The last commits of an assignment whose partitions are committed in transactions."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
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
from spa_dat.transports.kafka.consuming._unit_tracker import RefusedOutcomes, UnitTracker
from spa_dat.transports.kafka.producing._transactions import Refusals, TransactionFailed

PLACE = TopicPartition("orders", 0)
NOW = 1_000.0


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


def handle(tracker: UnitTracker, offset: int, **outcome: Any) -> None:
    delivery = Delivery(
        Envelope(topic="orders"), tracker=tracker, epoch=tracker.epoch, token=offset
    )
    tracker.slots.append(delivery)
    tracker.note(delivery, Outcome(**outcome))
    delivery.settle()


def commits_of(
    assignment: Assignment,
    producer: Producer,
    refusals: Mapping[TopicPartition, RefusedOutcomes],
    changelog: str = "",
) -> UnitCommits:
    return UnitCommits(
        assignment,
        KafkaConfig("cluster"),
        Counter(),
        "shop.orders",
        lambda _: producer,  # type: ignore[arg-type,return-value]
        refusals,
        lambda: None,
        lambda _: None,
        changelog,
        LimitedLog(get_logger("spa_dat.test")),
        lambda: None,
        lambda: NOW,
    )


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_rebalance_while_a_member_leaves_commits_nothing_behind_what_has_failed(
    interrupted: bool,
) -> None:
    assignment, producer = Assignment(1), Producer()
    refusals: defaultdict[TopicPartition, RefusedOutcomes] = defaultdict(RefusedOutcomes)
    tracker = UnitTracker(assignment, PLACE, lambda _: None, refusals[PLACE])
    assignment.trackers[PLACE] = tracker
    commits = commits_of(assignment, producer, refusals)
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
    refusals: defaultdict[TopicPartition, RefusedOutcomes] = defaultdict(RefusedOutcomes)
    tracker = UnitTracker(assignment, PLACE, lambda _: None, refusals[PLACE])
    assignment.trackers[PLACE] = tracker
    commits = commits_of(assignment, producer, refusals)
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
    refusals: defaultdict[TopicPartition, RefusedOutcomes] = defaultdict(RefusedOutcomes)
    states.restored = True
    tracker = UnitTracker(assignment, PLACE, lambda _: None, refusals[PLACE], states)
    assignment.trackers[PLACE] = tracker
    commits = commits_of(assignment, Appending(), refusals, "log")
    handle(tracker, 0, key="a", value=b"1")
    await commits.finish(60.0)
    assert (states.position, states.at, states.values) == (7, NOW, {b"a": b"1"})


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
    refusals: defaultdict[TopicPartition, RefusedOutcomes] = defaultdict(RefusedOutcomes)
    tracker = UnitTracker(assignment, PLACE, lambda _: None, refusals[PLACE])
    assignment.trackers[PLACE] = tracker
    commits = commits_of(assignment, producer, refusals)
    for offset in range(5):
        handle(tracker, offset, outputs=[Record("invoices", None, b"%d" % offset, [], None)])
    await asyncio.sleep(1.0)
    assert (producer.begun, sizes) == ([2, 4, 5], [2, 2, 1])
    await commits.finish(60.0)


async def test_an_outcome_in_place_of_an_earlier_one_does_not_count_twice() -> None:
    assignment = Assignment(1)
    tracker = UnitTracker(assignment, PLACE, lambda _: None, RefusedOutcomes())
    delivery = Delivery(Envelope(topic="orders"), tracker=tracker, token=0)
    tracker.slots.append(delivery)
    for _ in range(3):
        # Two of them would be more than a partition may have.
        tracker.note(delivery, Outcome(key="a", value=b"x" * 10_000_000))
    assert not tracker.holds(2)
    tracker.note(delivery, Outcome())
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
    refusals: defaultdict[TopicPartition, RefusedOutcomes] = defaultdict(RefusedOutcomes)
    tracker = UnitTracker(assignment, PLACE, lambda _: None, refusals[PLACE], states)
    assignment.trackers[PLACE] = tracker
    commits = commits_of(assignment, Appending(), refusals, "log")
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
    tracker = UnitTracker(assignment, PLACE, lambda _: None, RefusedOutcomes(), states)
    assignment.trackers[PLACE] = tracker
    return tracker


def committed(tracker: UnitTracker, most: int = 100) -> tuple[int | None, list[bytes | None]]:
    """Commit what is due; return the offset, if any, and what the outcomes have made of keys."""
    due = tracker.due(most)
    if due is None:
        return None, []
    tracker.has_committed(due)
    return due.offset if due.news else None, [outcome.value for _, outcome in due.outcomes]


def add(tracker: UnitTracker, key: str, value: bytes, name: str = "") -> None:
    tracker.add(Outcome(key=key, value=value), key, name)


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
    assert not tracker.has_due


def test_what_does_not_fit_into_a_commit_keeps_what_comes_after_it_from_being_committed() -> None:
    tracker = tracker_of(PartitionStates())
    handle(tracker, 0, key="a", value=b"a0")
    for number in range(3):
        add(tracker, "a", b"reminder %d" % number)
    handle(tracker, 1, key="a", value=b"a1")
    assert committed(tracker, 1) == (1, [b"a0", b"reminder 0"])
    assert committed(tracker, 1) == (None, [b"reminder 1"])
    assert committed(tracker, 1) == (2, [b"reminder 2", b"a1"])


def test_what_is_refused_of_something_that_is_no_message_is_known_by_its_name() -> None:
    tracker = tracker_of(PartitionStates())
    delivery = OwnDelivery(Envelope(topic="t", id="a/late/1.0", key="a"), tracker=tracker, token=0)
    refusals = tracker._refusals
    add(tracker, "a", b"1", "a/late/1.0")
    due = tracker.due(10)
    assert due is not None
    refusals.add(Refusals({0: PublishRefused("some")}, certain=False), ["a/late/1.0"])
    assert refusals.apart(due)
    assert tracker.refused(delivery) is None
    refusals.add(Refusals({0: PublishRefused("this")}, certain=True), ["a/late/1.0"])
    refused = tracker.refused(delivery)
    assert refused is not None
    assert not refused.letter_too
    # A message at the offset that is its token is another one.
    assert tracker.refused(Delivery(Envelope(topic="t"), tracker=tracker, token=0)) is None
    tracker.has_committed(due)
    assert tracker.refused(delivery) is None
    assert not refusals.apart(due)


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
