"""Child processes while brokers go away and groups change: nothing is lost, keys stay in order."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication, Message, Socket
from spa_dat.errors import PublishUnknown
from spa_dat.harness.brokers import Kafka, Mosquitto, Proxy
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.hosting._process_lane import ProcessLane
from spa_dat.runtime.hosting._process_worker import ProcessWorker
from support.kafka_bus import new_prefix
from support.kafka_ledger import Ledger, seeded
from support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.deadline(150)]

KEYS = 12
KAFKA = "create_topics=all&partitions=4&backoff_max=0.5&session_timeout=3&heartbeat_interval=0.3"


async def killed(broker: Kafka) -> None:
    await asyncio.to_thread(broker.restart, kill=True)


async def restarted(broker: Mosquitto) -> None:
    await asyncio.to_thread(broker.restart)


def kafka_url(broker: Kafka, **options: object) -> str:
    given = "".join(f"&{name}={value}" for name, value in options.items())
    return f"{broker.url}?prefix={new_prefix()}&{KAFKA}{given}"


def worker(url: str, path: Path, **options: Any) -> DistributedApplication:
    """Return an application whose processes write down what they handle, before it is settled."""
    app = DistributedApplication(url, name="worker", stop_timeout=30, **options)

    @app.application("in/{key}/{number}", placement="process", processes=2, key="key")
    async def write_down(key: str, number: int) -> None:
        # Some of it takes long enough to be at work when something happens.
        if number % 50 == 0:
            await asyncio.sleep(0.02)
        append(path, key, number)

    return app


def worker_by_record_key(url: str, path: Path, **options: Any) -> DistributedApplication:
    """Return the same for one topic, whose records have the keys."""
    app = DistributedApplication(url, name="worker", stop_timeout=30, **options)

    @app.application("in", placement="process", processes=2)
    async def write_down(number: int, message: Message[bytes]) -> None:
        if number % 50 == 0:
            await asyncio.sleep(0.02)
        append(path, str(message.key), number)

    return app


def append(path: Path, key: str, number: int) -> None:
    # One write call: a line is there as a whole, in the order in which handlers were called.
    written = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(written, f"{key} {number}\n".encode())
    finally:
        os.close(written)


class Numbers:
    """Publishes numbers that go up for each key, and notes which were confirmed.

    Args:
        url: of the broker.
        topic: returns where a number of a key goes to.
    """

    def __init__(self, url: str, topic: Callable[[str, int], str], chance: random.Random) -> None:
        self.app = DistributedApplication(url, name="numbers")
        self._topic = topic
        self._chance = chance
        self._next: Counter[str] = Counter()
        self.confirmed: set[str] = set()

    @property
    def count(self) -> int:
        """How many there are so far."""
        return self._next.total()

    async def flow(self, ledger: Ledger, over: asyncio.Event) -> None:
        """Publish, a hundred at a time and no more than can be handled, until it is over."""
        under_way: set[asyncio.Task[None]] = set()
        socket = self.app.socket()
        while not over.is_set():
            key = f"k{self._chance.randrange(KEYS)}"
            under_way.add(asyncio.create_task(self._one(socket, key, self._next[key])))
            self._next[key] += 1
            if len(under_way) >= 100:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                # Brokers drop what does not fit into their queues.
                await ledger.has(self.count - 500)
        await asyncio.gather(*under_way)

    async def one_more_of_each(self) -> set[str]:
        """Publish a number for each key; return them."""
        socket, last = self.app.socket(), set()
        for key, number in self._next.items():
            last.add(f"{key} {number}")
            await self._one(socket, key, number)
        return last

    async def _one(self, socket: Socket, key: str, number: int) -> None:
        try:
            await socket.publish(self._topic(key, number), number, key=key, timeout=60)
        except PublishUnknown:
            return
        self.confirmed.add(f"{key} {number}")


async def goes_through(numbers: Numbers, ledger: Ledger, troubles: list[Callable[[], Any]]) -> None:
    """Have messages handled, and one trouble after the other meanwhile."""
    over = asyncio.Event()
    publishing = asyncio.create_task(numbers.flow(ledger, over))
    try:
        for trouble in troubles:
            await ledger.has(len(ledger) + 500)
            await trouble()
        await ledger.has(len(ledger) + 500)
    finally:
        over.set()
        await publishing
    await ledger.has(numbers.count)
    print(f"{ledger.repeated} of {numbers.count} were handled again")
    assert numbers.confirmed <= set(ledger.times)
    assert ledger.disorder == []


@pytest.mark.kafka
async def test_an_outage_of_kafka_loses_nothing(kafka_to_break: Kafka, tmp_path: Path) -> None:
    url = kafka_url(kafka_to_break, request_timeout=1, connect_timeout=1)
    ledger = Ledger(tmp_path / "ledger")
    app = worker_by_record_key(url, ledger.path)
    numbers = Numbers(url, lambda key, number: "in", seeded())
    async with app, numbers.app:
        await goes_through(numbers, ledger, [partial(killed, kafka_to_break)])
        assert app.stats["dead_letters.stored"] == 0


@pytest.mark.kafka
async def test_a_rebalance_loses_nothing(kafka: Kafka, tmp_path: Path) -> None:
    url = kafka_url(kafka)
    ledger = Ledger(tmp_path / "ledger")
    first, second = (
        worker_by_record_key(url, ledger.path, instance=instance) for instance in ("1", "2")
    )
    numbers = Numbers(url, lambda key, number: "in", seeded())

    async def second_comes() -> None:
        await second.__aenter__()

    async def second_has_some() -> None:
        await eventually(lambda: second.stats["messages.handled"] > 0)

    async def second_goes() -> None:
        await second.__aexit__(None, None, None)

    async with first, numbers.app:
        await goes_through(numbers, ledger, [second_comes, second_has_some, second_goes])
        assert first.stats["dead_letters.stored"] == 0


@pytest.mark.mosquitto
async def test_an_outage_of_mqtt_loses_nothing(
    own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = own_mosquitto(durable=True)
    url = f"{broker.url}?backoff_max=0.5&window=500"
    ledger = Ledger(tmp_path / "ledger")
    app = worker(url, ledger.path)
    numbers = Numbers(url, lambda key, number: f"in/{key}/{number}", seeded())
    async with app, numbers.app:
        await goes_through(numbers, ledger, [partial(restarted, broker)])
        assert app.stats["dead_letters.stored"] == 0


def settled_with(broker: Mosquitto) -> Iterator[str]:
    """Return what the worker has acknowledged of its messages, from the broker's log."""
    sent: dict[str, str] = {}
    of_worker = re.compile(
        r"Sending PUBLISH to worker\.0\.write_down \(.* m(\d+), 'in/(\w+)/(\d+)'"
        r"|Received PUBACK from worker\.0\.write_down \(Mid: (\d+)"
    )
    for line in of_worker.finditer(broker.log):
        identifier, key, number, acknowledged = line.groups()
        if acknowledged is None:
            sent[identifier] = f"{key} {number}"
        else:
            yield sent[acknowledged]


@pytest.mark.mosquitto
async def test_a_killed_mosquitto_forgets_only_what_was_not_acknowledged(
    own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = own_mosquitto(durable=True)
    url = f"{broker.url}?backoff_max=0.5&window=500"
    ledger = Ledger(tmp_path / "ledger")
    app = worker(url, ledger.path)
    numbers = Numbers(url, lambda key, number: f"in/{key}/{number}", seeded())
    over = asyncio.Event()
    async with app, numbers.app:
        publishing = asyncio.create_task(numbers.flow(ledger, over))
        await ledger.has(500)
        await asyncio.to_thread(broker.restart, kill=True)
        await ledger.has(len(ledger) + 500)
        over.set()
        await publishing
        # Keys are in order: with its last number a key has nothing more to come.
        last = await numbers.one_more_of_each()
        await eventually(lambda: len(ledger) and last <= set(ledger.times))
    acknowledged = set(settled_with(broker))
    forgotten = numbers.confirmed - set(ledger.times)
    print(f"of {len(numbers.confirmed)} confirmed ones the broker has forgotten {len(forgotten)}")
    # Acknowledgements that it had not read when it was killed are missing from its log.
    assert len(acknowledged) > 500
    assert acknowledged <= set(ledger.times)
    # It stores what has changed before it looks for more, so it is those of one moment.
    assert len(forgotten) < 20


def _worker_of(app: DistributedApplication) -> ProcessWorker:
    run = runs_of(app).current
    assert run is not None
    runner = run.working("write_down")
    assert runner is not None
    (lane,) = runner.lanes
    assert isinstance(lane, ProcessLane)
    (worker,) = lane.workers
    return worker


@pytest.mark.mosquitto
async def test_what_a_busy_process_returns_late_is_handled_in_its_place(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    ledger, go_on = Ledger(tmp_path / "ledger"), tmp_path / "go on"
    path = ledger.path
    async with Proxy(mosquitto.host, mosquitto.port) as proxy:
        url = f"mqtt://{proxy.host}:{proxy.port}?keepalive=120&backoff_max=0.5"
        app = DistributedApplication(url, name="busy", stop_timeout=30)

        @app.application("busy/{number}", placement="process")
        async def write_down(number: int) -> None:
            append(path, "key", number)
            while number == 200 and not go_on.exists():
                # The whole process, so that it does not hear of anything.
                time.sleep(0.01)

        other = DistributedApplication(mosquitto.url, name="busy-others")
        async with app, other:
            socket, worker = other.socket(), _worker_of(app)
            # From now on it gets many messages in advance.
            for number in range(200):
                socket.post(f"busy/{number}", b"")
            await ledger.has(200)
            await eventually(lambda: worker.load == 0)
            for number in range(200, 210):
                await socket.publish(f"busy/{number}", b"")
            await eventually(lambda: worker.load == 10 and len(ledger) == 201)
            proxy.cut()
            await eventually(lambda: app.stats["messages.recognised"] == 10)
            for number in range(210, 220):
                await socket.publish(f"busy/{number}", b"")
            go_on.touch()
            await ledger.has(220)
        assert ledger.disorder == []
        assert ledger.repeated == 0
