"""Records that the client library cannot read: names of headers that are no text."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from spa_dat.testing import Kafka
from spa_dat.testing.conformance import Inbox
from spa_dat.transports import Identity, Subscription, Surroundings
from spa_dat.transports.kafka import KafkaConfig, KafkaProvider
from spa_dat.transports.kafka._aiokafka_private import LenientRecords
from spa_dat.transports.kafka.consuming._history import read_history
from support.kafka_bus import bus_client, create, new_prefix
from support.waiting import eventually

_PLAIN, _SPOILT = b"zzzz", b"\xff\xfe\xff\xfe"
_CRC_AT, _CHECKED_FROM = 17, 21


def spoilt(batch: bytes) -> bytes:
    """The batch with a name of a header that is no UTF-8, and the checksum to it."""
    raw = bytearray(batch.replace(_PLAIN, _SPOILT))
    struct.pack_into(">I", raw, _CRC_AT, calc_crc32c(bytes(raw[_CHECKED_FROM:])))
    return bytes(raw)


def batch(compression: int = 0, headers: int = 1) -> bytes:
    builder = DefaultRecordBatchBuilder(
        2, compression, 0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=65_536
    )
    for number in range(3):
        some = [("kind", b"good"), ("none", None), (_PLAIN.decode(), b"x")][:headers]
        builder.append(
            number,
            timestamp=1_000 + number,
            key=b"k" if number else None,
            value=b"v%d" % number if number != 2 else None,
            headers=some,
        )
    return bytes(builder.build())


def read(records: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    while records.has_next():
        found += (
            (r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records.next_batch()
        )
    return found


@pytest.mark.parametrize("compression", [0, 1])
@pytest.mark.parametrize("headers", [0, 1, 2])
def test_what_the_library_can_read_is_read_the_same(compression: int, headers: int) -> None:
    data = batch(compression, headers) * 2
    assert read(LenientRecords(data)) == read(MemoryRecords(data))
    assert len(read(LenientRecords(data))) == 6


def test_a_name_that_is_no_text_is_shown_with_escapes() -> None:
    data = spoilt(batch(headers=3))
    with pytest.raises(UnicodeDecodeError):
        read(MemoryRecords(data))
    records = LenientRecords(data)
    assert [headers[-1] for *_, headers in read(records)] == [(r"\xff\xfe\xff\xfe", b"x")] * 3


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_a_batch_that_was_cut_off_is_left_for_the_next_fetch(cut: int) -> None:
    whole = batch()
    assert len(read(LenientRecords(whole + whole[:-cut]))) == 3


@pytest.mark.kafka
@pytest.mark.parametrize("durable", [True, False])
async def test_a_record_that_can_not_be_read_stops_and_loses_nothing(
    kafka: Kafka, durable: bool
) -> None:
    token = f"{random.randrange(1 << 40):x}"
    topic, count = f"salvage-{token}", 30
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.server)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 2, 1)])
    await admin.close()
    surroundings = Surroundings(Identity(f"app-{token}"))
    config = KafkaConfig(kafka.server, backoff_min=0.02, backoff_max=0.2, window=7)
    bus = KafkaProvider(config).open(surroundings)
    await bus.start(lambda correlation, reply: None)
    inbox = Inbox()
    subscription = Subscription("actor", (topic,), durable=durable, window=7)
    consumer = bus.consumer(subscription, inbox)
    try:
        if not durable:
            await consumer.start()
        await publish(kafka, topic, count)
        if durable:
            await consumer.start()
        await inbox.get(2 * count)
        for partition in (0, 1):
            payloads = [
                delivery.envelope.payload
                for delivery in inbox.deliveries
                if delivery.envelope.partition == partition
            ]
            assert payloads == [b"%d" % number for number in range(count)]
        assert surroundings.stats["messages.malformed"] >= 1
        assert surroundings.stats["kafka.reconnects"] == 0
        bad = [d for d in inbox.deliveries if r"\xff\xfe\xff\xfe" in d.envelope.headers]
        assert {(d.envelope.partition, d.envelope.payload) for d in bad} == {(0, b"13")}
        if durable:
            await eventually(lambda: surroundings.stats["kafka.commits"])
    finally:
        await consumer.close()
        await bus.close()


@pytest.mark.kafka
async def test_the_history_of_a_topic_has_such_a_record_too(kafka: Kafka) -> None:
    topic = f"{new_prefix()}history"
    await create(kafka.server, topic, 2)
    await publish(kafka, topic, 30)
    history = read_history(KafkaConfig(kafka.server), [topic], since=0)
    found = [envelope async for _, envelope in history]
    for partition in (0, 1):
        payloads = [it.payload for it in found if it.partition == partition]
        assert payloads == [b"%d" % number for number in range(30)]
    (bad,) = (it for it in found if r"\xff\xfe\xff\xfe" in it.headers)
    assert (bad.partition, bad.payload) == (0, b"13")


@pytest.mark.kafka
async def test_replies_do_not_wait_for_the_end_of_a_transaction(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        async with AIOKafkaProducer(
            bootstrap_servers=kafka.server, transactional_id=name
        ) as producer:
            await producer.begin_transaction()
            made = producer.create_batch()
            headers = [(_PLAIN.decode(), b"x")]
            made.append(key=None, value=b"", timestamp=None, headers=headers)
            build = made._build
            made._build = lambda: spoilt(bytes(build()))
            await (await producer.send_batch(made, name, partition=0))
            await client.publish(client.bus.reply_address("7"), b"reply")
            await eventually(lambda: client.replies)
            assert client.bus.trouble is None
            await producer.abort_transaction()
    assert client.stats["messages.malformed"] == 1
    assert client.stats["kafka.partitions_held"] == 0


async def publish(kafka: Kafka, topic: str, count: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.server, acks="all")
    await producer.start()
    try:
        for first in range(0, count, 3):
            for partition in (0, 1):
                made = producer.create_batch()
                bad = partition == 0 and first <= 13 < first + 3
                for number in range(first, first + 3):
                    headers = [(_PLAIN.decode(), b"x")] if bad and number == 13 else []
                    made.append(key=None, value=b"%d" % number, timestamp=None, headers=headers)
                if bad:
                    made.close()
                    made._buffer = spoilt(bytes(made._build()))
                await (await producer.send_batch(made, topic, partition=partition))
    finally:
        await producer.stop()
