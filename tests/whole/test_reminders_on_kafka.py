"""Reminders and expiry on Kafka although members are killed, and others get their partitions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from spa_dat.testing import Kafka
from support.kafka_bus import create, new_prefix
from support.kafka_copies import Copies
from support.kafka_ledger import Process, seeded
from support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

KILLS = int(os.environ.get("SPA_DAT_TEST_KILLS", "4"))
PARTITIONS, KEYS, TICKS = 3, 10, 40


class World:
    """Two members on a broker, and what can be read there."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        self.server, self.prefix = kafka.server, new_prefix()
        self.members = [
            Process("kafka_ticker.py", [self.prefix, self.server, str(folder), str(n), str(TICKS)])
            for n in range(2)
        ]

    @contextlib.asynccontextmanager
    async def running(self, *read: str) -> AsyncIterator[list[Copies]]:
        """Start the members and readers of topics; end them afterwards."""
        for name in ("started", "ticked", "brief"):
            await create(self.server, f"{self.prefix}{name}", PARTITIONS)
        changelog = f"{self.prefix}_spa.state.ticker.brief"
        await create(self.server, changelog, PARTITIONS, cleanup_policy="compact")
        copies = [Copies(self.server, f"{self.prefix}{name}") for name in read]
        reading = [asyncio.create_task(one.read()) for one in copies]
        try:
            with contextlib.ExitStack() as stack:
                for member in self.members:
                    stack.enter_context(member)
                    member.launch()
                yield copies
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def publish(self, name: str) -> None:
        """Publish a message to each key."""
        producer = AIOKafkaProducer(bootstrap_servers=self.server)
        await producer.start()
        for key in range(KEYS):
            await producer.send_and_wait(f"{self.prefix}{name}", b"", key=b"%d" % key)
        await producer.stop()

    async def kill(self, number: int) -> None:
        """Kill a member."""
        assert await self.members[number].end(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.deadline(180 + 20 * KILLS)
async def test_every_reminder_has_its_effects_once_although_members_are_killed(
    kafka: Kafka, tmp_path: Path
) -> None:
    dice, world = seeded(), World(kafka, tmp_path)
    async with world.running("ticked") as (ticked,):
        await world.publish("started")
        for kill in range(KILLS):
            # More each time, so that it strikes them at any of their ticks.
            least = (kill + 1) * KEYS * TICKS // (KILLS + 2) + dice.randrange(KEYS)
            await eventually(lambda n=least: ticked.count >= n, 60.0)  # type: ignore[misc]
            number = dice.randrange(2)
            await world.kill(number)
            if dice.random() < 0.5:
                # Until the other one has its partitions, and what is due there.
                before = {key: len(values) for key, values in ticked.values.items()}
                await eventually(lambda b=before: _all_go_on(ticked, b), 60.0)  # type: ignore[misc]
            world.members[number].launch()
        await eventually(lambda: ticked.count >= KEYS * TICKS, 60.0)
    found = {
        key: [json.loads(value or b"") for value in values] for key, values in ticked.values.items()
    }
    assert found == {str(key): [[n, n] for n in range(TICKS)] for key in range(KEYS)}


def _all_go_on(ticked: Copies, before: dict[str, int]) -> bool:
    return all(
        len(values) > before.get(key, 0) or len(values) == TICKS
        for key, values in ticked.values.items()
    )


@pytest.mark.deadline(180)
async def test_what_expires_is_deleted_by_whoever_has_the_partitions(
    kafka: Kafka, tmp_path: Path
) -> None:
    world = World(kafka, tmp_path)
    async with world.running("_spa.state.ticker.brief") as (states,):
        await world.publish("brief")
        await eventually(lambda: len(states.values) == KEYS, 60.0)
        await world.kill(0)
        await eventually(lambda: all(values[-1] is None for values in states.values.values()), 60.0)
        # Each was there, and was deleted once.
        assert {tuple(value is None for value in values) for values in states.values.values()} == {
            (False, True)
        }
        await world.publish("brief")
        await eventually(lambda: states.count == 3 * KEYS, 60.0)
    last = [(values[2] or b"").partition(b"\n")[2] for values in states.values.values()]
    assert [json.loads(state) for state in last] == [{"n": 1}] * KEYS
