"""The format of spa-dat 0.4.0: as it was captured, and what a stranger's message cannot do."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from spa_dat import (
    Actor,
    DistributedApplication,
    KafkaConfig,
    MemoryConfig,
    Message,
    MessageBuilder,
    MqttConfig,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.errors import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    RemoteError,
    RequestTimeout,
)
from spa_dat.testing import Harness
from spa_dat.transports import Envelope, SocketProviderFactory, opened, without_payload
from spa_dat.transports._wire_formats import CLOUDEVENTS, WireFormats, wire_format, with_wire
from support.processes import make
from support.shelf import Shelf
from support.shelf_transport import ShelfProvider
from support.waiting import eventually

OLD = wire_format("spa-dat")
TYPE = "application/vnd.spa-dat+json"
_CONTENT = json.loads((Path(__file__).parent / "vectors" / "spa_dat_0_4_0.json").read_text("utf-8"))
_READS = [pytest.param(vector, id=vector["name"]) for vector in _CONTENT["reads"]]
_WRITES = [pytest.param(vector["value"], id=vector["name"]) for vector in _CONTENT["writes"]]


def received(payload: str | bytes, **fields: Any) -> Envelope:
    data = payload if isinstance(payload, bytes) else payload.encode()
    return Envelope(topic="plant", payload=data, **fields)


def written(**members: Any) -> str:
    """Return a message as 0.4.0 writes it, with these members in place of others."""
    usual = {
        "Payload": "x",
        "Topic": "plant",
        "ContentType": None,
        "ClientId": "c",
        "ClientName": None,
        "QualityOfService": 2,
        "ResponseTopic": None,
        "Timestamp": 1_700_000_000,
    }
    return json.dumps(usual | members, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("vector", _READS)
def test_what_0_4_0_reads_is_read_in_the_same_way(vector: dict[str, Any]) -> None:
    got = OLD.opened(received(bytes.fromhex(vector["input_hex"])))
    wanted = vector["message"]
    if wanted is None:
        assert got.flaw is not None
        assert got.flaw.startswith("the payload is not a message of spa-dat 0.4.0")
        assert got.payload == bytes.fromhex(vector["input_hex"])
        return
    assert got.flaw is None
    assert got.original is not None
    fields = (got.content_type, got.source, got.response_topic, got.time)
    assert fields == tuple(
        wanted[name] for name in ("content_type", "source", "response_topic", "time")
    )
    assert got.payload == bytes.fromhex(wanted["payload_hex"])


@pytest.mark.parametrize("value", _WRITES)
def test_what_0_4_0_writes_is_written_byte_for_byte(value: str) -> None:
    members = json.loads(value)
    got = OLD.opened(received(value))
    assert got.payload == members["Payload"].encode()
    packed = OLD.packed(
        Envelope(
            topic=members["Topic"],
            payload=got.payload,
            content_type=got.content_type,
            source=members["ClientId"],
            response_topic=got.response_topic,
            time=got.time,
            qos=1,
        )
    )
    # What is said of the sender and of QoS is ours.
    ours = {"ClientName": members["ClientId"], "QualityOfService": 1}
    expected = json.dumps(members | ours, separators=(",", ":"), ensure_ascii=False)
    assert packed.payload.decode() == expected.replace("\\u007f", "\x7f")


@pytest.mark.parametrize("value", _WRITES)
def test_it_is_recognised_without_the_option(value: str) -> None:
    got = opened(received(value))
    assert got.flaw is not None
    assert "wire='spa-dat'" in got.flaw
    assert got.payload.decode() == value


@pytest.mark.parametrize(
    "envelope",
    [
        received(written(), content_type="application/json"),
        received(written(), id="1"),
        received('{"Payload":"x","Topic":"t"}'),
        received('{"Payload":"x","Amount":5}'),
        received('{"Payload":"x'),
        received('{"Payload":"' + "[" * 100_000),
        received(written(Timestamp=1.5)),
        without_payload(received(written())),
    ],
    ids=["typed", "named", "short", "other", "cut", "long", "fraction", "left-out"],
)
def test_what_only_looks_alike_stays_as_it_is(envelope: Envelope) -> None:
    assert opened(envelope) is envelope


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (written(Timestamp=1.5), "not a whole number"),
        (written(Timestamp="1_"), "invalid literal"),
        (written(Timestamp="1" * 30), "not a whole number"),
        (written(Timestamp=10**17), "not a time"),
        (written(Timestamp=None), "timestamp"),
        (written(QualityOfService=None), "quality"),
        (written(QualityOfService=3), "quality"),
        (written(Payload={"a": 1}), "payload"),
        (written(Payload=None), "payload"),
        ('{"Topic":"t"}', "payload"),
        ('{"Payload":"x"}', "topic"),
        ('{"Payload":"x","Topic":"t","More":' + "[" * 1_000_000, "nested too deeply"),
        ('{"Payload":"\\ud800","Topic":"t"}', "surrogate"),
        (b"\xff\xfe", "malformed"),
        (b"", "truncated"),
    ],
)
def test_what_cannot_be_read_has_a_flaw_that_says_why(value: str | bytes, why: str) -> None:
    got = OLD.opened(received(value))
    assert got.flaw is not None
    assert why in got.flaw.lower()
    assert len(got.flaw) < 400


def test_a_message_in_a_message_is_its_payload() -> None:
    inner = written()
    got = OLD.opened(received(written(Payload=inner)))
    assert (got.payload.decode(), got.flaw) == (inner, None)


def test_it_travels_between_two_programs_of_this_package_with_all_its_fields() -> None:
    sent = Envelope(
        topic="plant",
        payload="Grüße".encode(),
        content_type="text/plain",
        id="1",
        source="shop/0/till",
        type="greeting",
        time=1_700_000_000.25,
        key="k",
        headers={"spa_reply": "1"},
        response_topic="answers",
        correlation=b"c",
        expiry=5.0,
    )
    packed = OLD.packed(sent)
    assert json.loads(packed.payload)["Payload"] == "Grüße"
    got = OLD.opened(packed)
    names = set(Envelope.__struct_fields__) - {"original"}
    assert {name: getattr(got, name) for name in names} == {
        name: getattr(sent, name) for name in names
    }
    # Who has not been told of the format must not take it for the payload either.
    assert CLOUDEVENTS.opened(packed).flaw is not None


def test_what_comes_in_our_own_format_is_read_as_well() -> None:
    plain = received("21.5", content_type="application/json", id="1")
    assert OLD.opened(plain) is plain
    document = '{"specversion":"1.0","id":"1","source":"s","type":"t","data":1}'
    got = OLD.opened(received(document, content_type="application/cloudevents+json"))
    assert (got.payload, got.flaw) == (b"1", None)


def test_what_is_of_the_runtime_stays_in_our_own_format() -> None:
    for topic in ("_spa/dead-letter/shop/1", "_spa/reply/shop/1/2"):
        letter = Envelope(topic=topic, payload=b"\xff")
        assert OLD.packed(letter) is letter
    tombstone = Envelope(topic="plant", key="k", tombstone=True)
    assert OLD.packed(tombstone) is tombstone


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(EncodeError, match=r"'plant' is not UTF-8 .* base64"):
        OLD.packed(Envelope(topic="plant", payload=b"\xff\x00"))


@pytest.mark.parametrize("scheme", ["memory://", "mqtt://localhost", "kafka://localhost"])
def test_the_option(scheme: str) -> None:
    config = SocketProviderFactory.config_from_url(f"{scheme}?wire=spa-dat")
    assert config.wire == "spa-dat"
    assert type(config)().wire == "cloudevents"
    with pytest.raises(ConfigurationError, match=r"option wire='spa' of \w+: give one of 'cloud"):
        SocketProviderFactory.config_from_url(f"{scheme}?wire=spa")
    for kind in (MemoryConfig, MqttConfig, KafkaConfig):
        with pytest.raises(ConfigurationError, match="option wire=None"):
            kind(wire=None)  # type: ignore[arg-type]


def test_a_last_will_cannot_be_sent() -> None:
    with pytest.raises(ConfigurationError, match="option will of MqttConfig cannot be sent"):
        MqttConfig(wire="spa-dat", will={"topic": "gone", "payload": "x"})  # type: ignore[arg-type]


def test_in_a_harness_all_goes_over_the_wire_as_well() -> None:
    app = DistributedApplication("mqtt://localhost?wire=spa-dat", name="shop")
    got: list[Message[dict[str, str]]] = []

    @app.application("in")
    async def work(message: Message[str], socket: Socket) -> str:
        await socket.publish("out", {"seen": message.payload})
        return f"answer to {message.payload}"

    @app.application("out")
    async def take(message: Message[dict[str, str]]) -> None:
        got.append(message)

    with Harness(app) as harness:
        harness.publish("in", written(Payload="a").encode(), content_type=TYPE)
        harness.settle()
        assert [message.payload for message in got] == [{"seen": "a"}]
        assert harness.request("in", "b", reply=str) == "answer to b"


def test_in_a_harness_it_is_recognised(caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication("memory://", name="shop")

    @app.application("recognised/in")
    async def work(payload: bytes) -> None:
        raise AssertionError("it is no payload")

    with Harness(app, allow_failures=DecodeError) as harness, caplog.at_level(logging.WARNING):
        for _ in range(3):
            harness.publish("recognised/in", written().encode(), content_type=TYPE)
        harness.settle()
        letters = harness.dead_letters()
        assert len(letters) == 3
        assert "wire='spa-dat'" in letters[0].text
    said = [record for record in caplog.records if "0.4.0 publishes on" in record.getMessage()]
    assert len(said) == 1


def test_programs_with_and_without_the_option_ask_each_other_on_kafka() -> None:
    moving = DistributedApplication("kafka://localhost?wire=spa-dat", name="moving")
    moved = DistributedApplication("kafka://localhost", name="moved")
    got: list[str] = []

    @moving.application("question")
    async def answer(payload: str) -> str:
        return f"answer to {payload}"

    @moved.application("start")
    async def ask(payload: str, socket: Socket) -> None:
        got.append(await socket.request("question", payload, reply=str))

    with Harness(moving, moved) as harness:
        harness.publish("start", "a")
        harness.settle()
    assert got == ["answer to a"]


def test_requests_on_kafka_wait_alone_on_topics_that_are_deleted() -> None:
    app = DistributedApplication("kafka://localhost?wire=spa-dat", name="shop")

    @app.application("in")
    async def work(payload: str) -> str:
        return f"answer to {payload}"

    with Harness(app) as harness:
        for number in range(3):
            assert harness.request("in", f"{number}", reply=str) == f"answer to {number}"


def test_requests_on_kafka_that_nobody_answers_leave_room_for_others() -> None:
    app = DistributedApplication("kafka://localhost?wire=spa-dat", name="shop")
    got: list[str] = []

    @app.application("in")
    async def work(payload: str) -> str:
        return f"answer to {payload}"

    @app.application("silent")
    async def forward(payload: str, socket: Socket) -> None:
        for _ in range(20):
            with pytest.raises(RequestTimeout):
                await socket.request("nobody", payload, timeout=1)
        got.append(await socket.request("in", payload, reply=str, timeout=200))

    with Harness(app) as harness:
        harness.publish("silent", "a")
        harness.settle()
    assert got == ["answer to a"]


# Of single actors and messages.

BUSES = pytest.mark.parametrize("bus", ["memory://", "mqtt://broker", "kafka://broker"])


def is_old(message: Message[bytes]) -> bool:
    """Return whether a message was published in the format of 0.4.0."""
    return message.content_type == TYPE and b'"QualityOfService"' in message.payload


def test_messages_name_their_format_and_nobody_sees_that_they_did() -> None:
    formats = WireFormats("cloudevents")
    sent = Envelope(topic="plant", payload=b"x")
    named = Envelope(topic="plant", payload=b"x", wire="spa-dat")
    assert formats.packed(named) == OLD.packed(sent)
    old = WireFormats("spa-dat")
    assert old.packed(sent) == OLD.packed(sent)
    assert old.packed(Envelope(topic="plant", payload=b"x", wire="cloudevents")) == sent
    letter = Envelope(topic="_spa/dead-letter/shop/1", wire="spa-dat")
    assert formats.packed(letter).wire is None


@pytest.mark.parametrize("own", ["cloudevents", "spa-dat"])
def test_replies_have_the_format_of_their_request(own: str) -> None:
    formats = WireFormats(own)
    token = "0123456789abcdef"
    for wire, packs in ((None, own == "spa-dat"), ("spa-dat", True), ("cloudevents", False)):
        correlation = with_wire(token, wire)
        assert formats.of_reply(correlation).packs is packs
        reply = received(written(Payload="r"))
        at = Envelope(topic=f"_spa/reply/shop/1/{correlation}", payload=reply.payload)
        got = formats.of_replies.opened(at)
        assert (got.payload == b"r", got.flaw is None) == (packs, packs)


@BUSES
def test_an_actor_has_the_format_for_itself(bus: str, caplog: pytest.LogCaptureFixture) -> None:
    app = DistributedApplication(bus, name="shop")
    topic = f"alone/{bus.partition(':')[0]}"
    got: list[tuple[str, str]] = []

    @app.application(topic, wire="spa-dat")
    async def old(payload: str, socket: Socket, message_builder: MessageBuilder) -> None:
        got.append(("old", payload))
        await socket.publish("old/out", payload)
        socket.post(message_builder("old/posted", payload))
        await socket.publish("old/new", payload, wire="cloudevents")

    @app.application(topic)
    async def new(payload: str, socket: Socket) -> None:
        got.append(("new", payload))
        await socket.publish("new/out", payload)
        await socket.publish("new/old", payload, wire="spa-dat")
        socket.post(MessageBuilder()("new/built", payload, wire="spa-dat"))

    class Teller(Actor):
        wire = "spa-dat"

        @on("tell")
        async def tell(self, payload: str, socket: Socket) -> None:
            await socket.publish("class/out", payload)

    @app.producer(wire="spa-dat")
    async def produce(socket: Socket) -> None:
        await socket.publish("producer/out", "p")

    app.add(Teller)
    with Harness(app, allow_failures=DecodeError) as harness, caplog.at_level(logging.WARNING):
        harness.publish(topic, written(Payload="a").encode(), content_type=TYPE)
        harness.publish(topic, "b", wire="spa-dat")
        harness.publish(topic, "c")
        harness.publish("tell", "d", wire="spa-dat")
        harness.settle()
        found = {message.topic: is_old(message) for message in harness.messages(type=bytes)}
        letters = harness.dead_letters()
    assert sorted(got) == [("new", "c"), ("old", "a"), ("old", "b"), ("old", "c")]
    assert found == {
        "old/out": True,
        "old/posted": True,
        "old/new": False,
        "new/out": False,
        "new/old": True,
        "new/built": True,
        "class/out": True,
        "producer/out": True,
    }
    # The other actor says so, once.
    assert {letter.actor for letter in letters} == {"shop/0/new"}
    assert len(letters) == 2
    said = [record for record in caplog.records if "0.4.0 publishes on" in record.getMessage()]
    assert len(said) == 1


@BUSES
def test_requests_and_replies_have_the_format_of_actors_and_calls(bus: str) -> None:
    app = DistributedApplication(bus, name="shop")
    got: list[Any] = []

    @app.application("old", wire="spa-dat")
    async def answer(message: Message[str]) -> str:
        got.append(message.content_type)
        return f"answer to {message.payload}"

    @app.application("hand", wire="spa-dat", replies=True)
    async def by_hand(message: Message[str]) -> None:
        await message.reply("by hand")

    @app.application("failing", wire="spa-dat")
    async def failing(payload: str) -> str:
        raise RemoteError("sold-out", payload)

    @app.application("ask")
    async def ask(socket: Socket, message_builder: MessageBuilder) -> None:
        got.append(await socket.request("old", "a", reply=str, wire="spa-dat"))
        got.append(await socket.request("old", "b", reply=str))
        built = message_builder("hand", "c", wire="spa-dat")
        got.append(await socket.request(built, reply=str))
        got.extend(await socket.request_many("old", "d", reply=str, count=1, wire="spa-dat"))
        with pytest.raises(RemoteError, match="sold-out"):
            await socket.request("failing", "e", wire="spa-dat")

    @app.application("ask", wire="spa-dat", name="ask_in_thread")
    def ask_in_thread(socket: SyncSocket) -> None:
        got.append(socket.request("old", "f", reply=str))
        got.append(socket.request("old", "g", reply=str, wire="cloudevents"))

    with Harness(app) as harness:
        harness.publish("ask")
        harness.settle()
        assert harness.request("old", "h", reply=str, wire="spa-dat") == "answer to h"
    answers = [f"answer to {letter}" for letter in "abdfg"]
    assert [one for one in answers if one not in got] == []
    assert "by hand" in got


@BUSES
def test_an_error_is_answered_in_the_format_of_the_actor(bus: str) -> None:
    """A program of 0.4.0 gives an address of its own, where it expects its own format."""
    app = DistributedApplication(bus, name="shop")

    @app.application("in", wire="spa-dat")
    async def answer(payload: int) -> int:
        return payload

    with Harness(app, allow_failures=DecodeError) as harness:
        # On Kafka the topic has to exist.
        harness.publish("answers")
        for payload in ("1", "x"):
            asked = written(Payload=payload, ResponseTopic="answers").encode()
            harness.publish("in", asked, content_type=TYPE)
        harness.settle()
        found = harness.messages("answers", type=bytes)
    assert len(found) == 2
    assert all(is_old(message) for message in found)
    answers = sorted(json.loads(message.payload)["Payload"] for message in found)
    assert answers[0] == "1"
    assert "does not fit int" in answers[1]


@BUSES
def test_an_actor_is_taken_out_of_what_its_bus_does(bus: str) -> None:
    app = DistributedApplication(f"{bus}?wire=spa-dat", name="shop")
    got: list[str] = []

    @app.application("in", wire="cloudevents")
    async def moved(payload: str, socket: Socket) -> None:
        got.append(payload)
        await socket.publish("out", payload)
        got.append(await socket.request("ask", payload, reply=str))

    @app.application("ask", wire="cloudevents")
    async def answer(payload: str) -> str:
        return f"answer to {payload}"

    with Harness(app, allow_failures=DecodeError) as harness:
        harness.publish("in", "a")
        harness.publish("in", "b", wire="spa-dat")
        harness.settle()
        (out,) = harness.messages("out", type=bytes)
        (letter,) = harness.dead_letters()
    assert got == ["a", "answer to a"]
    assert not is_old(out)
    assert "wire='spa-dat'" in letter.text


@BUSES
def test_runtime_subscriptions_and_batches_have_the_format_of_their_actor(bus: str) -> None:
    app = DistributedApplication(bus, name="shop")
    got: list[Any] = []

    @app.application("in", wire="spa-dat")
    async def take(message: Message[str], socket: Socket) -> None:
        got.append((message.topic, message.payload))
        if message.topic == "in":
            await socket.subscribe("more")

    @app.application("many", wire="spa-dat", batch=(10, 1.0))
    async def take_many(texts: list[str]) -> None:
        got.append(texts)

    with Harness(app) as harness:
        harness.publish("in", "a", wire="spa-dat")
        harness.settle()
        harness.publish("more", "b", wire="spa-dat")
        harness.publish("many", "c", wire="spa-dat")
        harness.publish("many", "d")
        harness.settle()
    assert ("in", "a") in got
    assert ("more", "b") in got
    assert sorted(text for texts in got if isinstance(texts, list) for text in texts) == ["c", "d"]


async def test_an_actor_in_a_child_process_has_its_format() -> None:
    app = make()
    got: list[Any] = []

    @app.application("in", placement="process", wire="spa-dat")
    async def work(payload: str, socket: Socket) -> str:
        await socket.publish("out", payload)
        await socket.publish("new", payload, wire="cloudevents")
        return await socket.request("ask", payload, reply=str)

    @app.application("ask", wire="spa-dat")
    async def answer(message: Message[str]) -> str:
        got.append(message.content_type)
        return f"answer to {message.payload}"

    @app.application(["out", "new"], wire="spa-dat")
    async def take(message: Message[str]) -> None:
        got.append((message.topic, message.payload))

    async with app:
        socket = app.socket()
        reply = await socket.request("in", "a", reply=str, wire="spa-dat")
        await eventually(lambda: len(got) == 3)
    assert reply == "answer to a"
    assert ("out", "a") in got
    assert ("new", "a") in got


@pytest.mark.parametrize("wire", ["spa", "", 5, ["spa-dat"]])
def test_unknown_formats_are_refused_by_name(wire: Any) -> None:
    app = DistributedApplication("memory://", name="shop")
    raised: list[str] = []

    async def take(payload: str) -> None: ...

    async def produce(socket: Socket) -> None: ...

    words = r"wire=.*: give one of 'cloudevents', 'spa-dat'"
    with pytest.raises(ConfigurationError, match=f"'take': {words}"):
        app.application("in", wire=wire)(take)
    with pytest.raises(ConfigurationError, match=f"'produce': {words}"):
        app.producer(wire=wire)(produce)

    @app.application("in")
    async def publish(socket: Socket) -> None:
        for call in (socket.publish, socket.request, socket.request_many):
            try:
                await call("out", "x", wire=wire)
            except ConfigurationError as error:
                raised.append(str(error))

    with Harness(app) as harness:
        harness.publish("in")
        harness.settle()
    assert [text.partition(":")[0] for text in raised] == ["publish", "request", "request"]
    assert all("give one of 'cloudevents', 'spa-dat'" in text for text in raised)


def test_a_bus_that_lacks_the_format_is_named() -> None:
    app = DistributedApplication(ShelfProvider(Shelf()), name="shop")

    async def take(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'take': wire='spa-dat': the bus at .* has only"):
        app.application("in", wire="spa-dat")(take)
    app.application("in", wire="cloudevents")(take)


async def test_actors_that_share_a_subscription_agree_on_the_format() -> None:
    app = DistributedApplication("memory://", name="shop")

    @app.application("a", subscription="both", wire="spa-dat")
    async def one(payload: str) -> None: ...

    @app.application("b", subscription="both")
    async def other(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match="share subscription 'both' but differ in wire"):
        async with app:
            pass
