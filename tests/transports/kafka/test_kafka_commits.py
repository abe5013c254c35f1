"""Committing: by number and by time, one at a time, and never for what is somebody else's."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from spa_dat.transports import Delivery, Envelope
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._commits import Committer
from spa_dat.transports.kafka.consuming._committable_offsets import PartitionTracker

pytestmark = pytest.mark.virtual

ONE, TWO = TopicPartition("t", 0), TopicPartition("t", 1)


class Cluster:
    """Stands for a consumer of the library and its coordinator: takes commits."""

    def __init__(self) -> None:
        self._coordinator = self
        self._commit_lock = asyncio.Lock()
        self.commits: list[dict[TopicPartition, int]] = []
        self.answers: list[Exception | float] = []
        self.gone: TopicPartition | None = None
        self.why: Exception = kafka.UnknownTopicOrPartitionError()
        self.at_once = 0
        self.most_at_once = 0

    async def ensure_coordinator_known(self) -> None:
        """It is."""

    async def _do_commit_offsets(
        self, assignment: object, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answers.pop(0) if self.answers else 0.01
            if isinstance(answer, Exception):
                raise answer
            if self.gone in offsets:
                raise self.why
            await asyncio.sleep(answer)
            self.commits.append({tp: value.offset for tp, value in offsets.items()})
        finally:
            self.at_once -= 1


class Group:
    """An assignment of two partitions whose settled records are committed."""

    def __init__(self, **options: Any) -> None:
        self.cluster = Cluster()
        self.stats: Counter[str] = Counter()
        self.assignment = Assignment(1)
        for place in (ONE, TWO):
            self.assignment.trackers[place] = PartitionTracker(self.assignment, place)
        values: dict[str, Any] = {"commit_interval": 1.0, "commit_records": 3, **options}
        config = KafkaConfig("h", **values)
        self.committer = Committer(self.cluster, self.assignment, config, self.stats, "g")

    def hand_out(self, place: TopicPartition, *offsets: int) -> list[Delivery]:
        tracker = self.assignment.trackers[place]
        deliveries = []
        for offset in offsets:
            self.assignment.unsettled += 1
            delivery = Delivery(Envelope(topic="t"), epoch=1, token=offset, tracker=tracker)
            tracker.slots.append(delivery)
            deliveries.append(delivery)
        return deliveries

    def settle(self, place: TopicPartition, *offsets: int) -> None:
        for delivery in self.hand_out(place, *offsets):
            delivery.settle()


async def test_what_is_settled_is_committed_after_the_interval() -> None:
    group = Group()
    group.settle(ONE, 4)
    group.settle(TWO, 7)
    await asyncio.sleep(0.9)
    assert group.cluster.commits == []
    await asyncio.sleep(0.2)
    assert group.cluster.commits == [{ONE: 5, TWO: 8}]
    await asyncio.sleep(10)
    assert len(group.cluster.commits) == 1


async def test_many_settled_records_do_not_wait_for_the_interval() -> None:
    group = Group()
    group.settle(ONE, 4, 5, 6)
    await asyncio.sleep(0.1)
    assert group.cluster.commits == [{ONE: 7}]
    group.settle(TWO, 1, 2)
    await asyncio.sleep(0.1)
    assert len(group.cluster.commits) == 1
    group.settle(TWO, 3)
    await asyncio.sleep(0.1)
    assert group.cluster.commits[1:] == [{TWO: 4}]


async def test_there_is_one_commit_at_a_time_and_what_comes_meanwhile_is_the_next() -> None:
    group = Group()
    group.cluster.answers = [5.0]
    group.settle(ONE, 1, 2, 3)
    await asyncio.sleep(1)
    group.settle(ONE, *range(4, 20))
    await asyncio.sleep(3)
    assert group.cluster.commits == []
    await asyncio.sleep(2)
    assert group.cluster.commits == [{ONE: 4}, {ONE: 20}]
    assert group.cluster.most_at_once == 1


async def test_nothing_is_committed_past_what_is_not_settled() -> None:
    group = Group(commit_records=1)
    first, second, third = group.hand_out(ONE, 1, 2, 3)
    third.settle()
    await asyncio.sleep(5)
    assert group.cluster.commits == []
    first.settle()
    await asyncio.sleep(5)
    assert group.cluster.commits == [{ONE: 2}]
    second.settle()
    await asyncio.sleep(5)
    assert group.cluster.commits[1:] == [{ONE: 4}]


@pytest.mark.parametrize("seed", range(5))
async def test_random_settling_ends_with_everything_committed(seed: int) -> None:
    chance = random.Random(seed)
    group = Group(commit_records=7)
    left = group.hand_out(ONE, *range(0, 400, 2)) + group.hand_out(TWO, *range(100))
    group.cluster.answers = [
        chance.choice([0.01, 0.5, kafka.KafkaError("no"), 40.0]) for _ in range(30)
    ]
    while left:
        left.pop(chance.randrange(len(left))).settle()
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random())
        for commit in group.cluster.commits:
            for place, offset in commit.items():
                held = [d.token for d in left if d.tracker is group.assignment.trackers[place]]
                assert offset <= min(held, default=1_000)
    await asyncio.sleep(2_000)
    for place, end in ((ONE, 399), (TWO, 100)):
        offsets = [commit[place] for commit in group.cluster.commits if place in commit]
        assert offsets == sorted(offsets)
        assert offsets[-1] == end
    assert group.cluster.most_at_once == 1


async def test_a_failed_commit_is_tried_again_after_the_interval(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    group = Group()
    group.cluster.answers = [kafka.KafkaError("no"), ValueError("odd"), OSError("gone")]
    group.settle(ONE, 1)
    await asyncio.sleep(2.5)
    assert group.stats["kafka.commits_failed"] == 2
    await asyncio.sleep(2.5)
    assert group.cluster.commits == [{ONE: 2}]
    # Said once, not each time.
    assert len(caplog.records) == 1
    assert group.stats["kafka.commits"] == 1


async def test_commits_that_fail_for_long_are_trouble() -> None:
    group = Group()
    group.cluster.answers = [kafka.CoordinatorNotAvailableError() for _ in range(20)]
    group.settle(ONE, 1)
    await asyncio.sleep(9)
    assert group.committer.trouble is None
    await asyncio.sleep(5)
    assert "cannot be committed" in (group.committer.trouble or "")
    assert "CoordinatorNotAvailable" in (group.committer.trouble or "")
    await asyncio.sleep(10)
    assert group.cluster.commits == [{ONE: 2}]
    assert group.committer.trouble is None


async def test_a_commit_that_is_nobodys_any_more_is_no_trouble() -> None:
    group = Group()
    group.cluster.answers = [kafka.CoordinatorNotAvailableError()]
    group.cluster.gone = ONE
    group.settle(ONE, 1)
    await asyncio.sleep(30)
    assert group.committer.trouble is None


async def test_a_commit_that_gets_no_answer_is_given_up_and_tried_again() -> None:
    group = Group(request_timeout=3.0)
    group.cluster.answers = [1_000_000.0]
    group.settle(ONE, 1)
    await asyncio.sleep(10)
    assert group.cluster.commits == [{ONE: 2}]
    assert group.stats["kafka.commits_failed"] == 1


@pytest.mark.parametrize(
    "error",
    [
        kafka.IllegalGenerationError(),
        kafka.RebalanceInProgressError(),
        kafka.UnknownMemberIdError(),
    ],
)
async def test_a_commit_for_partitions_that_are_gone_is_no_failure(error: Exception) -> None:
    group = Group()
    group.cluster.answers = [error]
    group.settle(ONE, 1)
    await asyncio.sleep(5)
    assert group.stats == Counter({"kafka.commits_lost": 1})
    assert group.assignment.trackers[ONE].committed == -1


async def test_the_end_commits_what_is_free_and_nothing_follows() -> None:
    group = Group()
    held, *others = group.hand_out(ONE, 1, 2)
    group.settle(TWO, 5)
    await group.committer.finish(5.0)
    assert group.cluster.commits == [{TWO: 6}]
    for delivery in (held, *others):
        delivery.settle()
    group.settle(TWO, *range(6, 30))
    await asyncio.sleep(100)
    assert len(group.cluster.commits) == 1


async def test_the_end_waits_for_a_commit_under_way_and_then_makes_the_last() -> None:
    group = Group()
    group.cluster.answers = [2.0]
    group.settle(ONE, 1, 2, 3)
    await asyncio.sleep(0.1)
    group.settle(ONE, 4)
    await group.committer.finish(5.0)
    assert group.cluster.commits == [{ONE: 4}, {ONE: 5}]
    assert group.cluster.most_at_once == 1


async def test_the_end_tries_again() -> None:
    group = Group()
    group.cluster.answers = [kafka.RequestTimedOutError(), kafka.NotCoordinatorForGroupError()]
    group.settle(ONE, 1)
    await group.committer.finish(5.0)
    assert group.cluster.commits == [{ONE: 2}]


async def test_a_topic_that_is_gone_keeps_no_other_from_being_committed() -> None:
    group = Group()
    group.cluster.gone = TWO
    group.settle(ONE, 1)
    group.settle(TWO, 1)
    await asyncio.sleep(2)
    assert group.cluster.commits == [{ONE: 2}]
    group.settle(ONE, 2)
    await group.committer.finish(5.0)
    assert group.cluster.commits == [{ONE: 2}, {ONE: 3}]
    assert group.stats == Counter({"kafka.commits": 2})


async def test_the_end_is_bounded() -> None:
    loop = asyncio.get_running_loop()
    group = Group(request_timeout=3_600.0)
    group.cluster.answers = [1_000.0, 1_000.0]
    group.settle(ONE, 1, 2, 3)
    await asyncio.sleep(0.1)
    group.settle(ONE, 4)
    began = loop.time()
    await group.committer.finish(5.0)
    assert loop.time() - began < 6.0
    assert group.cluster.at_once == 0
    await asyncio.sleep(10_000)
    assert group.cluster.commits == []


async def test_nothing_is_committed_of_what_is_lost_already() -> None:
    group = Group()
    group.cluster.answers = [2.0]
    group.settle(ONE, 1, 2, 3)
    await asyncio.sleep(0.1)
    group.settle(TWO, 4)
    await group.committer.finish(5.0, lost=True)
    await asyncio.sleep(100)
    assert group.cluster.commits == []


async def test_committing_on_receipt_says_whether_it_is_confirmed() -> None:
    group = Group()
    assert await group.committer.commit({ONE: 5, TWO: 3})
    assert group.cluster.commits == [{ONE: 5, TWO: 3}]
    group.cluster.answers = [kafka.RebalanceInProgressError(), kafka.KafkaError("no")]
    assert not await group.committer.commit({ONE: 6})
    assert not await group.committer.commit({ONE: 6})
    await group.committer.finish(1.0)
    assert not await group.committer.commit({ONE: 7})
    assert len(group.cluster.commits) == 1


async def test_a_topic_that_may_not_be_committed_keeps_nothing_else_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = Group()
    group.cluster.gone = ONE
    group.cluster.why = kafka.TopicAuthorizationFailedError("t")
    for offset in range(3):
        group.settle(ONE, offset)
        group.settle(TWO, offset)
        await asyncio.sleep(5)
    assert group.cluster.commits == [{TWO: 1}, {TWO: 2}, {TWO: 3}]
    assert group.stats["kafka.commits_failed"] == 0
    (line,) = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert "topic 't' cannot be committed" in line
    await group.committer.finish(1.0)


@pytest.mark.parametrize("passing", [True, False])
async def test_a_failure_that_passes_is_not_said(
    caplog: pytest.LogCaptureFixture, passing: bool
) -> None:
    group = Group()
    error = kafka.KafkaConnectionError("closed")
    group.cluster.answers = [error] if passing else [error] * 3
    group.settle(ONE, 1)
    await asyncio.sleep(10)
    assert group.cluster.commits == [{ONE: 2}]
    assert group.stats["kafka.commits_failed"] == (1 if passing else 3)
    assert ("a commit failed" in caplog.text) is not passing


async def test_what_is_read_and_nobodys_to_settle_is_committed_past() -> None:
    group = Group()
    positions = {ONE: 5, TWO: 0}
    group.assignment.ids = {"t": "x"}
    group.assignment.trackers[TWO].committed = 3
    group.committer.catch_up(positions.__getitem__)
    await asyncio.sleep(2)
    assert group.cluster.commits == [{ONE: 5}]
    (delivery,) = group.hand_out(ONE, 5)
    positions |= {ONE: 9, TWO: 4}
    for _ in range(2):
        group.committer.catch_up(positions.__getitem__)
        await asyncio.sleep(2)
    # Not past what is not settled.
    assert group.cluster.commits[1:] == [{TWO: 4}]
    delivery.settle()
    group.committer.catch_up(positions.__getitem__)
    await asyncio.sleep(2)
    assert group.cluster.commits[2:] == [{ONE: 9}]


async def test_without_ids_nothing_is_committed_where_nothing_was_handed_out() -> None:
    group = Group()
    group.committer.catch_up(lambda place: 7)
    await asyncio.sleep(5)
    assert group.cluster.commits == []
