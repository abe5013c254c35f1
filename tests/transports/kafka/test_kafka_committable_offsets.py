"""What was handed out of partitions: how far it is settled, and what of it comes again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given, strategies as st

from spa_dat.transports import Delivery, DeliveryState, Envelope
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._committable_offsets import (
    CountingTracker,
    PartitionTracker,
    SizeTracker,
)
from spa_dat.transports.kafka.consuming._redelivery import EarlierDeliveries

PLACE = TopicPartition("t", 0)


def tracked(
    epoch: int = 1, on_room: Callable[[TopicPartition], None] = lambda tp: None
) -> tuple[Assignment, PartitionTracker]:
    assignment = Assignment(epoch)
    tracker = assignment.trackers[PLACE] = PartitionTracker(assignment, PLACE, on_room)
    return assignment, tracker


def handed_out(tracker: PartitionTracker, offset: int, **fields: object) -> Delivery:
    """As a consumer registers what it hands out."""
    tracker._assignment.unsettled += 1
    if tracker.first < 0:
        tracker.first = offset
    values = {"time": float(offset), "payload": b"%d" % offset, **fields}
    envelope = Envelope(topic="t", offset=offset, partition=0, **values)  # type: ignore[arg-type]
    delivery = Delivery(envelope, epoch=tracker.epoch, token=offset, tracker=tracker)
    tracker.slots.append(delivery)
    return delivery


def test_a_record_is_acknowledged_once_an_offset_behind_it_is_committed() -> None:
    _, tracker = tracked()
    first, second = handed_out(tracker, 4), handed_out(tracker, 5)
    for delivery in (first, second):
        assert delivery.start()
        delivery.settle()
    assert not first.acknowledged, "it is settled, and nothing is committed"
    tracker.committed = 5
    assert first.acknowledged
    assert not second.acknowledged


@given(
    gaps=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    skipped=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 1_000_000),
)
def test_the_commit_point_never_passes_what_is_not_settled(
    gaps: list[int], skipped: set[int], seed: int
) -> None:
    chance = random.Random(seed)
    assignment, tracker = tracked()
    reached = 0
    _, other = tracked(epoch=2)
    late = handed_out(other, 10_000)
    left: dict[int, Delivery] = {}
    offsets: list[int] = []
    for index, gap in enumerate(gaps):
        reached += gap
        offsets.append(reached)
        if index in skipped:
            tracker.skip(reached)
            tracker.advance()
        else:
            left[reached] = handed_out(tracker, reached)
        while left and chance.random() < 0.6:
            settled = chance.choice(sorted(left))
            left.pop(settled).settle()
            expected = [offset for offset in offsets if offset < min(left, default=reached + 1)]
            if expected:
                assert tracker.commit_at <= expected[-1] + 1
                tracker.advance()
                assert tracker.commit_at == expected[-1] + 1
    late.settle()
    for delivery in chance.sample(list(left.values()), len(left)):
        delivery.settle()
        delivery.settle()
    assert tracker.commit_at == reached + 1
    assert assignment.unsettled == 0
    assert not tracker.slots


async def test_what_is_settled_in_any_order_releases_the_longest_prefix() -> None:
    assignment, tracker = tracked()
    first, second, third = (handed_out(tracker, offset) for offset in (7, 9, 12))
    third.settle()
    second.settle()
    assert (tracker.commit_at, tracker.oldest, assignment.released) == (-1, 7, 0)
    first.settle()
    assert (tracker.commit_at, assignment.released, len(tracker)) == (13, 3, 0)
    assert tracker.last is third


async def test_what_was_passed_over_does_not_hold_back_and_is_not_passed_too_soon() -> None:
    _, tracker = tracked()
    tracker.skip(3)
    delivery = handed_out(tracker, 4)
    tracker.skip(5)
    tracker.advance()
    assert tracker.commit_at == 4
    delivery.settle()
    assert tracker.commit_at == 6


async def test_room_is_told_once_when_enough_is_free() -> None:
    told: list[TopicPartition] = []
    _, tracker = tracked(on_room=told.append)
    deliveries = [handed_out(tracker, offset) for offset in range(6)]
    tracker.paused, tracker.resume_at = True, 2
    for delivery in deliveries[:3]:
        delivery.settle()
    assert told == []
    for delivery in deliveries[3:]:
        delivery.settle()
    assert told == [PLACE]
    assert not tracker.paused


async def test_room_is_also_told_when_records_are_passed_over() -> None:
    told: list[TopicPartition] = []
    _, tracker = tracked(on_room=told.append)
    tracker.paused = True
    tracker.skip(1)
    tracker.advance()
    assert told == [PLACE]


@pytest.mark.virtual
async def test_who_waits_for_room_wakes_when_there_is_some_or_the_assignment_ends() -> None:
    assignment, tracker = tracked()
    deliveries = [handed_out(tracker, offset) for offset in range(3)]
    assert not await assignment.settled_down_to(2, 0.1)
    waiting = asyncio.ensure_future(assignment.settled_down_to(1, 100.0))
    await asyncio.sleep(1)
    deliveries[2].settle()
    await asyncio.sleep(1)
    assert not waiting.done()
    deliveries[0].settle()
    assert await waiting
    waiting = asyncio.ensure_future(assignment.settled_down_to(0, 100.0))
    await asyncio.sleep(1)
    assignment.end()
    before = asyncio.get_running_loop().time()
    assert not await waiting
    assert asyncio.get_running_loop().time() == before


@pytest.mark.virtual
async def test_waiting_for_running_handlers_ends_with_them_or_in_time() -> None:
    loop = asyncio.get_running_loop()
    assignment, tracker = tracked()
    settled, given_back, stuck = (handed_out(tracker, offset) for offset in range(3))
    handed_out(tracker, 3)
    for delivery in (settled, given_back, stuck):
        assert delivery.start()
    assert assignment.running() == [settled, given_back, stuck]
    loop.call_later(1, settled.settle)
    loop.call_later(2, given_back.requeue)
    began = loop.time()
    await assignment.finished([settled, given_back], 100.0)
    assert loop.time() - began < 50
    began = loop.time()
    await assignment.finished([stuck], 5.0)
    assert loop.time() - began == pytest.approx(5.0)
    await assignment.finished([stuck, given_back], 100.0, left=1)
    assert loop.time() - began < 50


async def test_a_counting_tracker_keeps_nothing() -> None:
    assignment = Assignment(1)
    tracker = CountingTracker(assignment, PLACE)
    delivery = handed_out(tracker, 5)
    tracker.skip(6)
    tracker.advance()
    assert not tracker.slots
    assert assignment.unsettled == 1
    delivery.settle()
    assert assignment.unsettled == 0
    assert tracker.commit_at == -1


# The same records once more.


def again(
    past: EarlierDeliveries, offset: int, **fields: object
) -> tuple[bool, Delivery, PartitionTracker]:
    _, tracker = tracked(epoch=9)
    delivery = handed_out(tracker, offset, **fields)
    return past.resolve(delivery), delivery, tracker


async def test_the_result_of_a_running_handler_counts_for_the_record_that_came_again() -> None:
    _, tracker = tracked()
    running = handed_out(tracker, 3)
    running.start()
    running.attempts = 2
    past = EarlierDeliveries(tracker, None)
    dealt_with, delivery, new = again(past, 3)
    assert dealt_with
    assert (delivery.state, delivery.attempts) == (DeliveryState.RUNNING, 2)
    running.settle()
    assert new.commit_at == 4
    assert tracker._assignment.unsettled == 0


async def test_what_was_settled_behind_a_gap_is_settled_when_it_comes_again() -> None:
    _, tracker = tracked()
    handed_out(tracker, 3)
    handed_out(tracker, 4).settle()
    past = EarlierDeliveries(tracker, None)
    dealt_with, delivery, _ = again(past, 4)
    assert dealt_with
    assert delivery.state is DeliveryState.SETTLED


async def test_what_was_not_started_is_handed_out_again_with_its_attempts() -> None:
    _, tracker = tracked()
    queued = handed_out(tracker, 3)
    queued.attempts = 4
    past = EarlierDeliveries(tracker, None)
    dealt_with, delivery, _ = again(past, 3)
    assert not dealt_with
    assert (delivery.state, delivery.attempts) == (DeliveryState.QUEUED, 4)
    assert not queued.start()


async def test_what_was_settled_and_not_committed_is_settled_when_it_comes_again() -> None:
    _, tracker = tracked()
    for offset in (5, 6, 7):
        handed_out(tracker, offset).settle()
    tracker.committed = 5
    past = EarlierDeliveries(tracker, None)
    assert again(past, 6)[0]
    assert not again(past, 8)[0]
    # Never handed out here: somebody has put the group back.
    assert not again(past, 4, time=4.0)[0]
    # Younger: of a topic that was made anew.
    assert not again(past, 6, time=100.0)[0]


async def test_what_was_committed_runs_when_it_comes_again() -> None:
    _, tracker = tracked()
    handed_out(tracker, 5).settle()
    tracker.committed = 6
    assert not again(EarlierDeliveries(tracker, None), 5)[0]


async def test_another_record_at_the_same_offset_runs() -> None:
    _, tracker = tracked()
    running = handed_out(tracker, 3)
    running.start()
    dealt_with, delivery, _ = again(EarlierDeliveries(tracker, None), 3, payload=b"other")
    assert not dealt_with
    running.settle()
    assert delivery.state is DeliveryState.QUEUED


async def test_what_is_known_outlives_several_assignments() -> None:
    _, first = tracked(1)
    running = handed_out(first, 3)
    running.start()
    handed_out(first, 4).settle()
    past = EarlierDeliveries(first, None)
    _, second = tracked(2)
    # Taken away again before anything came.
    past = EarlierDeliveries(second, past)
    dealt_with, delivery, third = again(past, 3)
    assert dealt_with
    past = EarlierDeliveries(third, past)
    dealt_with, last, fourth = again(past, 3)
    assert dealt_with
    assert again(past, 4)[0]
    running.settle()
    assert delivery.state is last.state is DeliveryState.SETTLED
    assert fourth.commit_at == 4
    assert past.is_over(5)
    assert not past.is_over(4)


async def test_ranges_that_were_settled_grow_together() -> None:
    _, first = tracked(1)
    for offset in (5, 6):
        handed_out(first, offset).settle()
    _, second = tracked(2)
    for offset in (7, 8):
        handed_out(second, offset).settle()
    past = EarlierDeliveries(second, EarlierDeliveries(first, None))
    assert [again(past, offset)[0] for offset in range(4, 10)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


async def test_only_what_runs_is_kept_of_a_partition_that_others_have() -> None:
    _, tracker = tracked()
    handed_out(tracker, 2).settle()
    running = handed_out(tracker, 3)
    running.start()
    handed_out(tracker, 4).settle()
    past = EarlierDeliveries(tracker, None)
    assert past.keep_running()
    assert [again(past, offset)[0] for offset in (2, 3, 4)] == [False, True, False]
    past = EarlierDeliveries(tracker, None)
    running.settle()
    assert not past.keep_running()


def test_of_what_is_settled_too_early_only_what_tells_it_again_is_kept() -> None:
    assignment = Assignment(1)
    tracker = assignment.trackers[PLACE] = PartitionTracker(assignment, PLACE)
    deliveries = []
    for offset, payload in enumerate((b"first", b"small", b"x" * 1_000)):
        headers = (("a", b"x" * 1_000), ("a", b"y"))
        envelope = Envelope(
            topic="t", payload=payload, id=str(offset), headers={"a": "y"}, raw_headers=headers
        )
        assignment.unsettled += 1
        delivery = Delivery(envelope, epoch=1, token=offset, tracker=tracker, size=2_000)
        tracker.slots.append(delivery)
        deliveries.append(delivery)
    for delivery in deliveries[1:]:
        delivery.settle()
    small, large = (delivery.envelope for delivery in deliveries[1:])
    assert (small.payload, small.raw_headers, small.id) == (b"small", (), "1")
    assert (large.payload, large.raw_headers, large.id) == (b"", (), "2")
    assert large.left_out is not None
    assert large.left_out.size == 1_000


async def test_what_was_read_and_never_handed_out_is_committed_once_nothing_is_left() -> None:
    _, tracker = tracked()
    delivery = handed_out(tracker, 4)
    assert not tracker.pass_to(9), "one is not settled"
    delivery.settle()
    assert not tracker.pass_to(5), "that is known"
    assert tracker.pass_to(9)
    assert tracker.commit_at == 9
    tracker.committed = 12
    assert not tracker.pass_to(12)


@pytest.mark.parametrize("passed_over", [True, False])
async def test_what_can_be_committed_is_told_when_there_is_enough_of_it(passed_over: bool) -> None:
    told: list[int] = []
    assignment = Assignment(1, lambda: told.append(assignment.released))
    assignment.notify_at = 2
    tracker = PartitionTracker(assignment, PLACE)
    for offset in range(3):
        if passed_over:
            tracker.skip(offset)
            tracker.advance()
        else:
            handed_out(tracker, offset).settle()
    assert told == [2, 3]


async def test_only_who_waits_for_it_hears_that_bytes_were_settled() -> None:
    assignment = Assignment(1)
    tracker = SizeTracker(assignment)
    first, second = (tracker.count(Envelope(topic="t"), 10) for _ in range(2))
    assignment.size, assignment.unsettled = 20, 0
    first.epoch = second.epoch = tracker.epoch
    first.settle()
    waits = asyncio.create_task(assignment.settled_down_to(5, 60.0, 5))
    await asyncio.sleep(0)
    second.settle()
    assert await waits
    assert assignment.size == 0


async def test_who_waits_for_what_is_only_counted_wakes_when_it_is_settled() -> None:
    assignment = Assignment(1)
    tracker = CountingTracker(assignment, PLACE)
    first, second = handed_out(tracker, 1), handed_out(tracker, 2)
    waits = asyncio.create_task(assignment.settled_down_to(0, 60.0))
    await asyncio.sleep(0)
    first.settle()
    assert not waits.done()
    second.settle()
    assert await waits
