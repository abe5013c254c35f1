"""A bridge from Kafka to MQTT that is killed, and a broker behind it that is away for a while."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat import DistributedApplication
from spa_dat.testing import Kafka, Mosquitto
from support.kafka_bus import create, new_prefix
from support.kafka_ledger import Ledger, Numbers, Process, seeded

pytestmark = [pytest.mark.kafka, pytest.mark.mosquitto, pytest.mark.slow]

COUNT, KILLS, KEYS = 5_000, 5, 20


async def test_a_bridge_that_is_killed_at_random_moments_loses_nothing(
    kafka: Kafka, own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    rng = seeded()
    mosquitto = own_mosquitto(durable=True)
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}numbers", 4)
    # Commits that are due at once pass whatever is not held back.
    source = f"{kafka.url}?prefix={prefix}&heartbeat_interval=0.3&commit_interval=0.01"
    target = f"{mosquitto.url}?backoff_max=0.5"
    ledger = Ledger(tmp_path / "ledger")
    observer = DistributedApplication(target, name="observer")

    @observer.application("bridged/+")
    async def note(payload: bytes) -> None:
        ledger.note(payload.decode())

    bridge = Process("kafka_bridge.py", [source, target])
    restart_at = rng.randrange(KILLS)
    async with observer, Numbers(kafka.server, f"{prefix}numbers", KEYS, rng) as numbers:
        with bridge:
            bridge.launch()
            for kill in range(KILLS):
                async with numbers.flow(COUNT // (KILLS + 1), ledger, rng.randrange(1, 400)):
                    if kill == restart_at:
                        await asyncio.to_thread(mosquitto.restart)
                    assert await bridge.end(signal.SIGKILL) == -signal.SIGKILL
                bridge.launch()
            await numbers.produce(COUNT - numbers.count)
            await ledger.has(COUNT)
            assert await bridge.end(signal.SIGTERM) == 0
    print(f"{ledger.repeated} of {COUNT} came again")
    assert ledger.disorder == []
    assert len(ledger) == COUNT
