"""The history of topics: what is read of it, in which order, and what is refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import aiokafka.codec
import pytest
from aiokafka import AIOKafkaProducer

from spa_dat._moments import milliseconds
from spa_dat.errors import ConfigurationError, ConnectFailed, TransportError, UnknownTopic
from spa_dat.testing import Kafka
from spa_dat.transports import Envelope, KafkaConfig, KafkaTopic
from spa_dat.transports.kafka.consuming._history import read_history
from support.kafka_bus import bus_client, create, new_prefix, publish_at

pytestmark = pytest.mark.kafka

# Neither in the future nor too old to be kept.
NOON = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
BASE = NOON.timestamp()


async def history(
    kafka: Kafka,
    prefix: str,
    *filters: str,
    since: datetime = NOON,
    until: datetime | None = None,
    **options: Any,
) -> Sequence[tuple[float, Envelope]]:
    config = KafkaConfig(kafka.server, prefix=prefix, **options)
    times = milliseconds(since), None if until is None else milliseconds(until)
    return [found async for found in read_history(config, filters, since=times[0], until=times[1])]


def numbers(found: Sequence[tuple[float, Envelope]]) -> list[int]:
    return [int(envelope.payload) for _, envelope in found]


async def test_it_has_what_is_not_older_in_the_order_of_the_times(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 3)
    hour = 3600
    await publish_at(
        kafka.server,
        f"{prefix}a",
        0,
        {0: BASE - 1, 1: BASE, 2: BASE + 2 * hour, 3: BASE - hour, 4: BASE + 5 * hour},
    )
    await publish_at(kafka.server, f"{prefix}a", 1, {11: BASE + hour, 12: BASE + 4 * hour})
    await publish_at(kafka.server, f"{prefix}a", 2, {21: BASE - hour})
    found = await history(kafka, prefix, "a")
    # The older one comes after the one behind which it is in its partition.
    assert numbers(found) == [1, 11, 2, 3, 12, 4]
    assert [at - BASE for at, _ in found] == [0, hour, 2 * hour, -hour, 4 * hour, 5 * hour]
    assert [(e.topic, e.partition, e.offset) for _, e in found][:2] == [("a", 0, 1), ("a", 1, 0)]
    found = await history(
        kafka, prefix, "a", since=NOON + timedelta(hours=1), until=NOON + timedelta(hours=4)
    )
    assert numbers(found) == [11, 2, 3]
    assert not await history(kafka, prefix, "a", since=NOON + timedelta(hours=6))


async def test_many_records_are_all_there(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 4)
    async with bus_client(kafka.server, prefix=prefix) as client:
        posts = [
            client.bus.post(
                Envelope(topic="a", payload=b"%d" % number, key=str(number), time=BASE + number)
            )
            for number in range(5_000)
        ]
        await asyncio.gather(*posts)
    assert numbers(await history(kafka, prefix, "a", window_bytes=65_536)) == list(range(5_000))


async def test_transactions_that_were_aborted_are_left_out(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.server, transactional_id=f"{prefix}t"
    ) as producer:
        for number, aborted in enumerate((False, True, False, True)):
            await producer.begin_transaction()
            await producer.send_and_wait(f"{prefix}a", b"%d" % number)
            await (producer.abort_transaction() if aborted else producer.commit_transaction())
        assert numbers(await history(kafka, prefix, "a")) == [0, 2]
        # One that is still open is not waited for.
        await producer.begin_transaction()
        await producer.send_and_wait(f"{prefix}a", b"4")
        assert numbers(await history(kafka, prefix, "a")) == [0, 2]


async def test_what_has_expired_since_is_a_part_of_it(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    async with bus_client(kafka.server, prefix=prefix) as client:
        await client.publish("a", b"1", expiry=0.5, time=BASE)
    ((at, envelope),) = await history(kafka, prefix, "a")
    assert (at, envelope.expiry) == (BASE, 0.5)


async def test_filters_select_topics_and_addresses(kafka: Kafka) -> None:
    prefix = new_prefix()
    for name in ("a.1", "a.2", "b", "fleet"):
        await create(kafka.server, f"{prefix}{name}")
    async with bus_client(
        kafka.server, prefix=prefix, topics={"fleet/{truck}": KafkaTopic("fleet", key="truck")}
    ) as client:
        for number, topic in enumerate(("a/1", "a/2", "b", "fleet/x", "fleet/y")):
            await client.publish(topic, b"%d" % number, time=BASE + number)
        options: dict[str, Any] = {"topics": client.config.topics}
        assert numbers(await history(kafka, prefix, "a/+", **options)) == [0, 1]
        assert numbers(await history(kafka, prefix, "a/2", "b", **options)) == [1, 2]
        assert numbers(await history(kafka, prefix, "fleet/y", **options)) == [4]
        assert numbers(await history(kafka, prefix, "#", **options)) == [0, 1, 2, 3, 4]


async def test_topics_that_are_not_there_are_named(kafka: Kafka) -> None:
    prefix = new_prefix()
    with pytest.raises(UnknownTopic, match=f"there is no topic '{prefix}a' at kafka://"):
        await history(kafka, prefix, "a")
    with pytest.raises(ConfigurationError, match=r"no topic at kafka://.* matches 'a/\+', 'b/#'"):
        await history(kafka, prefix, "a/+", "b/#")
    with pytest.raises(ConfigurationError, match="Kafka cannot carry the level 'ö'"):
        await history(kafka, prefix, "ö")
    config = KafkaConfig("127.0.0.1:1", connect_timeout=0.5)
    with pytest.raises(ConnectFailed, match=re.escape(config.address)):
        await anext(read_history(config, ["a"], since=0))


async def test_what_can_not_be_read_is_named_after_all_that_comes_before(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a")
    await publish_at(kafka.server, f"{prefix}a", 0, {1: BASE})
    async with AIOKafkaProducer(bootstrap_servers=kafka.server, compression_type="zstd") as zstd:
        await zstd.send_and_wait(f"{prefix}a", b"x" * 10_000)
    monkeypatch.setattr(aiokafka.codec, "has_zstd", lambda: False)
    found = read_history(KafkaConfig(kafka.server, prefix=prefix), ["a"], since=milliseconds(NOON))
    assert (await anext(found))[1].payload == b"1"
    wrong = f"partition 0 of topic '{prefix}a' cannot be read from offset 1 on: .*zstd"
    with pytest.raises(TransportError, match=wrong):
        await anext(found)
