"""What is never lost between a publish and a handler, on a real broker."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from spa_dat import DistributedApplication, Socket
from spa_dat.testing import Mosquitto
from support import ledger_consumer_path
from support.flooded import check_that_who_is_flooded_can_publish_and_request
from support.machine import examples
from support.waiting import eventually

pytestmark = pytest.mark.mosquitto

StartMosquitto = Callable[..., Mosquitto]


def _has(sized: Sized, count: int) -> bool:
    return len(sized) >= count


class LedgerConsumer:
    """A consumer in a process of its own, which can be ended and started again."""

    def __init__(self, broker: Mosquitto, ledger: Path) -> None:
        self._command = [sys.executable, ledger_consumer_path, broker.url, str(ledger), "0.003"]
        self._ledger = ledger
        self._process: subprocess.Popen[bytes] | None = None

    def lines(self) -> list[str]:
        """What it has written so far, over all its lives."""
        return self._ledger.read_text().split() if self._ledger.exists() else []

    def numbers(self) -> list[str]:
        """The messages it has handled so far, over all its lives."""
        return [line for line in self.lines() if line != "ready"]

    async def start(self) -> None:
        """Start it and wait until its subscription is in force."""
        lives = self.lines().count("ready")
        process = self._process = subprocess.Popen(self._command)

        def ready() -> bool:
            assert process.poll() is None, f"the consumer has ended with {process.returncode}"
            return self.lines().count("ready") > lives

        try:
            await eventually(ready)
        except AssertionError:
            # Its stack goes to the captured output.
            process.send_signal(signal.SIGUSR1)
            await asyncio.to_thread(process.wait, 5.0)
            raise

    async def has_handled(self, count: int) -> None:
        """Wait until it has handled so many over all its lives."""
        await eventually(lambda: len(self.numbers()) >= count, 60.0, 0.001)

    async def end(self, how: signal.Signals) -> int:
        """Send it a signal and wait for its end; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        return await asyncio.to_thread(self._process.wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def publisher(broker: Mosquitto, count: int, first: int = 0) -> DistributedApplication:
    """An application that publishes so many numbered messages for the ledger and is done."""
    app = DistributedApplication(broker.url, name="publisher")

    @app.producer()
    async def publish(socket: Socket) -> None:
        for number in range(first, first + count):
            socket.post(f"ledger/{number}", b"x" * 100)

    return app


async def test_restart_of_the_broker_in_the_middle_loses_nothing(
    own_mosquitto: StartMosquitto,
) -> None:
    broker = own_mosquitto(durable=True)
    count, handled = 5000, dict[int, int]()
    app = DistributedApplication(f"{broker.url}?backoff_max=0.5", name="restarts")

    @app.application("numbers/{number}")
    async def note(number: int, payload: bytes) -> None:
        handled[number] = handled.get(number, 0) + 1

    @app.producer()
    async def publish(socket: Socket) -> None:
        for number in range(count):
            socket.post(f"numbers/{number}", b"x" * 100)
            if number % 200 == 199:
                await socket.publish("pace", b"", timeout=60.0)

    async with app:
        for share in (0.2, 0.5, 0.8):
            await eventually(partial(_has, handled, int(share * count)), 60.0)
            await asyncio.to_thread(broker.restart)
        await eventually(lambda: len(handled) == count, 60.0)
    assert sorted(handled) == list(range(count))


@pytest.mark.deadline(180)
async def test_kill_9_of_the_consumer_at_random_moments_loses_nothing(
    own_mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    broker = own_mosquitto(durable=True)
    count = 200 * examples(4)
    with LedgerConsumer(broker, tmp_path / "ledger") as consumer:
        await consumer.start()
        # Each life gets messages of its own: one may handle all there are before it is ended.
        for published in range(0, count, 200):
            async with publisher(broker, 200, first=published) as app:
                await consumer.has_handled(published + rng.randrange(1, 150))
                await consumer.end(signal.SIGKILL)
                await consumer.start()
                await app.wait()
        await eventually(lambda: len(set(consumer.numbers())) == count, 60.0)
        assert await consumer.end(signal.SIGTERM) == 0


async def test_a_handler_with_full_mailbox_and_window_can_publish_and_request(
    own_mosquitto: StartMosquitto,
) -> None:
    broker = own_mosquitto(durable=True)
    app = DistributedApplication(broker.url, name="full")
    await check_that_who_is_flooded_can_publish_and_request(app)


async def test_sigterm_under_load_leaves_the_rest_with_the_broker(
    own_mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    broker = own_mosquitto(durable=True)
    with LedgerConsumer(broker, tmp_path / "ledger") as consumer:
        await consumer.start()
        # Each life gets messages of its own: one may handle all there are before it is ended.
        for published in range(0, 600, 200):
            async with publisher(broker, 200, first=published) as app:
                await app.wait()
            await consumer.has_handled(published + 20)
            assert await consumer.end(signal.SIGTERM) == 0
            await consumer.start()
        await eventually(lambda: len(set(consumer.numbers())) == 600)
        numbers = consumer.numbers()
        # A stop in good order acknowledges what was handled: nothing is done twice.
        assert len(numbers) == len(set(numbers))
