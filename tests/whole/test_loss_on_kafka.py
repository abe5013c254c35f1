"""What is never lost, and never out of order, when members of a group come, go and die."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from spa_dat.testing import Kafka
from support.kafka_bus import create, new_prefix
from support.kafka_ledger import Ledger, Member, Numbers, seeded
from support.machine import examples

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PARTITIONS, KEYS = 4, 200
QUICK = "heartbeat_interval=0.3&rebalance_timeout=10&backoff_max=0.5"
# Often, so that it is killed with some of what it has committed, and some not.
QUICK += "&commit_interval=0.05"


class Group:
    """Three members, what they are given, and what they have handled."""

    def __init__(self, kafka: Kafka, folder: Path, rng: random.Random) -> None:
        self.prefix = new_prefix()
        self.ledger = Ledger(folder / "ledger")
        self.topic = f"{self.prefix}numbers"
        self.numbers = Numbers(kafka.server, self.topic, KEYS, rng)
        self._server = kafka.server
        self._url = f"{kafka.url}?prefix={self.prefix}&{QUICK}"

    @contextlib.contextmanager
    def members(
        self, *sessions: float, rate: float, concurrency: int = 1
    ) -> Iterator[list[Member]]:
        """A member, not started, for each session timeout."""
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(
                    Member(
                        f"{self._url}&session_timeout={session:g}",
                        self.ledger,
                        instance,
                        rate,
                        concurrency,
                    )
                )
                for instance, session in enumerate(sessions)
            ]

    async def create(self) -> None:
        """Make the topic."""
        await create(self._server, self.topic, PARTITIONS)

    def flow(self, count: int, handled: int) -> AbstractAsyncContextManager[None]:
        """While so many more are on their way, after so many more were handled."""
        return self.numbers.flow(count, self.ledger, handled)

    async def all_handled(self, timeout: float = 60.0) -> None:
        """Wait until nothing is left."""
        await self.ledger.has(self.numbers.count, timeout)

    def print_repeated(self) -> None:
        print(f"{self.ledger.repeated} of {self.numbers.count} were handled again")


@pytest.mark.deadline(240)
@pytest.mark.parametrize(
    ("kills", "concurrency"),
    [(examples(6), 1), (4, 4)],
)
async def test_members_that_are_killed_lose_nothing_and_keep_the_order_of_each_key(
    kafka: Kafka, tmp_path: Path, kills: int, concurrency: int
) -> None:
    rng = seeded()
    group = Group(kafka, tmp_path, rng)
    await group.create()
    share = 5_000 // concurrency
    count = share * (kills + 1)
    async with group.numbers:
        with group.members(30.0, 2.0, 2.0, rate=3_000, concurrency=concurrency) as members:
            for member in members:
                member.launch()
            for _ in range(kills):
                async with group.flow(share, rng.randrange(1, share // 2)):
                    member = rng.choice(members)
                    assert await member.end(signal.SIGKILL) == -signal.SIGKILL
                if member is not members[0] and rng.random() < 0.3:
                    # Long enough away for the others to get its partitions.
                    await group.all_handled()
                if rng.random() < 0.5:
                    await member.start()
                else:
                    member.launch()
            await group.numbers.produce(count - group.numbers.count)
            await group.all_handled()
            for member in members:
                member.check()
    group.print_repeated()
    assert group.ledger.disorder == []
    assert len(group.ledger) == count


@pytest.mark.deadline(180)
async def test_members_that_join_and_leave_in_good_order_handle_nothing_twice(
    kafka: Kafka, tmp_path: Path
) -> None:
    rng = seeded()
    group = Group(kafka, tmp_path, rng)
    await group.create()
    async with group.numbers:
        with group.members(2.0, 2.0, 2.0, rate=800) as members:
            for member in members:
                # Each takes partitions from those before it.
                async with group.flow(700, 0):
                    await member.start()
            for _ in range(4):
                async with group.flow(2_000, rng.randrange(1, 500)):
                    member = rng.choice(members)
                    assert await member.end(signal.SIGTERM) == 0
                if rng.random() < 0.5:
                    # Long enough away for the others to get its partitions.
                    await group.all_handled()
                await member.start()
            await group.all_handled()
            for member in members:
                assert await member.end(signal.SIGTERM) == 0
    group.print_repeated()
    assert group.ledger.disorder == []
    assert group.ledger.disorder == []
    assert group.ledger.repeated == 0


async def test_sigterm_under_load_leaves_the_rest_to_the_next_run(
    kafka: Kafka, tmp_path: Path
) -> None:
    rng = seeded()
    group = Group(kafka, tmp_path, rng)
    await group.create()
    async with group.numbers:
        await group.numbers.produce(2_000)
        with group.members(30.0, rate=800) as (member,):
            for _ in range(3):
                await member.start()
                await group.ledger.reaches(group.ledger.total() + rng.randrange(1, 400))
                assert await member.end(signal.SIGTERM) == 0
            assert len(group.ledger) < 2_000
            await member.start()
            await group.all_handled()
            assert await member.end(signal.SIGTERM) == 0
    assert group.ledger.disorder == []
    assert group.ledger.repeated == 0


async def test_a_member_that_was_frozen_loses_nothing(kafka: Kafka, tmp_path: Path) -> None:
    group = Group(kafka, tmp_path, seeded())
    await group.create()
    async with group.numbers:
        with group.members(2.0, 2.0, rate=800) as members:
            for member in members:
                await member.start()
            frozen, other = members
            async with group.flow(2_000, 100):
                frozen.send(signal.SIGSTOP)
            # The other one gets all partitions.
            await group.all_handled()
            frozen.send(signal.SIGCONT)
            await group.numbers.produce(1_000)
            await group.all_handled()
            for member in (frozen, other):
                assert await member.end(signal.SIGTERM) == 0
    group.print_repeated()
    assert group.ledger.disorder == []
