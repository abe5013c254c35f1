"""What publish or post has returned for arrives, although the process is killed and the broker is
away.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat import DistributedApplication, Message, OutboxFile, Socket
from spa_dat.testing import Kafka, Mosquitto
from support import durable_publisher_path
from support.failing_disk import fail_to_synchronise
from support.kafka_bus import new_prefix
from support.machine import examples
from support.waiting import eventually

StartMosquitto = Callable[..., Mosquitto]


class Publisher:
    """The lives of a publisher, which end by SIGKILL while its broker is away."""

    def __init__(self, url: str, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self.folder = folder / "outbox"
        self._begin = folder / "ledger.begin"
        self._command = [
            sys.executable,
            durable_publisher_path,
            url,
            str(self.ledger),
            str(self.folder),
        ]
        self._lives = 0

    def lines(self) -> list[str]:
        return self.ledger.read_text().split() if self.ledger.exists() else []

    def recorded(self) -> list[int]:
        return [int(line) for line in self.lines() if line != "ready"]

    async def live(self, dice: random.Random, stop: Callable[[], None]) -> None:
        """Have it publish, stop the broker, have it publish more, and kill it."""
        self._lives += 1
        # The number behind the last one may have been recorded before it was written down.
        first = max(self.recorded(), default=-1) + 2
        self._begin.write_text(f"{self._lives} {first}")
        process = subprocess.Popen(self._command)
        try:
            for more in (dice.randrange(1, 300), dice.randrange(1, 2_500)):
                count = len(self.recorded()) + more

                def has(count: int = count) -> bool:
                    assert process.poll() is None, "the publisher has ended"
                    return len(self.recorded()) >= count

                await eventually(has)
                await asyncio.to_thread(stop)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


def check(arrived: list[tuple[str | None, str]], recorded: list[int]) -> None:
    numbers = [int(payload.split()[1]) for _, payload in arrived]
    first = list(dict.fromkeys(numbers))
    assert set(recorded) <= set(numbers)
    assert first == sorted(first)
    contents = set(arrived)
    assert len({id for id, _ in contents}) == len(contents)
    print(f"{len(recorded)} recorded, {len(arrived) - len(first)} of them came again")


async def lives(
    url: str, folder: Path, stop: Callable[[], None], start: Callable[[], None], *, count: int
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    publisher = Publisher(url, folder)
    arrived: list[tuple[str | None, str]] = []
    reader = DistributedApplication(url, name="reader")

    @reader.application("numbers")
    async def note(payload: str, message: Message[str]) -> None:
        arrived.append((message.id, payload))

    async with reader:
        for _ in range(count):
            await publisher.live(dice, stop)
            await asyncio.to_thread(start)
        rest = DistributedApplication(
            url, name="durable", outbox=OutboxFile(folder=publisher.folder)
        )

        @rest.producer()
        async def publish() -> None:
            """Nothing more: what is left goes out."""

        async with rest:
            recorded = publisher.recorded()
            await eventually(
                lambda: {int(payload.split()[1]) for _, payload in arrived} >= set(recorded)
            )
    check(arrived, recorded)


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.deadline(120 + 40 * examples(3))
async def test_killed_publishers_lose_nothing_on_mosquitto(
    own_mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    broker = own_mosquitto(durable=True)

    def stop() -> None:
        if broker.alive:
            broker.stop()

    await lives(f"{broker.url}?backoff_max=0.3", tmp_path, stop, broker.start, count=examples(3))


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.deadline(200 + 50 * examples(2))
async def test_killed_publishers_lose_nothing_on_kafka(
    kafka_to_break: Kafka, tmp_path: Path
) -> None:
    broker = kafka_to_break

    def stop() -> None:
        if broker.alive:
            broker.stop()

    url = f"{broker.url}?prefix={new_prefix()}&create_topics=all&backoff_max=0.3&start_timeout=60"
    await lives(url, tmp_path, stop, broker.start, count=examples(2))


@pytest.mark.mosquitto
async def test_a_disk_that_fails_once_does_not_leave_an_actor_deaf(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not acknowledged keeps all that comes behind it from being received."""
    synchronised = fail_to_synchronise(monkeypatch, 1)
    handled: list[int] = []
    app = DistributedApplication(
        mosquitto.url, name="once-deaf", outbox=OutboxFile(folder=tmp_path)
    )

    @app.application("once-deaf/in", name="relay", window=3)
    async def relay(number: int, socket: Socket) -> None:
        handled.append(number)
        socket.post("once-deaf/out", number)

    async with app, DistributedApplication(mosquitto.url) as sender:
        for number in range(20):
            await sender.socket().publish("once-deaf/in", number)
        await eventually(lambda: len(handled) >= 20)
        await eventually(lambda: app.healthy)
    assert synchronised()
    assert handled == list(range(20))
    assert app.stats["posts.unconfirmed"] == 0
