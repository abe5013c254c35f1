"""Texts of every category of Unicode through every field of every bus, from both sides."""

from __future__ import annotations

import random
from typing import Any

import aiomqtt
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from spa_dat import DistributedApplication, Message, RetryPolicy, Socket
from spa_dat._texts import unfit_character
from spa_dat.errors import ConfigurationError, MessageTooLarge, RemoteError, SpaDatError
from spa_dat.runtime.dead_letters._reading import stored_letters
from spa_dat.runtime.dead_letters._stored_letter import StoredLetter
from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Envelope, as_provider
from support.memory import Site
from support.texts import CATEGORIES, any_bytes, any_text
from support.waiting import eventually

SEED = 20
ROUNDS = 3
ONCE = RetryPolicy(attempts=1)
NAMES = (
    "id",
    "key",
    "source",
    "time",
    "type",
    "specversion",
    "spa_reply",
    "spa_error",
    "spa_chain",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
)
WIRE_NAMES = (
    "reply_to",
    "ttl_ms",
    "correlation_id",
    "spa_reply_subject",
    "ce_id",
    "ce_subject",
    "ce_correlationid",
    "ce_causationid",
)


def said(seed: int, category: str, what: object) -> str:
    return f"seed {seed}, category {category!r}: {what!r:.300}"


# What a program sends.


async def publish_everything(app: DistributedApplication, prefix: str) -> None:
    """Each text in each field is refused at the call, or arrives as it is; the bus stays up."""
    got: list[Message[bytes]] = []

    @app.application(f"{prefix}/#", name="everything")
    async def everything(message: Message[bytes]) -> None:
        got.append(message)

    choice = random.Random(SEED)
    async with app:
        socket = app.socket()
        sent: list[tuple[str, dict[str, Any]]] = []
        errors: list[str] = []
        for category in CATEGORIES * ROUNDS:
            text = any_text(category, choice)
            attempts: list[tuple[str, dict[str, Any]]] = [
                (f"{prefix}/{text}", {}),
                (f"{prefix}/x", {"headers": {text: "value"}}),
                (f"{prefix}/x", {"headers": {"name": text}}),
                (f"{prefix}/x", {"key": text}),
                (f"{prefix}/x", {"content_type": text}),
            ]
            for topic, fields in attempts:
                try:
                    await socket.publish(topic, b"x", **fields)
                except (ConfigurationError, MessageTooLarge) as error:
                    errors.append(str(error))
                else:
                    sent.append((topic, fields))
            with pytest.raises(SpaDatError):
                await socket.request(f"{prefix}-nobody/{text}", b"x", timeout=0.01)
        await socket.publish(f"{prefix}/last", b"good")
        await eventually(lambda: len(got) > len(sent), 60)
        assert app.healthy
        assert app.stats["mqtt.lost"] == app.stats["kafka.producers_lost"] == 0
    assert errors
    assert [error for error in errors if len(error) > 1_000 or not error.isprintable()] == []
    assert [message.topic for message in got] == [*(topic for topic, _ in sent), f"{prefix}/last"]
    for message, (_, fields) in zip(got, sent, strict=False):  # the last one is besides
        assert dict(message.headers) == fields.get("headers", {})
        assert message.key == fields.get("key")
        assert message.content_type == fields.get("content_type", "application/octet-stream")


@pytest.mark.mosquitto
@pytest.mark.deadline(180)
async def test_what_a_program_publishes_on_mqtt(mosquitto: Mosquitto) -> None:
    await publish_everything(DistributedApplication(mosquitto.url, name="fuzz-a"), "fuzz-a")


async def test_the_memory_bus_refuses_what_mqtt_refuses() -> None:
    await publish_everything(DistributedApplication("memory://", name="fuzz-b"), "fuzz-b")


@pytest.mark.mosquitto
async def test_the_memory_bus_and_mqtt_refuse_the_same(mosquitto: Mosquitto) -> None:
    choice = random.Random(SEED)
    real, memory = as_provider(mosquitto.url), as_provider("memory://")
    for category in CATEGORIES:
        for _ in range(20):
            text = any_text(category, choice)
            for envelope in (
                Envelope(topic=text),
                Envelope(topic="x", key=text),
                Envelope(topic="x", headers={text: "x"}),
                Envelope(topic="x", headers={"x": text}),
                Envelope(topic="x", content_type=text),
                Envelope(topic="x", response_topic=text),
                Envelope(topic="x", id=text, source=text, type=text),
            ):
                outcomes = []
                for provider in (real, memory):
                    try:
                        provider.check_message(envelope)
                    except ConfigurationError as error:
                        outcomes.append(str(error))
                    else:
                        outcomes.append("")
                assert outcomes[0] == outcomes[1], said(SEED, category, text)


@pytest.mark.kafka
@pytest.mark.deadline(180)
async def test_what_a_program_publishes_on_kafka(kafka: Kafka) -> None:
    app = DistributedApplication(f"{kafka.url}?create_topics=all", name="fuzz-c")
    got: list[Message[bytes]] = []

    @app.application("fuzz-c/x", name="everything")
    async def everything(message: Message[bytes]) -> None:
        got.append(message)

    choice = random.Random(SEED)
    sent: list[dict[str, Any]] = []
    refused: set[str] = set()
    async with app:
        socket = app.socket()
        for category in CATEGORIES * ROUNDS:
            text = any_text(category, choice)
            with pytest.raises(ConfigurationError):
                await socket.publish(f"fuzz-c/{text}!", b"x")
            attempts: list[dict[str, Any]] = [
                {"headers": {text: "value"}},
                {"headers": {"name": text}},
                {"key": text},
                {"content_type": text},
            ]
            for fields in attempts:
                try:
                    await socket.publish("fuzz-c/x", b"x", **fields)
                except (ConfigurationError, MessageTooLarge):
                    refused.add(category)
                else:
                    sent.append(fields)
        await eventually(lambda: len(got) == len(sent), 60)
        assert app.healthy
        assert app.stats["kafka.producers_lost"] == 0
    # Everything that is UTF-8, and not too large.
    assert refused <= {"Cs", "long"}
    for message, fields in zip(got, sent, strict=True):
        assert dict(message.headers) == fields.get("headers", {})
        assert message.key == fields.get("key")


# What a program answers, and what its handlers raise.


def failing(app: DistributedApplication, topic: str, texts: list[str]) -> list[str]:
    """A responder that raises each text in each way, and the list of what it has handled."""
    handled: list[str] = []

    @app.application(topic, name="responder", retry=ONCE)
    async def responder(number: int) -> int:
        if number >= 3 * len(texts):
            handled.append("good")
            return number
        text = texts[number // 3]
        if number % 3 == 0:
            raise RemoteError(text, "text")
        if number % 3 == 1:
            raise RemoteError("code", text)
        raise ValueError(text)

    return handled


@pytest.mark.parametrize("bus", ["memory", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
@pytest.mark.deadline(180)
async def test_any_error_is_answered_and_any_message_parked(
    bus: str, request: pytest.FixtureRequest
) -> None:
    url = "memory://" if bus == "memory" else request.getfixturevalue("mosquitto").url
    await answer_everything(url, f"answers-{bus}")


@pytest.mark.kafka
@pytest.mark.deadline(180)
async def test_any_error_is_answered_and_any_message_parked_on_kafka(kafka: Kafka) -> None:
    await answer_everything(f"{kafka.url}?create_topics=all", "answers-kafka")


async def answer_everything(url: str, name: str) -> None:
    choice = random.Random(SEED)
    texts = [any_text(category, choice) for category in CATEGORIES]
    app = DistributedApplication(url, name=name)
    handled = failing(app, f"{name}/ask", texts)
    async with app:
        socket = app.socket()
        for number in range(3 * len(texts)):
            with pytest.raises(RemoteError) as raised:
                await socket.request(f"{name}/ask", number, reply=int, timeout=30)
            assert raised.value.code
            assert "\n" not in str(raised.value)
            assert len(raised.value.text) <= 1_100
            await socket.publish(f"{name}/ask", number)
        assert await socket.request(f"{name}/ask", 10_000, reply=int) == 10_000
        await eventually(lambda: app.stats["dead_letters.stored"] == 3 * len(texts), 60)
        assert handled == ["good"]
        assert app.healthy
        assert app.stats["mqtt.lost"] == app.stats["kafka.producers_lost"] == 0


# What strangers send.


def bouncer(app: DistributedApplication, topic: str) -> list[str]:
    """An actor that fails on everything but ``b"good"``, in all ways that quote a message."""
    good: list[str] = []

    @app.application(topic, name="bouncer", retry=ONCE)
    async def handle(message: Message[bytes], socket: Socket) -> None:
        if message.payload == b"good":
            good.append(message.topic)
            return
        shown = f"{message.topic} {message.headers} {message.key}"
        if len(good) % 2:
            raise RemoteError(message.topic, shown)
        raise ValueError(shown)

    return good


@pytest.mark.mosquitto
@pytest.mark.deadline(180)
async def test_what_strangers_send_on_mqtt(mosquitto: Mosquitto) -> None:
    app = DistributedApplication(mosquitto.url, name="fuzz-d")
    good = bouncer(app, "fuzz-d/#")
    answered: list[float] = []

    @app.application("fuzz-e", name="answering", retry=ONCE)
    async def answering(number: float) -> float:
        answered.append(number)
        return number

    choice = random.Random(SEED)
    count = 0
    async with (
        app,
        aiomqtt.Client(
            mosquitto.host, mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5
        ) as stranger,
    ):
        for category in CATEGORIES * ROUNDS:
            text = any_text(category, choice)
            # Mosquitto does not take these from anybody.
            if unfit_character(text) is not None or len(text.encode()) > 65_000:
                continue
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = text
            properties.CorrelationData = any_bytes(category, choice)[:65_535]
            properties.UserProperty = [
                (text, text),
                ("spa_dead_topic", text),
                (choice.choice(NAMES), text),
                (choice.choice(NAMES), ""),
            ]
            hostile = text
            if "+" not in text and "#" not in text:
                properties.ResponseTopic = text
                hostile = text if len(text.split("/")) < 200 else "x"
            topic = f"fuzz-d/{hostile}" if not set(hostile) & set("+#") else "fuzz-d/x"
            await stranger.publish(topic, text.encode(), qos=1, properties=properties)
            await stranger.publish("fuzz-d/good", b"good", qos=1)
            await stranger.publish("fuzz-e", b"1.5", qos=1, properties=properties)
            count += 1
        await eventually(lambda: len(good) == count, 90)
        await eventually(lambda: app.stats["dead_letters.stored"] >= count, 60)
        assert await app.socket().request("fuzz-e", 2.5, reply=float) == 2.5
        assert app.healthy
        assert app.stats["mqtt.lost"] == 0


@pytest.mark.kafka
@pytest.mark.deadline(180)
async def test_what_strangers_send_on_kafka(kafka: Kafka) -> None:
    app = DistributedApplication(f"{kafka.url}?create_topics=all", name="fuzz-f")
    good = bouncer(app, "fuzz-f/x")

    @app.application("fuzz-f/ask", name="answering", retry=ONCE)
    async def answering(number: float) -> float:
        return number

    choice = random.Random(SEED)
    count = 0
    # What has to be stored of each, as it came.
    poison: list[tuple[bytes, bytes | None, tuple[str, bytes | None]]] = []
    stranger = AIOKafkaProducer(
        bootstrap_servers=f"127.0.0.1:{kafka.port}", max_request_size=2_000_000
    )
    async with app:
        await stranger.start()
        try:
            for category in CATEGORIES * ROUNDS:
                text = any_text(category, choice).encode("utf-8", "replace").decode()
                headers = [
                    (text, any_bytes(category, choice)),
                    (choice.choice(NAMES), any_bytes(category, choice)),
                    (choice.choice(WIRE_NAMES), any_bytes(category, choice)),
                    (choice.choice(WIRE_NAMES), any_bytes(category, choice)),
                    ("content-type", any_bytes(category, choice)),
                    ("spa_dead_topic", text.encode()),
                ]
                # Else it would have expired, which is nobody's fault.
                headers = [(name, value) for name, value in headers if not value.isdigit()]
                key = any_bytes(category, choice)
                stamp = choice.choice((None, 0, 1))
                headers.append(("own", any_bytes(category, choice)))
                # Those with one id and one content have one dead letter.
                bad = b"? %d" % len(poison)
                try:
                    for topic, payload in (("fuzz-f.x", bad), ("fuzz-f.ask", b"1.5")):
                        await stranger.send_and_wait(
                            topic, payload, key=key, headers=headers, timestamp_ms=stamp
                        )
                        if payload == bad:
                            poison.append((bad, key, headers[-1]))
                except MessageSizeTooLargeError:
                    continue
                await stranger.send_and_wait("fuzz-f.x", b"good")
                count += 1
        finally:
            await stranger.stop()
        await eventually(lambda: len(good) == count, 90)
        # Counting is not enough: those of the other actor count, too, and may be the most.
        stored: list[StoredLetter] = []

        async def all_are_stored() -> bool:
            stored[:] = [
                letter
                async for letter in stored_letters(as_provider(kafka.url), "fuzz-f")
                if letter.actor == "bouncer"
            ]
            return len(stored) >= len(poison)

        await eventually(all_are_stored, 90, 0.5)
        assert await app.socket().request("fuzz-f/ask", 2.5, reply=float) == 2.5
        assert app.healthy
        assert app.stats["kafka.producers_lost"] == 0
    assert {(letter.flaw, letter.obstacle) for letter in stored} == {(None, None)}
    messages = [letter.message for letter in stored if letter.message is not None]
    found = [(each.payload, each.raw_key, each.raw_headers[-1]) for each in messages]
    assert sorted(found) == sorted(poison)


@pytest.mark.virtual
async def test_what_a_broker_lets_through_that_takes_anything() -> None:
    """Not every broker looks at texts; what comes is stored all the same."""
    site = Site()
    app = site.app()
    good = bouncer(app, "any/#")
    choice = random.Random(SEED)
    count = 0
    async with app:
        for category in CATEGORIES * ROUNDS:
            text = any_text(category, choice)
            site.publish(
                f"any/{text}",
                b"?",
                key=text,
                content_type=text,
                source=text,
                id=text,
                type=text,
                headers={text: text, choice.choice(NAMES): text},
                response_topic=text,
                correlation=any_bytes(category, choice),
            )
            site.publish("any/good", b"good")
            count += 1
        await eventually(lambda: len(good) == count)
        await site.settled("app.0.bouncer")
        assert app.healthy
        assert app.stats["dead_letters.stored"] == count
