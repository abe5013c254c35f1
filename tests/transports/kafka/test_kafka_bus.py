"""Publishing to a Kafka broker."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.protocol.produce import ProduceRequest
from hypothesis import given, strategies as st

from spa_dat import DistributedApplication, Message, RetryPolicy
from spa_dat.errors import (
    ConfigurationError,
    MessageTooLarge,
    OutboxFull,
    PublishNotSent,
    PublishRefused,
)
from spa_dat.testing import Kafka
from spa_dat.transports import Envelope
from spa_dat.transports.kafka._partitioner import hash_of
from spa_dat.transports.kafka.producing import _partition_queue as _queue
from support.kafka_bus import bus_client, create, new_prefix, read
from support.waiting import eventually


@given(key=st.binary(max_size=200), partitions=st.integers(1, 50))
def test_keys_go_where_other_clients_put_them(key: bytes, partitions: int) -> None:
    numbers = list(range(partitions))
    assert hash_of(key) % partitions == DefaultPartitioner()(key, numbers, numbers)


@pytest.mark.kafka
async def test_records_keep_their_order_by_key_under_load(kafka: Kafka) -> None:
    choice = random.Random(7)
    async with bus_client(kafka.server, partitions=4, max_batch=2_000) as client:
        posts = []
        for number in range(5_000):
            key = str(choice.randrange(40))
            posts.append(
                client.bus.post(Envelope(topic="a/b", payload=str(number).encode(), key=key))
            )
            if choice.random() < 0.05:
                await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        records = await read(kafka.server, f"{client.config.prefix}a.b", 5_000)
    assert sorted(int(record.value) for record in records) == list(range(5_000))
    by_key: dict[bytes, list[int]] = {}
    places: dict[bytes, set[int]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(int(record.value))
        places.setdefault(record.key, set()).add(record.partition)
        assert record.partition == DefaultPartitioner()(record.key, [0, 1, 2, 3], [0, 1, 2, 3])
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert all(len(partitions) == 1 for partitions in places.values())


@pytest.mark.kafka
async def test_records_without_key_use_all_partitions(kafka: Kafka) -> None:
    async with bus_client(kafka.server, partitions=4, max_batch=2_000) as client:
        posts = [client.bus.post(Envelope(topic="a", payload=bytes(100))) for _ in range(2_000)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        records = await read(kafka.server, f"{client.config.prefix}a", 2_000)
    assert len(records) == 2_000
    assert {record.partition for record in records} == {0, 1, 2, 3}


@pytest.mark.kafka
async def test_a_payload_just_within_the_limit_is_published(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        limit = client.config.max_payload
        await client.publish("a", bytes(limit), key="k", headers={"h": "x" * 1_000})
        with pytest.raises(MessageTooLarge, match=rf"'a'.*{limit + 1}.*{limit} "):
            client.bus.post(Envelope(topic="a", payload=bytes(limit + 1)))


@pytest.mark.kafka
async def test_headers_count_for_the_size(kafka: Kafka) -> None:
    async with bus_client(kafka.server, max_payload=1_000, max_batch=1_000) as client:
        with pytest.raises(MessageTooLarge, match="key and headers"):
            client.bus.post(Envelope(topic="a", payload=b"x", headers={"h": "x" * 70_000}))
        assert not client.stats["kafka.producers_lost"]


@pytest.mark.kafka
async def test_a_record_that_the_topic_does_not_take_is_the_only_one_refused(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}small", max_message_bytes="3000")
    async with bus_client(kafka.server, prefix=prefix) as client:
        await client.publish("small")
        posts = {
            number: client.bus.post(
                Envelope(
                    topic="small",
                    payload=f"{number}".encode().ljust(5_000 if number in (3, 17) else 100),
                )
            )
            for number in range(20)
        }
        others = [client.bus.post(Envelope(topic="other", payload=b"y")) for _ in range(20)]
        results = await asyncio.wait_for(
            asyncio.gather(*posts.values(), return_exceptions=True), 20
        )
        await asyncio.wait_for(asyncio.gather(*others), 60)
        refused = [number for number, result in zip(posts, results, strict=True) if result]
        assert refused == [3, 17]
        assert isinstance(results[3], MessageTooLarge)
        assert "'small'" in str(results[3])
        await client.publish("small", b"last")
        records = await read(kafka.server, f"{prefix}small", 20)
        # The sequence goes on where it was: no other producer was needed, and so no repetition.
        assert client.stats["kafka.producers_lost"] == 0
    wanted = [str(number) for number in range(20) if number not in (3, 17)]
    assert [record.value.decode().strip() for record in records] == ["x", *wanted, "last"]


@pytest.mark.kafka
async def test_a_time_that_the_topic_does_not_take_is_refused(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", message_timestamp_before_max_ms="1000")
    async with bus_client(kafka.server, prefix=prefix) as client:
        old = client.bus.post(Envelope(topic="a", payload=b"old", time=1.0))
        new = client.bus.post(Envelope(topic="a", payload=b"new"))
        with pytest.raises(PublishRefused, match="time"):
            await asyncio.wait_for(old, 60)
        await asyncio.wait_for(new, 60)


@pytest.mark.kafka
async def test_a_record_without_key_for_a_compacted_topic_is_refused(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}table", cleanup_policy="compact")
    async with bus_client(kafka.server, prefix=prefix) as client:
        posts = [
            client.bus.post(Envelope(topic="table", payload=bytes([number]), key=key))
            for number, key in enumerate(["a", None, "b", None, "c", "d"])
        ]
        others = [client.bus.post(Envelope(topic="other", payload=b"y")) for _ in range(20)]
        results = await asyncio.wait_for(asyncio.gather(*posts, return_exceptions=True), 60)
        await asyncio.wait_for(asyncio.gather(*others), 60)
        refused = [number for number, result in enumerate(results) if result is not None]
        assert refused == [1, 3]
        assert isinstance(results[1], PublishRefused)
        assert "'table'" in str(results[1])
        assert "key=" in str(results[1])
        await client.publish("table", b"\6", key="a")
        records = await read(kafka.server, f"{prefix}table", 5)
        # Nobody else notices: no other producer was needed.
        assert client.stats["kafka.producers_lost"] == 0
    assert [record.value for record in records] == [b"\0", b"\2", b"\4", b"\5", b"\6"]


@pytest.mark.kafka
async def test_what_a_topic_does_not_take_for_long_is_said_with_the_reason(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_queue, "_REFUSED_FOR", 0.5)
    monkeypatch.setattr(_queue, "_REPLIES_REFUSED_FOR", 1.5)
    prefix = new_prefix()
    refusing = True
    original = AIOKafkaClient.send

    async def send(client: Any, node: Any, request: Any, **options: Any) -> Any:
        answer = await original(client, node, request, **options)
        if isinstance(request, ProduceRequest) and refusing:
            # As a broker answers that has lost the others.
            answer.topics = [
                (name, [(part[0], 19 if name == f"{prefix}safe" else part[1], *part[2:])])
                for name, (part,) in answer.topics
            ]
        return answer

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    async with bus_client(kafka.server, prefix=prefix) as client:
        post = client.bus.post(Envelope(topic="safe"))
        reply = client.bus.post(Envelope(topic="safe", correlation=b"7"))
        await eventually(lambda: "fewer replicas in sync" in caplog.text)
        await client.publish("other")
        assert "accepts no publishes" in (client.bus.trouble or "")
        # Whoever asked has chosen the topic, and must not keep the answerer from everything else.
        with pytest.raises(PublishRefused, match=r"given up.*fewer replicas"):
            await asyncio.wait_for(reply, 20)
        assert not post.done()
        (line,) = [message for message in caplog.messages if "replicas" in message]
        assert f"topic '{prefix}safe'" in line
        refusing = False
        await asyncio.wait_for(post, 60)
        await eventually(lambda: client.bus.trouble is None)
        assert client.stats["kafka.producers_lost"] == 0


@pytest.mark.kafka
@pytest.mark.parametrize("time", [1e30, -1e30])
async def test_a_time_that_no_record_can_have_is_refused(kafka: Kafka, time: float) -> None:
    async with bus_client(kafka.server) as client:
        with pytest.raises(PublishRefused, match="'a'"):
            await client.publish("a", time=time)
        await client.publish("a")


@pytest.mark.kafka
async def test_qos_0_is_confirmed_and_qos_2_refused(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("a", qos=0)
        with pytest.raises(ConfigurationError, match="qos=2"):
            client.bus.post(Envelope(topic="a", qos=2))
        assert len(await read(kafka.server, f"{client.config.prefix}a", 1)) == 1


@pytest.mark.kafka
async def test_retain_is_warned_of_once(kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    async with bus_client(kafka.server) as client:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await client.publish("a", retain=True)
            await client.bus.park(Envelope(topic="a", id="1"), timeout=20)
    assert [record.getMessage()[:18] for record in caplog.records] == ["the publish to 'a'"]


@pytest.mark.kafka
async def test_a_tombstone_is_a_record_without_value(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("a", b"", key="k", tombstone=True)
        await client.publish("a", b"", key="k")
        first, second = await read(kafka.server, f"{client.config.prefix}a", 2)
    assert (first.key, first.value) == (b"k", None)
    assert second.value == b""


@pytest.mark.kafka
@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_what_is_published_can_be_compressed(kafka: Kafka, compression: str) -> None:
    if compression != "gzip":
        pytest.importorskip("cramjam")
    async with bus_client(kafka.server, compression=compression) as client:
        posts = [client.bus.post(Envelope(topic="a", payload=bytes(1_000))) for _ in range(100)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        records = await read(kafka.server, f"{client.config.prefix}a", 100)
    assert {record.value for record in records} == {bytes(1_000)}


@pytest.mark.kafka
async def test_a_dead_letter_has_its_id_as_key_and_its_address_as_subject(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.bus.park(Envelope(topic="a", payload=b"bad", id="x/1"), timeout=20)
        (record,) = await read(kafka.server, f"{client.config.prefix}_spa.dead-letter.app", 1)
    assert record.key == b"x%2F1"
    assert dict(record.headers)["ce_subject"] == b"_spa/dead-letter/app/x%2F1"
    assert record.value == b"bad"


@pytest.mark.kafka
async def test_a_dead_letter_has_the_payload_even_if_it_is_empty(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.bus.park(Envelope(topic="a", id="1", headers={"h": "1"}), timeout=20)
        (record,) = await read(kafka.server, f"{client.config.prefix}_spa.dead-letter.app", 1)
    assert record.value == b""
    headers = dict(record.headers)
    assert headers["h"] == b"1"
    assert "spa_dead_size" not in headers


@pytest.mark.kafka
async def test_what_was_given_up_before_it_was_sent_is_not_sent(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("a", b"first")
        given_up = client.bus.post(Envelope(topic="a", payload=b"given up"))
        kept = client.bus.post(Envelope(topic="a", payload=b"kept"))
        assert given_up.cancel()
        await asyncio.wait_for(kept, 60)
        await asyncio.wait_for(client.bus.drain(), 60)
        records = await read(kafka.server, f"{client.config.prefix}a", 2)
    assert [record.value for record in records] == [b"first", b"kept"]


@pytest.mark.kafka
async def test_a_closed_bus_sends_nothing_and_closes_again(kafka: Kafka) -> None:
    async with bus_client(kafka.server, outbox=2) as client:
        assert client.bus.connected
        posts = [client.bus.post(Envelope(topic="a")) for _ in range(2)]
        with pytest.raises(OutboxFull, match="'a'"):
            client.bus.post(Envelope(topic="a"))
        await client.bus.close()
        await client.bus.close()
        assert not client.bus.connected
        results = await asyncio.gather(*posts, return_exceptions=True)
        assert [type(result) for result in results] == [PublishNotSent] * 2
        with pytest.raises(PublishNotSent):
            await client.publish("a")


@pytest.mark.kafka
async def test_a_dead_letter_is_the_original_and_handlers_get_its_bytes(kafka: Kafka) -> None:
    prefix = new_prefix()
    headers = [
        ("kafka_dlt-original-offset", (300).to_bytes(8, "big")),
        ("sig", b"\xff\xfe"),
        ("via", b"a"),
        ("via", b"b"),
        ("nothing", None),
        ("spa_dead_text", b"forged"),
    ]
    await create(kafka.server, f"{prefix}in")
    app = DistributedApplication(f"{kafka.url}?prefix={prefix}", name="app")
    seen: list[Message[bytes]] = []

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def handle(message: Message[bytes]) -> None:
        seen.append(message)
        raise ValueError("no")

    async with app:
        async with AIOKafkaProducer(bootstrap_servers=kafka.server) as producer:
            await producer.send_and_wait(
                f"{prefix}in",
                b"v",
                key=b"\xf7\x01\xffID",
                headers=headers,
                timestamp_ms=1_700_000_000_123,
            )
        await eventually(lambda: app.stats["dead_letters.stored"])
    assert seen[0].raw_key == b"\xf7\x01\xffID"
    assert seen[0].raw_headers == tuple(headers)
    (letter,) = await read(kafka.server, f"{prefix}_spa.dead-letter.app", 1)
    assert letter.key == b"\xf7\x01\xffID"
    assert letter.value == b"v"
    sent = [pair for pair in letter.headers if not pair[0].startswith(("spa_", "ce_"))]
    assert sent == headers[:-1]
    notes = {name: value for name, value in letter.headers if name.startswith("spa_dead_")}
    assert notes["spa_dead_time"] == b"2023-11-14T22:13:20.123+00:00"
    assert notes["spa_dead_text"] == b"no"


async def test_headers_without_a_value_are_sent(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}out")
    app = DistributedApplication(f"{kafka.url}?prefix={prefix}", name="app")
    got: list[Message[bytes]] = []

    @app.application("out")
    async def handle(message: Message[bytes]) -> None:
        got.append(message)

    async with app:
        await app.socket().publish("out", b"v", headers={"none": None, "some": "x"})
        await eventually(lambda: got)
    (record,) = await read(kafka.server, f"{prefix}out", 1)
    sent = {"none": None, "some": b"x"}
    assert {name: value for name, value in record.headers if name in sent} == sent
    assert len([name for name, _ in record.headers if name == "none"]) == 1
    assert {name: value for name, value in got[0].raw_headers if name in sent} == sent
    assert (got[0].headers["none"], got[0].headers["some"]) == ("", "x")
