"""Texts that a bus can not carry: whoever wrote them, nothing ends and nothing is blocked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
import pytest
from aiokafka import AIOKafkaProducer
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from spa_dat import DistributedApplication, RetryPolicy
from spa_dat.runtime.testing._letters import DeadLetter
from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Identity, Subscription, Surroundings
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.mqtt import Recorder
from support.waiting import eventually

ONCE = RetryPolicy(attempts=1)
HOSTILE = {
    "line break": "1 validation error for Reading\n  celsius\r\nERROR root forged",
    "controls": "".join(map(chr, (*range(32), *range(0x7F, 0xA0)))),
    "no characters": "\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0010ffff",
    "surrogate": "half \ud800 of it",
    "null": "a\0b",
    "terminal": "\x1b[2J\x9b31m",
    "long": "é" * 70_000,
    "right to left": "\u202egnp.exe",
}


@asynccontextmanager
async def stranger_on(broker: Mosquitto) -> AsyncIterator[Callable[..., Any]]:
    """Publishes with a client that knows nothing of this package."""
    async with aiomqtt.Client(
        broker.host, broker.port, protocol=aiomqtt.ProtocolVersion.V5
    ) as client:

        async def publish(topic: str, payload: bytes, **fields: Any) -> None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in fields.items():
                setattr(properties, name, value)
            await client.publish(topic, payload, qos=1, properties=properties)

        yield publish


async def letters_on(broker: Mosquitto, application: str, count: int) -> list[DeadLetter]:
    """The dead letters that are kept there, as somebody sees them who comes later."""
    provider = MqttProvider(MqttConfig(broker.host, port=broker.port))
    bus = provider.open(Surroundings(Identity("reader", ephemeral=True)))
    await bus.start(lambda correlation, envelope: None)
    recorder = Recorder()
    consumer = bus.consumer(
        Subscription("letters", (f"_spa/dead-letter/{application}/+",), durable=False), recorder
    )
    await consumer.start()
    deliveries = await recorder.get(count, 30)
    await consumer.close()
    await bus.close()
    return [DeadLetter.of(delivery.envelope) for delivery in deliveries]


# What the runtime writes of others.


@pytest.mark.mosquitto
@pytest.mark.parametrize("kind", HOSTILE)
async def test_an_error_with_any_text_is_stored_and_the_next_message_handled(
    mosquitto: Mosquitto, kind: str
) -> None:
    name, text = f"poison-{kind.replace(' ', '-')}", HOSTILE[kind]
    app = DistributedApplication(mosquitto.url, name=name)
    handled: list[bytes] = []

    @app.application(f"{name}/+", name="watch", retry=ONCE)
    async def watch(payload: bytes) -> None:
        if payload == b"bad":
            raise type("Bad\n\x1b\ufffe", (ValueError,), {})(text)
        handled.append(payload)

    async with app, stranger_on(mosquitto) as publish:
        await publish(f"{name}/a", b"bad")
        await publish(f"{name}/a", b"good")
        await eventually(lambda: handled == [b"good"])
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        assert app.healthy
        assert app.stats["mqtt.lost"] == 0
    (letter,) = await letters_on(mosquitto, name, 1)
    assert letter.payload == b"bad"
    assert letter.topic == f"{name}/a"
    for said in (letter.error, letter.text):
        assert "\n" not in said
        assert len(said) <= 1_000
    assert letter.error == "Bad\\n\\x1b\\ufffe"


@pytest.mark.mosquitto
async def test_a_request_with_a_deep_response_topic_ends_nobody(mosquitto: Mosquitto) -> None:
    app = DistributedApplication(mosquitto.url, name="deep")
    asked: list[int] = []

    @app.application("deep/price", name="price")
    async def price(amount: int) -> float:
        asked.append(amount)
        return 0.25 * amount

    async with app, stranger_on(mosquitto) as publish:
        for number, levels in enumerate((201, 202, 400), 1):
            await publish("deep/price", b"%d" % number, ResponseTopic="a/" * levels + "a")
        await eventually(lambda: asked == [1, 2, 3])
        assert await app.socket().request("deep/price", 4, reply=float) == 1.0
        assert app.stats["replies.refused"] == 3
        assert app.stats["mqtt.lost"] == 0
        assert app.healthy


@pytest.mark.kafka
async def test_a_record_with_headers_of_the_wire_format_is_parked(kafka: Kafka) -> None:
    app = DistributedApplication(f"{kafka.url}?create_topics=all", name="reserved")
    handled: list[float] = []

    @app.application("reserved/temperature", name="watch", retry=ONCE)
    async def watch(celsius: float) -> None:
        handled.append(celsius)

    async with app:
        stranger = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{kafka.port}")
        await stranger.start()
        try:
            for name in ("spa_reply_subject", "reply_to", "ttl_ms", "ce_time", "correlation_id"):
                headers = [(name, b"\n\0\xff"), ("own", b"x")]
                await stranger.send_and_wait("reserved.temperature", b"?", headers=headers)
            await stranger.send_and_wait("reserved.temperature", b"2.0")
        finally:
            await stranger.stop()
        await eventually(lambda: handled == [2.0], 30)
        assert app.stats["dead_letters.stored"] == 5
        assert app.healthy
