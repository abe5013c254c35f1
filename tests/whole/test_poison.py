"""Texts that a bus cannot carry: whoever wrote them, nothing ends and nothing is blocked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from spa_dat import DistributedApplication, Message, RetryPolicy, Socket
from spa_dat._environment import Environment
from spa_dat._texts import unfit_character
from spa_dat.errors import ConfigurationError, MessageTooLarge, PublishRefused, RemoteError
from spa_dat.harness._dead_letter import DeadLetter
from spa_dat.runtime.dead_letters._writing import dead_letter, plain, simpler
from spa_dat.runtime.messaging._outgoing_message import MessageBuilder, OutgoingMessage
from spa_dat.testing import Harness, Kafka, Mosquitto
from spa_dat.transports import Envelope, Identity, Subscription, Surroundings
from spa_dat.transports.kafka import KafkaConfig, KafkaProvider
from spa_dat.transports.memory import MemoryBus
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.memory import Site
from support.mqtt import Recorder
from support.scripted import Peer, ScriptedBroker, publish, suback
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
        await eventually(lambda: handled == [2.0])
        assert app.stats["dead_letters.stored"] == 5
        assert app.healthy


# What a program sends.

FIELDS = ("topic", "name", "value", "key", "content_type", "response_topic")


def with_text(builder: MessageBuilder, field: str, text: str) -> OutgoingMessage:
    if field in ("name", "value"):
        return builder("t", 1, headers={text: "x"} if field == "name" else {"x": text})
    if field == "topic":
        return builder(text, 1)
    options: dict[str, Any] = {field: text}
    return builder("t", 1, **options)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "right to left"])
def test_what_no_broker_takes_is_an_error_at_the_call(kind: str, field: str) -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    errors: list[str] = []

    @app.application("n")
    async def handle(
        number: int, socket: Socket, message_builder: MessageBuilder, message: Message[int]
    ) -> None:
        outgoing = with_text(message_builder, field, HOSTILE[kind])
        with pytest.raises(ConfigurationError) as posting:
            socket.post(outgoing)
        with pytest.raises(ConfigurationError) as publishing:
            await socket.publish(outgoing)
        errors.extend((str(posting.value), str(publishing.value)))

    with Harness(app) as harness:
        harness.publish("n", 1)
        harness.settle()
        assert harness.published("t") == []
    words = {"topic": "topic", "name": "name of a header", "value": "header 'x'"}
    for error in errors:
        assert error.isprintable()
        assert words.get(field, field) in error
        assert len(error) < 500
    assert len(errors) == 2
    assert harness.dead_letters() == []


def test_a_reply_that_cannot_be_sent_is_an_error_and_the_answer_says_so() -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    @app.application("q", replies=True)
    async def handle(number: int, message: Message[int]) -> None:
        await message.reply(number, headers={"x": "a\nb"})

    with (
        Harness(app, allow_failures=(ConfigurationError,)) as harness,
        pytest.raises(RemoteError) as raised,
    ):
        harness.request("q", 1, reply=int)
    assert raised.value.code == "failed"
    assert raised.value.text.startswith("ConfigurationError: header 'x': 'a\\nb' contains")


@pytest.mark.parametrize("text", ["a\nb", "a\x9fb", "a\ufffeb", "\ud800", "a/" * 198 + "a"])
def test_topics_that_no_broker_takes_are_refused_at_registration(text: str) -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    async def handle(number: int) -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        app.application(text)(handle)
    assert str(raised.value).isprintable()
    for options in ({"name": text}, {"subscription": text}):
        with pytest.raises(ConfigurationError):
            app.application("t", **options)(handle)  # type: ignore[call-overload]
    for name, instance in ((text, "0"), ("app", text)):
        with pytest.raises(ConfigurationError):
            DistributedApplication("mqtt://broker", name=name, instance=instance)


def test_the_deepest_topic_can_be_published_and_subscribed_to() -> None:
    app = DistributedApplication("mqtt://broker", name="app")
    got: list[str] = []

    @app.application("/".join("a" * 198))
    async def deepest(message: Message[int]) -> None:
        got.append(message.topic)

    @app.application("b/#")
    async def deeper(message: Message[int]) -> None:
        got.append(message.topic)

    topics = ["/".join("a" * 198), "b/" + "/".join("a" * 199)]
    with Harness(app) as harness:
        for topic in topics:
            harness.publish(topic, 1)
            harness.settle()
        assert got == topics
        with pytest.raises(ConfigurationError, match="201 levels, and more than 200"):
            harness.publish("b/" + "/".join("a" * 200), 1)
        with pytest.raises(ConfigurationError, match="control character"):
            harness.publish("b/x", 1, headers={"x": "\n"})


@pytest.mark.mosquitto
async def test_mosquitto_takes_the_deepest_topics(mosquitto: Mosquitto) -> None:
    app = DistributedApplication(mosquitto.url, name="deepest")
    got: list[int] = []

    @app.application("/".join("d" * 198), deliver="share", name="shared")
    async def shared(number: int) -> None:
        got.append(number)

    async with app:
        await app.socket().publish("/".join("d" * 198), 1)
        await app.socket().publish("/".join("d" * 200), 2)
        await app.socket().publish("/".join("d" * 198), 3)
        await eventually(lambda: got == [1, 3])
        assert app.stats["mqtt.lost"] == 0


@pytest.mark.parametrize("scheme", ["mqtt", "kafka"])
@pytest.mark.parametrize(
    ("login", "words"),
    [
        ({"username": "a\nb"}, "username='a\\\\nb'.*U\\+000A"),
        ({"username": "x" * 70_000}, "username.*65535 bytes"),
        ({"password": "canary\ud800"}, "password.*surrogate"),
        ({"password": "canary" * 20_000}, "password.*65535 bytes"),
    ],
)
def test_a_login_that_no_broker_takes_is_refused(
    scheme: str, login: dict[str, str], words: str
) -> None:
    options: dict[str, Any] = {"username": "u", "password": "p"} | login
    config: MqttConfig | KafkaConfig = MqttConfig("h", **options)
    if scheme == "kafka":
        config = KafkaConfig("h", allow_plain_password=True, **options)
    with pytest.raises(ConfigurationError, match=words) as raised:
        DistributedApplication(config)
    assert "canary" not in str(raised.value)


# The forms of a dead letter.


def hostile_letter(payload: bytes = b"payload") -> Envelope:
    return dead_letter(
        Envelope(
            topic="a\nb\ufffe",
            payload=payload,
            content_type="text/\0",
            key="k\x1b",
            type="\ud800",
            source="s\n",
            id="i\n",
            headers={"ok": "é", "a\n": "b\r", "id": "x", "spa_dead_topic": "forged"},
            response_topic="r\n",
        ),
        actor="a/0/x",
        attempts=1,
        error=ValueError("e\n"),
        environment=Environment(1),
    )


def test_the_plain_form_of_a_dead_letter_is_one_that_every_bus_takes_and_has_everything() -> None:
    letter = hostile_letter()
    form = plain(letter)
    assert form is not None
    for name, text in form.headers.items():
        assert unfit_character(name) is None
        assert unfit_character(text) is None
    assert (form.payload, form.id, form.key, form.type) == (b"payload", letter.id, None, None)
    assert form.headers["spa_dead_topic"] == "a\\nb\\ufffe"
    original = json.loads(form.headers["spa_dead_original"])
    assert original == {
        "topic": "a\nb\ufffe",
        "key": "k\x1b",
        "content_type": "text/\0",
        "type": "\ud800",
        "headers": {"ok": "é", "a\n": "b\r", "id": "x"},
        "complete": True,
    }
    read = DeadLetter.of(form)
    assert (read.topic, read.headers) == ("a\nb\ufffe", {"ok": "é", "a\n": "b\r", "id": "x"})
    assert plain(form) is None


@pytest.mark.parametrize("refusal", [ConfigurationError(), PublishRefused(), MessageTooLarge()])
@pytest.mark.parametrize("count", [0, 1, 20_000])
@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_the_forms_end_in_one_with_nothing_of_the_senders(
    refusal: Exception, count: int, size: int
) -> None:
    headers = {f"n{number}\n": "😀\0" * 20 for number in range(count)}
    letter: Envelope | None = msgspec.structs.replace(
        hostile_letter(b"x" * size),
        key="\0" * 70_000,
        headers={**hostile_letter().headers, **headers},
    )
    forms: list[Envelope] = []
    while letter is not None:
        forms.append(letter)
        assert len(forms) < 10
        letter = simpler(letter, refusal, forms[0])
    last = forms[-1]
    assert last.payload == b""
    assert {name for name in last.headers if not name.startswith("spa_dead_")} == set()
    assert sum(len(text) for text in last.headers.values()) < 10_000
    for form in forms[1:]:
        for text in form.headers.values():
            if "spa_dead_original" in form.headers or form is last:
                assert len(text.encode()) < 65_536
    for provider in (MqttProvider(MqttConfig("h")), KafkaProvider(KafkaConfig("h"))):
        provider.check_message(msgspec.structs.replace(last, topic="t"))


@pytest.mark.parametrize("error", [PublishRefused("no"), ConfigurationError("no")])
@pytest.mark.virtual
async def test_a_letter_that_is_refused_whatever_it_says_is_stored_whole_later(
    error: Exception,
) -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor", retry=ONCE)
    async def handle(payload: bytes) -> None:
        raise ValueError("bad")

    refused: list[Envelope] = []
    async with app:
        park = MemoryBus.park

        async def refuse(bus: MemoryBus, letter: Envelope, *, timeout: float) -> None:
            if len(refused) < 8:
                refused.append(letter)
                raise error
            await park(bus, letter, timeout=timeout)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryBus, "park", refuse)
            site.publish("n", b"payload", headers={"h": "x"}, key="k")
            (letter,) = await site.parked()
            await site.settled()
    assert [bool(form.payload) for form in refused[:4]] == [True, True, True, False]
    assert ["spa_dead_original" in form.headers for form in refused[:4]] == [0, 1, 0, 0]
    assert (letter.payload, letter.key, letter.headers["h"]) == (b"payload", "k", "x")
    assert "spa_dead_original" not in letter.headers


@pytest.mark.virtual
async def test_a_message_of_which_no_letter_can_be_made_is_stored_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor", retry=ONCE)
    async def handle(payload: bytes) -> None:
        raise ValueError("bad")

    def strange(envelope: Envelope, **given: Any) -> Envelope:
        if envelope.headers:
            raise OverflowError("a date beyond the year 9999")
        return dead_letter(envelope, **given)

    monkeypatch.setattr("spa_dat.runtime.handling._dead_letter_store.dead_letter", strange)
    async with app:
        site.publish("n", b"payload", headers={"h": "x"})
        (letter,) = await site.parked()
        await site.settled()
    assert letter.payload == b"payload"
    assert letter.headers["spa_dead_topic"] == "n"
    assert letter.headers["spa_dead_error"] == "OverflowError"


class Unforgiving:
    """A broker that closes over each dead letter that has a word in it, without a word."""

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.closed = 0
        self.stored: list[bytes] = []
        self._sent = False

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))
                if b"any/#" in packet.body and not self._sent:
                    self._sent = True
                    pair = b"\x26\0\x04name\0\x06poison"
                    peer.send(publish(1, b"bad", topic="any/x", properties=pair))
                    peer.send(publish(2, b"good", topic="any/x"))
            elif packet.kind == "PINGREQ":
                peer.send(b"\xd0\0")
            elif packet.kind == "PUBLISH":
                if self.word in packet.body:
                    self.closed += 1
                    peer.close()
                    return
                self.stored.append(packet.body)
                peer.puback(packet)


async def test_a_dead_letter_that_a_broker_closes_over_is_stored_without_what_it_closes_over() -> (
    None
):
    unforgiving = Unforgiving(b"poison")
    good: list[bytes] = []
    async with ScriptedBroker(unforgiving) as broker:
        config = MqttConfig(broker.host, port=broker.port, backoff_min=0.01, backoff_max=0.05)
        app = DistributedApplication(config, name="app")

        @app.application("any/#", name="actor", retry=ONCE)
        async def handle(payload: bytes) -> None:
            if payload == b"bad":
                raise ValueError("as it is")
            good.append(payload)

        async with app:
            await eventually(lambda: app.stats["dead_letters.stored"] == 1, 60)
            await eventually(lambda: good == [b"good"])
            assert app.healthy
        assert unforgiving.closed == 8, "four for the letter as it is, and four for it in JSON"
        (letter,) = unforgiving.stored
        assert letter.endswith(b"bad"), "the payload has done nothing wrong"
        assert b"spa_dead_text" in letter


class Strict:
    """A broker that closes over each publish that is not allowed, without a word."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.closed = 0
        self.taken: list[bytes] = []
        self.echo: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))
                if b"echo" in packet.body and self.echo is None:
                    self.echo = peer
                    self.ask(1, "allowed/1")
                    for number in range(2, self.requests + 2):
                        self.ask(number, f"forbidden/{number}")
            elif packet.kind == "PINGREQ":
                peer.send(b"\xd0\0")
            elif packet.kind == "PUBLISH":
                if b"forbidden" in packet.body:
                    self.closed += 1
                    peer.close()
                    return
                self.taken.append(packet.body)
                peer.puback(packet)

    def ask(self, packet_id: int, address: str) -> None:
        assert self.echo is not None
        topic = b"\x08" + len(address).to_bytes(2, "big") + address.encode()
        self.echo.send(publish(packet_id, address.encode(), topic="echo", properties=topic))


@pytest.mark.deadline(90)
async def test_replies_over_which_a_broker_closes_do_not_keep_all_else_from_being_sent() -> None:
    strict = Strict(30)
    async with ScriptedBroker(strict) as broker:
        config = MqttConfig(broker.host, port=broker.port, backoff_min=0.01, backoff_max=0.05)
        app = DistributedApplication(config, name="app")

        @app.application("echo", name="actor", window=100)
        async def echo(payload: bytes) -> bytes:
            return payload

        async with app:
            await eventually(lambda: app.stats["replies.refused"] == 30, 60)
            assert strict.closed == 4, "one of them is found out, and stands for all"
            await app.socket().publish("own", b"own")
            # One more, and what the broker has taken before.
            strict.ask(50, "forbidden/50")
            strict.ask(51, "allowed/1")
            await eventually(lambda: app.stats["replies.refused"] == 31)
            await eventually(lambda: len(strict.taken) == 3)
            assert strict.closed == 4
            assert app.healthy
    for body, payload in zip(strict.taken, (b"allowed/1", b"own", b"allowed/1"), strict=True):
        assert body.endswith(payload)
