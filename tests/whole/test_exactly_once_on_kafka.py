"""What is forwarded exactly once is there exactly once, whatever becomes of who forwards it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

from spa_dat.testing import Kafka
from support.kafka_bus import create, new_prefix
from support.kafka_ledger import Ledger, Numbers, Process, seeded
from support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

KILLS = int(os.environ.get("SPA_DAT_TEST_KILLS", "4"))
PARTITIONS, KEYS, SHARE = 4, 100, 2_000
QUICK = "heartbeat_interval=0.3&rebalance_timeout=10&backoff_max=0.5&session_timeout=2"


class Copies:
    """What a reader of committed records finds in a topic."""

    def __init__(self, server: str, topic: str) -> None:
        self.lines: dict[str, list[int]] = {}
        self.count = 0
        self._consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=server,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
        )

    async def read(self) -> None:
        """Take notice of everything that comes, until cancelled."""
        await self._consumer.start()
        try:
            while True:
                for records in (await self._consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        key, number = record.value.split()
                        self.lines.setdefault(key.decode(), []).append(int(number))
                        self.count += 1
        finally:
            await self._consumer.stop()


@contextlib.contextmanager
def members(url: str, ledger: Ledger, count: int) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Process("kafka_forwarder.py", [url, str(ledger.path), str(number)]))
            for number in range(count)
        ]


@pytest.mark.deadline(240 + 20 * KILLS)
async def test_each_copy_is_there_once_and_in_order_although_members_are_killed_and_stopped(
    kafka: Kafka, tmp_path: Path
) -> None:
    rng = seeded()
    prefix = new_prefix()
    source, target = f"{prefix}numbers", f"{prefix}copies"
    await create(kafka.server, source, PARTITIONS)
    await create(kafka.server, target, PARTITIONS)
    ledger = Ledger(tmp_path / "ledger")
    numbers = Numbers(kafka.server, source, KEYS, rng)
    copies = Copies(kafka.server, target)
    reading = asyncio.create_task(copies.read())
    url = f"{kafka.url}?prefix={prefix}&{QUICK}"
    stops = 0
    try:
        async with numbers:
            with members(url, ledger, 3) as processes:
                for process in processes:
                    process.launch()
                for _ in range(KILLS):
                    async with numbers.flow(SHARE, ledger, rng.randrange(1, SHARE // 2)):
                        process = rng.choice(processes)
                        process.check()
                        if rng.random() < 0.5:
                            assert await process.end(signal.SIGKILL) == -signal.SIGKILL
                        else:
                            stops += 1
                            process.send(signal.SIGSTOP)
                    # Long enough away for the others to get its partitions.
                    await eventually(lambda: copies.count >= numbers.count)
                    if process.running:
                        process.send(signal.SIGCONT)
                    else:
                        process.launch()
                await numbers.produce(SHARE)
                await eventually(lambda: copies.count >= numbers.count)
                for process in processes:
                    assert await process.end(signal.SIGTERM) == 0
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    ledger.read()
    print(
        f"{numbers.count} messages, {KILLS - stops} kills, {stops} stops,"
        f" {ledger.repeated} handled again"
    )
    assert {key: len(found) for key, found in copies.lines.items()} == dict(numbers.sent)
    for found in copies.lines.values():
        assert found == list(range(len(found)))
