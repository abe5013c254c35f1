"""Child processes that are killed at random under load: nothing is lost, keys stay in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from typing import Any

import pytest

from spa_dat import DistributedApplication, RestartPolicy, RetryPolicy, Socket
from spa_dat.harness.brokers import Kafka, Mosquitto
from spa_dat.runtime.application._application import runs_of
from support.waiting import eventually

KILLS = int(os.environ.get("SPA_DAT_KILLS", "20"))
KEYS = 8
# No message is struck by so many signals that it is given up.
PATIENT = RetryPolicy(attempts=1000, first=0.01, factor=1, hold=3600)
# A process may be struck again before it has settled anything, and comes back however often.
STUBBORN = RestartPolicy(intensity=1000, backoff_min=0.01, backoff_max=0.1)


class Ledger:
    """What was sent for each key, and what was handled, in order."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = defaultdict(int)
        self.handled: dict[str, list[int]] = defaultdict(list)

    @property
    def missing(self) -> int:
        """How many were not handled yet."""
        return sum(count - len(set(self.handled[key])) for key, count in self.sent.items())

    def check(self) -> None:
        """Fail unless all were handled, those of a key in order, repetitions left aside."""
        for key, count in self.sent.items():
            first_times = list(dict.fromkeys(self.handled[key]))
            assert first_times == list(range(count)), key


async def kills(url: str, prefix: str, seed: int, number_of_kills: int) -> None:
    chance = random.Random(seed)
    ledger = Ledger()
    listener = DistributedApplication(url, name=f"{prefix}-listener")
    app = DistributedApplication(url, name=f"{prefix}-worker", stop_timeout=30, restart=STUBBORN)

    @listener.application(f"{prefix}/out/{{key}}")
    async def note(key: str, payload: int) -> None:
        ledger.handled[key].append(payload)

    @app.application(
        f"{prefix}/in/{{key}}", placement="process", processes=2, key="key", retry=PATIENT
    )
    async def work(key: str, payload: int, socket: Socket) -> None:
        # Some of it takes long enough to be struck.
        if payload % 5 == 0:
            await asyncio.sleep(0.002)
        socket.post(f"{prefix}/out/{key}", payload, key=key)

    async with listener, app:
        run = runs_of(app).current
        assert run is not None
        (actor,) = run.actors
        lanes: Any = actor.lanes
        done = False

        async def send() -> None:
            socket = listener.socket()
            while not done:
                for _ in range(20):
                    key = str(chance.randrange(KEYS))
                    number = ledger.sent[key]
                    ledger.sent[key] += 1
                    await socket.publish(f"{prefix}/in/{key}", number, key=key)
                # Brokers drop what does not fit into their queues.
                await eventually(lambda: ledger.missing < 300)

        sending = asyncio.ensure_future(send())
        killed = 0
        while killed < number_of_kills:
            await asyncio.sleep(chance.uniform(0.01, 0.3))
            lane = chance.choice(lanes)
            process = lane.workers[0]._process
            if process is not None and process.alive:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            await eventually(lambda: any(lane.up for lane in lanes))
        done = True
        await sending
        await eventually(lambda: ledger.missing == 0, timeout=120)
        assert app.stats["dead_letters.stored"] == 0
    ledger.check()


@pytest.mark.parametrize("seed", [1])
@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.deadline(300)
async def test_kills_at_random_lose_nothing_on_mqtt(mosquitto: Mosquitto, seed: int) -> None:
    await kills(f"{mosquitto.url}?window=500", f"kills{os.urandom(3).hex()}", seed, KILLS)


@pytest.mark.parametrize("seed", [2])
@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.deadline(300)
async def test_kills_at_random_lose_nothing_on_kafka(kafka: Kafka, seed: int) -> None:
    url = f"{kafka.url}?prefix=kills{os.urandom(3).hex()}&create_topics=all"
    await kills(url, "kills", seed, KILLS)
