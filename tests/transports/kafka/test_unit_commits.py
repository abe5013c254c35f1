"""The last commits of an assignment whose partitions are committed in transactions."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from spa_dat._limited_log import LimitedLog
from spa_dat._logs import get_logger
from spa_dat.transports import Delivery, Envelope
from spa_dat.transports._units import Outcome
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._snapshots import PartitionStates
from spa_dat.transports.kafka.consuming._unit_commits import UnitCommits
from spa_dat.transports.kafka.consuming._unit_tracker import RefusedOutcomes, UnitTracker
from spa_dat.transports.kafka.producing._transactions import TransactionFailed

PLACE = TopicPartition("orders", 0)
NOW = 1_000.0


class Producer:
    """Commits when it is told to; the first commit fails."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.goes_on = asyncio.Event()

    async def commit(
        self, _: Any, offsets: Mapping[TopicPartition, OffsetAndMetadata], **__: Any
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
