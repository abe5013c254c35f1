"""For how long a member has a partition without anybody else handling any of it."""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka.structs import TopicPartition

from spa_dat.transports._tenures import Tenure
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._committable_offsets import PartitionTracker
from spa_dat.transports.kafka.consuming._partition_tenures import PartitionTenures

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class Member:
    def __init__(self) -> None:
        self.tenures = PartitionTenures()
        self.assignment = Assignment(0)

    def takes_over(self, committed: Mapping[TopicPartition, int]) -> dict[TopicPartition, Tenure]:
        """Return the tenures of its next assignment, by partition with what is committed there."""
        self.assignment = Assignment(self.assignment.epoch + 1)
        for place, offset in committed.items():
            tracker = PartitionTracker(self.assignment, place)
            tracker.committed = offset
            self.assignment.trackers[place] = tracker
        self.tenures.take_over(self.assignment)
        return {place: self.tenure(place) for place in committed}

    def tenure(self, place: TopicPartition) -> Tenure:
        tenure = self.assignment.trackers[place].tenure
        assert tenure is not None
        return tenure

    def leaves(self, settled: Mapping[TopicPartition, int]) -> None:
        for place, offset in settled.items():
            self.assignment.trackers[place].commit_at = offset
        self.tenures.leave(self.assignment)


def test_a_tenure_goes_on_where_nobody_has_come_further() -> None:
    member = Member()
    first = member.takes_over({A: -1, B: 5})
    member.leaves({A: 7})
    # The last commit was lost, and in the other partition there was nothing to commit.
    assert member.takes_over({A: 3, B: 5}) == first
    member.leaves({})
    assert member.takes_over({A: 3, B: 5}) == first
    assert not any(tenure.over for tenure in first.values())


def test_a_tenure_ends_where_somebody_else_has_come_further() -> None:
    member = Member()
    first = member.takes_over({A: -1, B: -1})
    member.leaves({A: 7, B: 7})
    second = member.takes_over({A: 8, B: 7})
    assert first[A].over
    assert second[A] is not first[A]
    assert second[B] is first[B]
    assert not first[B].over


def test_a_tenure_ends_when_the_partition_is_gone() -> None:
    member = Member()
    first = member.takes_over({A: -1, B: -1})
    member.leaves({A: 7, B: 7})
    member.takes_over({B: 7})
    assert (first[A].over, first[B].over) == (True, False)
    member.leaves({})
    assert member.takes_over({A: 7, B: 7})[A] is not first[A]


def test_a_tenure_began_later_than_others_unless_nobody_else_has_handled_anything() -> None:
    member = Member()
    first = member.takes_over({A: 3, B: -1})
    member.leaves({B: 7})
    second = member.takes_over({A: 9, B: 7})
    assert first[B].began == 0 < first[A].began < second[A].began


def test_an_assignment_whose_positions_were_never_known_changes_nothing() -> None:
    member = Member()
    first = member.takes_over({A: -1})
    member.leaves({A: 7})
    unknown = Assignment(9)
    unknown.trackers[A] = PartitionTracker(unknown, A)
    member.tenures.leave(unknown)
    assert member.takes_over({A: 7}) == first


def test_who_wants_to_know_is_told_once_when_all_are_ended() -> None:
    member = Member()
    first = member.takes_over({A: -1, B: -1})
    told: list[bool] = []

    def tell() -> None:
        told.append(first[A].over)

    for _ in range(2):
        first[A].tell(tell)
    member.leaves({})
    member.takes_over({})
    assert told == [True]
