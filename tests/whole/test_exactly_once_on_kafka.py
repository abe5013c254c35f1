"""What is forwarded exactly once is there exactly once, whatever becomes of who forwards it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spa_dat.testing import Kafka
from support.kafka_bus import create, new_prefix
from support.kafka_copies import Copies
from support.kafka_ledger import Ledger, Numbers, Process, seeded
from support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

KILLS = int(os.environ.get("SPA_DAT_TEST_KILLS", "4"))
PARTITIONS, KEYS, SHARE = 4, 100, 2_000
QUICK = "heartbeat_interval=0.3&rebalance_timeout=10&backoff_max=0.5&session_timeout=2"


class Run:
    """A topic of numbers, members that handle them, and what these publish.

    Args:
        kafka: the broker.
        folder: for the ledger.
        target: the topic that they publish to.
        more: further topics of numbers.
    """

    def __init__(self, kafka: Kafka, folder: Path, target: str, more: Sequence[str] = ()) -> None:
        self.rng = seeded()
        self.prefix = new_prefix()
        self.server = kafka.server
        self.ledger = Ledger(folder / "ledger")
        self.source, self._target = f"{self.prefix}numbers", f"{self.prefix}{target}"
        self.more = [f"{self.prefix}{topic}" for topic in more]
        self.numbers = Numbers(kafka.server, self.source, KEYS, self.rng, self.more)
        self.copies = Copies(kafka.server, self._target)
        self.kills = self.stops = 0

    async def under_attack(self, program: str, *place: str, more: Sequence[str] = ()) -> None:
        """Kill and stop members while numbers come, until all of them are handled.

        Args:
            program: of the members.
            place: its arguments before the ledger and the number of the instance.
            more: those after that.
        """
        for topic in (self.source, *self.more, self._target):
            await create(self.server, topic, PARTITIONS)
        reading = asyncio.create_task(self.copies.read())
        try:
            with contextlib.ExitStack() as stack:
                members = [
                    stack.enter_context(
                        Process(program, [*place, str(self.ledger.path), str(n), *more])
                    )
                    for n in range(3)
                ]
                async with self.numbers:
                    await self._attack(members)
                for member in members:
                    assert await member.end(signal.SIGTERM) == 0
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self.ledger.read()
        print(
            f"{self.numbers.count} messages, {self.kills} kills, {self.stops} stops,"
            f" {self.ledger.repeated} handled again"
        )

    async def _attack(self, members: list[Process]) -> None:
        numbers, copies, rng = self.numbers, self.copies, self.rng
        # One that was killed while it started has not said that it is ready.
        lives: Counter[str] = Counter()
        for number, member in enumerate(members):
            member.launch()
            lives[str(number)] = 1
        for _ in range(KILLS):
            async with numbers.flow(SHARE, self.ledger, rng.randrange(1, SHARE // 2)):
                number = rng.randrange(len(members))
                member = members[number]
                member.check()
                if rng.random() < 0.5:
                    self.kills += 1
                    assert await member.end(signal.SIGKILL) == -signal.SIGKILL
                else:
                    self.stops += 1
                    member.send(signal.SIGSTOP)
            # Long enough away for the others to get its partitions.
            await eventually(lambda: copies.different >= numbers.count)
            if member.running:
                member.send(signal.SIGCONT)
            else:
                self.ledger.read()
                lives[str(number)] = self.ledger.lives[str(number)] + 1
                member.launch()
        await numbers.produce(SHARE)
        await eventually(lambda: copies.different >= numbers.count)
        # Before that a signal would not be heard.
        await eventually(lambda: self._all_live(lives))

    def _all_live(self, lives: Counter[str]) -> bool:
        self.ledger.read()
        return self.ledger.lives >= lives

    @property
    def found(self) -> dict[str, list[Any]]:
        """What is there, by key."""
        return self.copies.values


@pytest.mark.deadline(240 + 20 * KILLS)
async def test_each_copy_is_there_once_and_in_order_although_members_are_killed_and_stopped(
    kafka: Kafka, tmp_path: Path
) -> None:
    run = Run(kafka, tmp_path, "copies")
    url = f"{kafka.url}?prefix={run.prefix}&{QUICK}"
    await run.under_attack("kafka_forwarder.py", url)
    assert run.found == {
        key: [f"{key} {number}\n".encode() for number in range(count)]
        for key, count in run.numbers.sent.items()
    }


@pytest.mark.deadline(240 + 20 * KILLS)
@pytest.mark.parametrize("once", [True, False])
async def test_every_count_is_right_although_members_are_killed_and_stopped(
    kafka: Kafka, tmp_path: Path, once: bool
) -> None:
    run = Run(kafka, tmp_path, "counts")
    options = json.dumps({"exactly_once": once})
    await run.under_attack("kafka_counter.py", run.prefix, run.server, more=[options])
    found = {
        key: [tuple(json.loads(value)) for value in values] for key, values in run.found.items()
    }
    if not once:
        # What comes twice is the same.
        found = {key: sorted(set(values)) for key, values in found.items()}
    assert found == {
        key: [(key, number, number + 1) for number in range(count)]
        for key, count in run.numbers.sent.items()
    }


@pytest.mark.deadline(240 + 20 * KILLS)
async def test_every_count_over_two_topics_is_right_although_members_are_killed_and_stopped(
    kafka: Kafka, tmp_path: Path
) -> None:
    run = Run(kafka, tmp_path, "counts", ["more"])
    options = json.dumps({"exactly_once": True, "topics": ["numbers", "more"]})
    await run.under_attack("kafka_counter.py", run.prefix, run.server, more=[options])
    numbers: dict[str, list[int]] = {}
    for key, values in run.found.items():
        found = [json.loads(value) for value in values]
        assert [count for _, _, count in found] == [*range(1, len(found) + 1)], key
        for name, number, _ in found:
            assert name.partition(".")[0] == key
            numbers.setdefault(name, []).append(number)
    assert numbers == {name: [*range(count)] for name, count in run.numbers.sent.items()}
