"""Requests over Kafka: the inbox, other frameworks, other people's replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewPartitions

from spa_dat.errors import ConfigurationError, ConnectFailed
from spa_dat.testing import Kafka
from spa_dat.transports import Envelope
from spa_dat.transports.kafka.consuming import _partition_guard as _guard
from support.kafka_bus import BusClient, admin, bus_client, create, new_prefix, read, settings
from support.simulated import SERVER, world
from support.waiting import eventually

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def plain_responder(server: str, topic: str) -> AsyncIterator[None]:
    """Answers as other frameworks do: to the topic in ``reply_to``, with the correlation id."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=server, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=server)
    await consumer.start()
    await producer.start()

    async def answer() -> None:
        async for request in consumer:
            headers = dict(request.headers)
            await producer.send_and_wait(
                headers["reply_to"].decode(),
                request.value * 2,
                headers=[("correlation_id", headers["correlation_id"])],
            )

    task = asyncio.ensure_future(answer())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
        await producer.stop()
        await consumer.stop()


def request(client: BusClient, correlation: str, payload: bytes = b"a") -> Envelope:
    return Envelope(
        topic="double",
        payload=payload,
        response_topic=client.bus.reply_address(correlation),
        correlation=correlation.encode(),
    )


async def test_a_request_to_0_4_0_where_no_topic_may_be_created_names_the_option(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    for name in ("_spa.reply.app", "_spa.dead-letter.app"):
        await create(kafka.server, prefix + name)
    options: dict[str, Any] = {"create_topics": "never", "prefix": prefix, "wire": "spa-dat"}
    async with bus_client(kafka.server, **options) as client:
        with pytest.raises(ConfigurationError, match="create_topics='own'"):
            await client.bus.post(request(client, "1"))


@pytest.mark.virtual
async def test_requests_that_wait_for_places_of_others_without_a_reply_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with world():
        async with bus_client(SERVER, wire="spa-dat") as client:
            asked = [request(client, f"{n}") for n in range(17)]
            asked = [msgspec.structs.replace(envelope, expiry=2.0) for envelope in asked]
            await asyncio.gather(*map(client.bus.post, asked[:16]))
            await asyncio.sleep(3.0)
            assert "have to wait" not in caplog.text
            waiting = client.bus.post(asked[16])
            await eventually(lambda: "16 of the 16 that may be under way" in caplog.text)
            await waiting


async def test_a_plain_client_can_answer(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("double", b"", key="x", response_topic=client.bus.reply_address("0"))
        async with plain_responder(kafka.server, f"{client.config.prefix}double"):
            for number in range(20):
                client.bus.post(request(client, f"{number:04x}", str(number).encode()))
            await eventually(lambda: len(client.replies) == 21)
        replies = dict(client.replies)
        assert replies["0007"].payload == b"77"
        assert replies["0007"].correlation == b"0007"
        assert replies["0007"].topic == "_spa/reply/app"


async def test_the_inbox_has_its_place_before_the_first_request(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with bus_client(kafka.server, prefix=prefix) as first:
        for _ in range(5):
            await first.publish(first.bus.reply_address("ab"))
        await eventually(lambda: len(first.replies) == 5)
        for number in range(5):
            async with bus_client(kafka.server, prefix=prefix, instance=str(number + 1)) as other:
                # The reply is there as soon as the start is over.
                await first.publish(other.bus.reply_address("cd"), str(number).encode())
                await eventually(lambda: len(other.replies) == 1)
                assert other.replies[0][0] == "cd"
                assert other.stats["replies.foreign"] == 0
        await eventually(lambda: first.stats["replies.foreign"] == 5)
        assert len(first.replies) == 5


async def test_other_correlations_and_bad_bytes_are_dropped(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        token = client.bus.reply_address("").split("/")[3]
        producer = AIOKafkaProducer(bootstrap_servers=kafka.server)
        await producer.start()
        try:
            for correlation in (None, b"", b"ab", b"\xff\xfe", b"0" * 32 + b"/ab", token.encode()):
                headers = [] if correlation is None else [("correlation_id", correlation)]
                await producer.send_and_wait(name, b"x", headers=headers)
            good = [("correlation_id", f"{token}/ab".encode())]
            await producer.send_and_wait(name, None, key=b"k", headers=good)
        finally:
            await producer.stop()
        await eventually(lambda: len(client.replies) == 1)
        assert client.replies[0][0] == "ab"
        assert client.replies[0][1].tombstone
        assert client.stats["replies.foreign"] == 6


async def test_a_reply_from_a_host_whose_clock_is_behind_arrives(kafka: Kafka) -> None:
    """As a requester whose clock is ahead sees it: with its expiry it seems to be over."""
    async with bus_client(kafka.server) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        token = client.bus.reply_address("").split("/")[3]
        headers = [("correlation_id", f"{token}/ab".encode()), ("ttl_ms", b"30000")]
        producer = AIOKafkaProducer(bootstrap_servers=kafka.server)
        await producer.start()
        try:
            behind = int((time.time() - 600.0) * 1000)
            await producer.send_and_wait(name, b"4", headers=headers, timestamp_ms=behind)
        finally:
            await producer.stop()
        await eventually(lambda: len(client.replies) == 1)
        assert client.replies[0][1].payload == b"4"


async def test_a_receiver_of_replies_that_fails_does_not_stop_the_inbox(kafka: Kafka) -> None:
    async with bus_client(kafka.server, start=False) as client:
        seen: list[str] = []

        def on_reply(correlation: str, reply: Envelope) -> None:
            seen.append(correlation)
            raise RuntimeError("no")

        await client.bus.start(on_reply)
        await client.publish(client.bus.reply_address("ab"))
        await client.publish(client.bus.reply_address("cd"))
        await eventually(lambda: seen == ["ab", "cd"])


async def test_the_inbox_goes_on_where_it_was(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        kafka.proxy() as proxy,
        bus_client(kafka.server, prefix=prefix) as other,
        bus_client(f"{proxy.host}:{proxy.port}", prefix=prefix, name="asks") as client,
    ):
        await other.publish(client.bus.reply_address("00"))
        await eventually(lambda: len(client.replies) == 1)
        await proxy.refuse()
        proxy.cut()
        for number in range(1, 5):
            await other.publish(client.bus.reply_address(f"{number:02}"))
        await proxy.allow()
        await eventually(lambda: len(client.replies) == 5)
        assert [correlation for correlation, _ in client.replies] == [
            f"{number:02}" for number in range(5)
        ]


async def test_an_inbox_that_breaks_is_made_again(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish(client.bus.reply_address("00"))
        await eventually(lambda: len(client.replies) == 1)
        inbox = client.bus._inbox  # type: ignore[attr-defined]
        broken = inbox._consumer
        broken._fetcher._fetch_task.cancel()
        await client.publish(client.bus.reply_address("01"))
        await client.publish(client.bus.reply_address("02"))
        await eventually(lambda: len(client.replies) == 3)
        assert client.stats["kafka.inboxes_lost"] == 1
        assert inbox._consumer is not broken


async def test_an_inbox_whose_topic_was_deleted_makes_it_anew(kafka: Kafka) -> None:
    async with bus_client(kafka.server, topic_refresh=0.1) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        answer = Envelope(topic=client.bus.reply_address("0"))
        await client.bus.publish(answer, timeout=10)
        await eventually(lambda: len(client.replies) == 1)
        async with admin(kafka.server) as administrator:
            await administrator.delete_topics([name])
        await eventually(lambda: client.stats["kafka.inboxes_lost"] > 0)
        await eventually(lambda: _has_partitions(kafka, name))
        await client.bus.publish(answer, timeout=20)
        await eventually(lambda: len(client.replies) == 2)


async def _has_partitions(kafka: Kafka, name: str) -> bool:
    return (await settings(kafka.server, name))[0] > 0


async def test_replies_in_partitions_that_the_topic_gets_later_arrive(kafka: Kafka) -> None:
    async with bus_client(kafka.server, topic_refresh=0.1) as client:
        name = f"{client.config.prefix}_spa.reply.app"
        async with admin(kafka.server) as administrator:
            await administrator.create_partitions({name: NewPartitions(3)})
        correlation = ("correlation_id", client.bus.reply_address("0").split("/", 3)[3].encode())
        async with AIOKafkaProducer(bootstrap_servers=kafka.server) as producer:
            for number in (0, 1, 2, 0, 1, 2):
                await producer.send_and_wait(
                    name, b"%d" % number, partition=number, headers=[correlation]
                )
        await eventually(lambda: len(client.replies) >= 6)
        got = sorted(reply.payload for _, reply in client.replies)
        assert got == [b"0", b"0", b"1", b"1", b"2", b"2"]
        assert client.stats["kafka.inboxes_lost"] == 0


async def test_replies_that_cannot_be_read_are_trouble(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_guard, "_WITHOUT_LEADER", 0.1)
    async with bus_client(kafka.server, topic_refresh=0.1) as client:
        assert client.bus.trouble is None
        inbox: Any = client.bus
        cluster = inbox._inbox._consumer._client.cluster
        with monkeypatch.context() as patch:
            # As the library knows it when the broker with the only replica is away.
            patch.setattr(cluster, "leader_for_partition", lambda place: -1)
            await eventually(lambda: "has no leader" in (client.bus.trouble or ""))
        await eventually(lambda: client.bus.trouble is None)


async def test_replies_whose_broker_cannot_be_reached_are_trouble(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_guard, "_WITHOUT_LEADER", 0.1)
    async with bus_client(kafka.server, topic_refresh=0.1) as client:
        inbox: Any = client.bus
        cluster = inbox._inbox._consumer._client.cluster
        with monkeypatch.context() as patch:
            # A broker that others can reach.
            patch.setattr(cluster, "leader_for_partition", lambda place: 99)
            await eventually(lambda: client.bus.trouble)
            assert "broker 99, its leader, answers no fetch" in (client.bus.trouble or "")
        await eventually(lambda: client.bus.trouble is None)
        await client.publish(client.bus.reply_address("7"))
        await eventually(lambda: len(client.replies) == 1)


async def test_a_start_names_the_broker_that_does_not_tell_where_replies_end(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_answer(self: Any, places: Any) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", no_answer)
    limits: dict[str, Any] = {"start_timeout": 0.5, "connect_timeout": 1.0}
    async with bus_client(kafka.server, start=False, **limits) as client:
        with pytest.raises(ConnectFailed, match=rf"the end of reply topic .*at {kafka.server}"):
            await asyncio.wait_for(client.start(), 60)


async def test_applications_without_name_share_their_topics(kafka: Kafka) -> None:
    prefix = new_prefix()
    async with (
        bus_client(kafka.server, prefix=prefix, name="x1", ephemeral=True) as first,
        bus_client(kafka.server, prefix=prefix, name="x2", ephemeral=True) as second,
    ):
        await first.publish(second.bus.reply_address("ab"))
        await first.bus.park(Envelope(topic="a", id="1", payload=b"bad"), timeout=20)
        await eventually(lambda: len(second.replies) == 1)
        assert first.replies == []
    assert len(await read(kafka.server, f"{prefix}_spa.dead-letter.ephemeral", 1)) == 1
    assert (await settings(kafka.server, f"{prefix}_spa.reply.x1"))[0] == 0


async def test_an_application_whose_name_no_topic_can_have_is_refused(kafka: Kafka) -> None:
    async with bus_client(kafka.server, name="größe", start=False) as client:
        with pytest.raises(ConfigurationError, match="größe"):
            await client.start()
