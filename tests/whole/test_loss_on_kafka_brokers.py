"""What is never lost between a publish and a handler when the Kafka broker goes away."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from spa_dat import Context, DistributedApplication, Message, RetryPolicy, Socket
from spa_dat.errors import PublishUnknown
from spa_dat.testing import Kafka
from support.flooded import check_that_who_is_flooded_can_publish_and_request
from support.kafka_bus import create, new_prefix, read
from support.waiting import eventually

pytestmark = pytest.mark.kafka

OPTIONS = "create_topics=all&backoff_max=0.5&session_timeout=3&heartbeat_interval=0.3"
KEYS = 20

Trouble = Callable[[Kafka], None]


def killed(broker: Kafka) -> None:
    broker.restart(kill=True)


def stopped(broker: Kafka) -> None:
    broker.restart()


def address(broker: Kafka, **options: object) -> str:
    given = "".join(f"&{name}={value}" for name, value in options.items())
    return f"{broker.url}?prefix={new_prefix()}&{OPTIONS}{given}"


class Traffic:
    """An application that publishes numbers for itself, and notes which were confirmed and which
    have come."""

    def __init__(self, url: str, count: int) -> None:
        self.app = DistributedApplication(url, name="traffic")
        self.count = count
        self.confirmed: set[int] = set()
        self.handled: Counter[int] = Counter()
        self.disorder: list[int] = []
        self.last: dict[str, int] = {}
        self.app.application("numbers", name="note")(self.note)
        self.app.producer(name="publish")(self.publish)

    async def note(self, number: int, message: Message[bytes]) -> None:
        assert message.key is not None
        if number not in self.handled and number < self.last.get(message.key, -1):
            self.disorder.append(number)
        self.last[message.key] = max(number, self.last.get(message.key, -1))
        self.handled[number] += 1

    async def publish(self, socket: Socket) -> None:
        under_way: set[asyncio.Task[None]] = set()
        for number in range(self.count):
            under_way.add(asyncio.create_task(self.one(socket, number)))
            if len(under_way) >= 100:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*under_way)

    async def one(self, socket: Socket, number: int) -> None:
        try:
            await socket.publish("numbers", number, key=f"k{number % KEYS}", timeout=60)
        except PublishUnknown:
            return
        self.confirmed.add(number)

    async def run(self, broker: Kafka, trouble: Trouble) -> None:
        """Have it go through the trouble twice."""
        async with self.app:
            for share in (0.2, 0.6):
                await eventually(lambda: len(self.handled) >= share * self.count, 60)  # noqa: B023
                await asyncio.to_thread(trouble, broker)
            await eventually(lambda: len(self.confirmed) == self.count, 60)
            await eventually(lambda: len(self.handled) == self.count, 60)
        print(f"{self.handled.total() - self.count} of {self.count} were handled again")


@pytest.mark.slow
@pytest.mark.deadline(150)
@pytest.mark.parametrize("trouble", [killed, stopped])
async def test_a_broker_that_comes_back_on_its_data_has_lost_nothing(
    kafka_to_break: Kafka, trouble: Trouble
) -> None:
    broker = kafka_to_break
    traffic = Traffic(address(broker, partitions=4), 8_000)
    await traffic.run(broker, trouble)
    assert traffic.disorder == []


@pytest.mark.slow
@pytest.mark.deadline(150)
async def test_a_broker_that_is_frozen_for_longer_than_a_session_loses_nothing(
    kafka_to_break: Kafka,
) -> None:
    broker = kafka_to_break
    traffic = Traffic(address(broker, partitions=4, request_timeout=1, connect_timeout=1), 8_000)

    def frozen(broker: Kafka) -> None:
        broker.pause()
        frozen_for.wait(5)
        broker.resume()

    frozen_for = threading.Event()
    await traffic.run(broker, frozen)
    assert traffic.disorder == []


async def test_a_handler_with_full_mailbox_and_window_can_publish_and_request(
    kafka: Kafka,
) -> None:
    app = DistributedApplication(address(kafka), name="full")
    await check_that_who_is_flooded_can_publish_and_request(app)


async def committed(kafka: Kafka, group: str, topic: str) -> int | None:
    """The offset that a group has committed for the first partition."""
    looker = AIOKafkaConsumer(
        bootstrap_servers=kafka.server, group_id=group, enable_auto_commit=False
    )
    place = TopicPartition(topic, 0)
    looker.assign([place])
    await looker.start()
    try:
        offset: int | None = await looker.committed(place)
        return offset
    finally:
        await looker.stop()


async def test_a_poison_record_is_passed_only_when_its_dead_letter_is_stored(
    own_kafka: Callable[..., Kafka],
) -> None:
    letters, topic, group = "_spa.dead-letter.poisoned", "numbers", "poisoned.taker"
    kafka = own_kafka(
        sasl_users={"ann": "secret"},
        # Everything but storing dead letters.
        acls=[
            ("ann", "READ", "GROUP", "*"),
            ("ann", "READ", "TOPIC", "*"),
            ("ann", "WRITE", "TOPIC", topic),
        ],
    )
    for name in (letters, "_spa.reply.poisoned", topic):
        await create(kafka.server, name)
    url = f"kafka://ann:secret@{kafka.host}:{kafka.sasl_port}?allow_plain_password=true"
    app = DistributedApplication(f"{url}&commit_interval=0.05", name="poisoned")
    handled: list[int] = []
    failures: list[int] = []

    @app.application("numbers", name="taker", retry=RetryPolicy(attempts=2, first=0.01))
    async def take(number: int, context: Context) -> None:
        if number == 50:
            failures.append(context.attempt)
            raise ValueError("poison")
        handled.append(number)

    @app.producer()
    async def publish(socket: Socket) -> None:
        for number in range(100):
            socket.post("numbers", number)

    async def commits(offset: int) -> bool:
        return await committed(kafka, group, topic) == offset

    async with app:
        await eventually(lambda: commits(50))
        await eventually(lambda: app.stats["dead_letters.refused"] > 2)
        assert failures == [1, 2]
        assert not app.healthy
        assert await commits(50)
        await asyncio.to_thread(kafka.grant, "ann", "WRITE", "TOPIC", letters)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        await eventually(lambda: commits(100))
    assert handled == [number for number in range(100) if number != 50]
    (letter,) = await read(kafka.server, letters, 1)
    headers = dict(letter.headers)
    assert letter.value == b"50"
    assert headers["spa_dead_topic"] == b"numbers"
    assert headers["spa_dead_error"] == b"ValueError"
    assert headers["spa_dead_attempts"] == b"2"
