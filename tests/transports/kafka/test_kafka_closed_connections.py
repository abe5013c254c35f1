"""Publishes over which a Kafka broker closes its connections, as they are too large for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from spa_dat import DistributedApplication, KafkaConfig, RetryPolicy, Socket
from spa_dat._pytest import require
from spa_dat.errors import PublishRefused
from spa_dat.testing import Kafka
from spa_dat.transports.kafka.producing import _closed_connections, _publisher
from spa_dat.transports.kafka.producing._closed_connections import ClosedConnections
from support.kafka_bus import bus_client, create, new_prefix, read
from support.waiting import eventually

A, B = TopicPartition("a", 0), TopicPartition("b", 0)


@pytest.fixture(scope="module")
def narrow() -> Iterator[Kafka]:
    """A broker that accepts larger messages than requests."""
    require(Kafka)
    properties = {"socket.request.max.bytes": "300000", "message.max.bytes": "2000000"}
    with Kafka(properties=properties) as broker:
        yield broker


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_closed_connections, "_FOR_SECONDS", 0.2)
    monkeypatch.setattr(_publisher, "_QUIET", 0.2)


@pytest.mark.kafka
async def test_what_is_too_large_for_a_request_is_refused_and_holds_up_nothing(
    narrow: Kafka,
) -> None:
    async with bus_client(narrow.server) as client:
        large = asyncio.ensure_future(client.publish("a", b"x" * 500_000))
        small = [asyncio.ensure_future(client.publish("b", b"%d" % n)) for n in range(50)]
        with pytest.raises(PublishRefused, match=r"'a' \(\d+ bytes\).*socket.request.max.bytes"):
            await large
        await asyncio.gather(*small)
        assert client.stats["publishes.refused"] == 1
        await client.publish("a", b"x" * 200_000)
        (record,) = await read(narrow.server, f"{client.config.prefix}a", 1)
        assert len(record.value) == 200_000
        found = await read(narrow.server, f"{client.config.prefix}b", 50)
        # What a producer had sent when it was given up may be there twice.
        numbers = [*dict.fromkeys(int(record.value) for record in found)]
        assert numbers == [*range(len(numbers))]


@pytest.mark.kafka
async def test_what_is_only_too_large_together_arrives(narrow: Kafka) -> None:
    prefix = new_prefix()
    await create(narrow.server, f"{prefix}a", 4)
    async with bus_client(narrow.server, prefix=prefix) as client:
        keys = [str(number) for number in range(12)]
        await asyncio.gather(*(client.publish("a", b"x" * 150_000, key=key) for key in keys))
        assert client.stats["kafka.producers_lost"] > 0, "or this proves nothing"
        assert client.stats["publishes.refused"] == 0
        found = await read(narrow.server, f"{prefix}a", 12)
        assert {record.key.decode() for record in found} == {*keys}


@pytest.mark.kafka
async def test_in_a_transaction_it_makes_a_dead_letter_of_its_message(narrow: Kafka) -> None:
    prefix = new_prefix()
    config = KafkaConfig(narrow.server, prefix=prefix, create_topics="all")
    app = DistributedApplication(config, name="app")
    arrived: list[int] = []

    @app.application("sizes", exactly_once=True, retry=RetryPolicy(attempts=1))
    async def publish(size: int, socket: Socket) -> None:
        await socket.publish("out", b"x" * size)

    @app.application("out")
    async def note(payload: bytes) -> None:
        arrived.append(len(payload))

    async with app:
        for size in (1, 500_000, 2):
            await app.socket().publish("sizes", size)
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        await eventually(lambda: arrived == [1, 2])


async def test_only_what_happens_in_a_row_and_is_no_outage_counts() -> None:
    closings = ClosedConnections()
    for _ in range(2):
        closings.unanswered([A, B], closed=True)
    closings.answered(*B)
    assert closings.unanswered([A, B], closed=True) == 1
    assert closings.is_suspicious([A])
    assert not closings.is_suspicious([A, B])
    closings.unanswered([A], closed=False)
    assert not closings.is_suspicious([A])


async def test_it_is_proof_only_after_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now = 100.0
    monkeypatch.setattr(loop, "time", lambda: now)
    closings = ClosedConnections()
    for _ in range(50):
        closings.unanswered([A], closed=True)
    assert closings.is_suspicious([A])
    assert not closings.is_proof([A])
    now += 0.5
    assert closings.is_proof([A])
    assert not closings.is_proof([B])
    for _ in range(5):
        closings.unanswered([B], closed=True)
    now += 0.5
    assert not closings.is_proof([B])


@pytest.mark.kafka
async def test_who_is_accused_is_not_refused_if_connections_do_not_hold_without_it(
    narrow: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = _publisher.Publisher._judge
    judged: list[int] = []

    async def judging(self: Any, accused: Any, producer: Any) -> None:
        if not judged:
            asyncio.get_running_loop().call_later(0.05, producer._on_loss)
        judged.append(client.stats["publishes.refused"])
        await judge(self, accused, producer)

    monkeypatch.setattr(_publisher.Publisher, "_judge", judging)
    async with bus_client(narrow.server) as client:
        with pytest.raises(PublishRefused):
            await client.publish("a", b"x" * 500_000)
    assert judged == [0, 0]
