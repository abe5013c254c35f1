"""Messages as handlers see them, and as they build them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from spa_dat.errors import ConfigurationError
from spa_dat.runtime.messaging._message import Message
from spa_dat.runtime.messaging._outgoing_message import MessageBuilder, OutgoingMessage
from spa_dat.transports import Envelope


def test_a_message_shows_its_envelope() -> None:
    envelope = Envelope(
        topic="plant/a",
        payload=b"5",
        content_type="application/json",
        id="1",
        source="plant/0/sensor",
        type="com.example.measured",
        time=1.5,
        key="k",
        headers={"a": "b"},
        response_topic="plant/reply",
        retain=True,
        redelivered=True,
        partition=3,
        offset=7,
    )
    message: Message[int] = Message.of(envelope, 5, attempt=2)
    assert (message.payload, message.raw, message.topic) == (5, b"5", "plant/a")
    assert (message.id, message.source, message.time, message.key) == (
        "1",
        "plant/0/sensor",
        1.5,
        "k",
    )
    assert message.type == "com.example.measured"
    assert message.headers == {"a": "b"}
    assert message.response_topic == "plant/reply"
    assert message.content_type == "application/json"
    assert message.retained
    assert message.redelivered
    assert (message.attempt, message.partition, message.offset) == (2, 3, 7)
    assert repr(message) == "<Message 'plant/a' id='1' 1 bytes>"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retain", True),
        ("tombstone", True),
        ("partition", 0),
        ("offset", 0),
        ("raw_key", b"k"),
        ("raw_headers", (("h", b"v"),)),
    ],
)
def test_a_message_shows_what_few_have(field: str, value: Any) -> None:
    envelope = Envelope(topic="a", **{field: value})
    message = Message.of(envelope, b"")
    shown = {"retain": "retained"}.get(field, field)
    assert getattr(message, shown) == value
    others = {"retained", "tombstone", "partition", "offset", "raw_key", "raw_headers"} - {shown}
    plain = Message.of(Envelope(topic="a"), b"")
    assert all(getattr(message, other) == getattr(plain, other) for other in others)


def test_messages_can_not_be_changed() -> None:
    message = Message(payload=1, topic="a")
    with pytest.raises(AttributeError):
        message.payload = 2  # type: ignore[misc]


async def test_a_reply_goes_where_the_runtime_says() -> None:
    sent: list[tuple[object, Mapping[str, str | None] | None]] = []

    async def send(payload: object, headers: Mapping[str, str | None] | None) -> None:
        sent.append((payload, headers))

    message = Message.of(Envelope(topic="a"), b"", reply=send)
    await message.reply("yes")
    await message.reply(5, headers={"a": "b"})
    assert sent == [("yes", None), (5, {"a": "b"})]


async def test_what_is_no_request_can_not_be_answered() -> None:
    with pytest.raises(ConfigurationError, match="'plant/a' cannot be answered"):
        await Message(payload=b"", topic="plant/a").reply("yes")


def test_the_builder_fills_an_outgoing_message() -> None:
    build = MessageBuilder()
    assert build("a") == OutgoingMessage(topic="a")
    assert build(
        topic="a",
        payload=5,
        response_topic="b",
        content_type="text/plain",
        headers={"c": "d"},
        key="k",
        retain=True,
        qos=0,
        expiry=2.0,
    ) == OutgoingMessage(
        topic="a",
        payload=5,
        response_topic="b",
        content_type="text/plain",
        headers={"c": "d"},
        key="k",
        retain=True,
        qos=0,
        expiry=2.0,
    )


def test_the_builder_refuses_the_response_topic_of_what_is_no_request() -> None:
    message = Message(payload=b"", topic="a")
    with pytest.raises(ConfigurationError, match="not a request"):
        MessageBuilder()(topic=message.response_topic, payload="yes")
