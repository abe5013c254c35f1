"""The wire format by its test vectors: our code, and implementations by others, agree on each.

The files are meant for other languages as well; docs/wire.md says what is in them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import kafka as kafka_binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from spa_dat.transports import Envelope, KafkaConfig, KafkaTopic
from spa_dat.transports.kafka._records import RecordCodec
from spa_dat.transports.kafka._topic_names import Names
from spa_dat.transports.mqtt.protocol._packets import (
    PublishDecoder,
    PublishPacket,
    read_variable,
)

_FOLDER = Path(__file__).parent / "vectors"
_PACKET_ID = 7
_EXTENSION = re.compile(r"[a-z0-9]+")
_PROPERTIES = {
    "PayloadFormatIndicator": "payload_format_indicator",
    "MessageExpiryInterval": "message_expiry_interval",
    "ContentType": "content_type",
    "ResponseTopic": "response_topic",
    "CorrelationData": "correlation_data_hex",
    "UserProperty": "user_properties",
}

Vector = dict[str, Any]


def _vectors(name: str) -> list[Any]:
    content = json.loads((_FOLDER / f"{name}.json").read_text("utf-8"))
    assert content["format"] == 1
    return [pytest.param(vector, id=vector["name"]) for vector in content["vectors"]]


def _bytes_of(vector: Mapping[str, Any], name: str) -> bytes | None:
    if f"{name}_hex" in vector:
        return bytes.fromhex(vector[f"{name}_hex"])
    text = vector.get(name)
    return None if text is None else text.encode()


def _envelope(message: Vector) -> Envelope:
    """What the field "message" of a vector stands for."""
    fields = {name: value for name, value in message.items() if not name.endswith("_hex")}
    return Envelope(
        **fields
        | {
            "payload": _bytes_of(message, "payload") or b"",
            "correlation": _bytes_of(message, "correlation"),
        }
    )


def _assert_same(got: Envelope | None, message: Vector) -> None:
    assert got is not None
    wanted = _envelope(message)
    for name in (
        "topic",
        "payload",
        "content_type",
        "id",
        "source",
        "type",
        "time",
        "key",
        "response_topic",
        "correlation",
        "expiry",
        "qos",
        "retain",
        "tombstone",
    ):
        assert getattr(got, name) == getattr(wanted, name), name
    assert dict(got.headers) == dict(wanted.headers)


def _assert_event(event: BaseCloudEvent, message: Vector) -> None:
    """Check what the `cloudevents` package has read."""
    assert event.get_specversion() == "1.0"
    assert event.get_id() == message["id"]
    assert event.get_source() == message["source"]
    assert event.get_type() == message["type"]
    assert event.get_datacontenttype() == message.get("content_type")
    time = event.get_time()
    assert time is not None
    assert time.timestamp() == message["time"]


def _is_event(message: Vector) -> bool:
    return {"id", "source", "type"} <= message.keys()


# MQTT.


def _parts(packet: bytes) -> tuple[bytes, int, Properties, bytes]:
    """Topic, packet id, properties and payload of a PUBLISH, as paho reads the properties."""
    length, position = read_variable(packet, 1)
    assert len(packet) == position + length
    end = position + 2 + int.from_bytes(packet[position : position + 2], "big")
    topic = packet[position + 2 : end]
    packet_id = 0
    if packet[0] & 6:
        packet_id = int.from_bytes(packet[end : end + 2], "big")
        end += 2
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    _, taken = properties.unpack(packet[end:])  # type: ignore[no-untyped-call]
    return topic, packet_id, properties, packet[end + taken :]


@pytest.mark.parametrize("vector", _vectors("mqtt"))
def test_a_packet_has_the_properties_that_its_vector_names(vector: Vector) -> None:
    packet = bytes.fromhex(vector["packet"])
    topic, packet_id, properties, payload = _parts(packet)
    publish = vector["publish"]
    assert topic.decode() == publish["topic"]
    assert packet_id == (_PACKET_ID if publish["qos"] else 0)
    assert packet[0] == 0x30 | publish["qos"] << 1 | publish["retain"]
    assert payload == (_bytes_of(publish, "payload") or b"")
    for name, field in _PROPERTIES.items():
        value = getattr(properties, name, None)
        if isinstance(value, bytes):
            value = value.hex()
        elif name == "UserProperty" and value is not None:
            value = [list(pair) for pair in value]
        assert value == publish.get(field), name


@pytest.mark.parametrize("vector", _vectors("mqtt"))
def test_a_packet_is_read_and_written_as_its_vector_says(vector: Vector) -> None:
    packet = bytes.fromhex(vector["packet"])
    _, start = read_variable(packet, 1)
    decoder = PublishDecoder(Counter())
    envelope, _, _ = decoder.decode(packet[0], packet, start, len(packet))
    _assert_same(envelope, vector["message"] | vector.get("decoded", {}))
    if "encode" in vector["directions"]:
        written = PublishPacket(_envelope(vector["message"])).encode(_PACKET_ID)
        assert written.hex() == vector["packet"]


@pytest.mark.parametrize("vector", _vectors("mqtt"))
def test_a_packet_is_an_event_by_the_binding_for_mqtt(vector: Vector) -> None:
    """The package has no binding for MQTT, so the attributes are mapped here, by its rules."""
    _, _, properties, payload = _parts(bytes.fromhex(vector["packet"]))
    pairs = dict(getattr(properties, "UserProperty", ()))
    if not _is_event(vector["message"]):
        assert "specversion" not in pairs
        return
    attributes: dict[str, Any] = {
        name: value for name, value in pairs.items() if _EXTENSION.fullmatch(name)
    }
    attributes["time"] = datetime.fromisoformat(attributes["time"])
    if hasattr(properties, "ContentType"):
        attributes["datacontenttype"] = properties.ContentType
    event = CloudEvent(attributes, payload)
    _assert_event(event, vector["message"])
    for name in ("traceparent", "tracestate", "correlationid", "causationid"):
        assert event.get_extension(name) == vector["message"].get("headers", {}).get(name)


# Kafka.


@dataclass
class _Stored:
    """A record as a broker gives it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int
    partition: int = 0
    offset: int = 0


def _stored(record: Vector) -> _Stored:
    return _Stored(
        record["topic"],
        None if record["key"] is None else record["key"].encode(),
        _bytes_of(record, "value"),
        tuple((name, None if v is None else v.encode()) for name, v in record["headers"]),
        record["timestamp"],
    )


def _codec() -> RecordCodec:
    now = json.loads((_FOLDER / "kafka.json").read_text("utf-8"))["now"]
    topics = {"fleet/{truck}/position": KafkaTopic("fleet.position", key="truck")}
    return RecordCodec(Names(KafkaConfig(topics=topics)), Counter(), lambda: now)


@pytest.mark.parametrize("vector", _vectors("kafka"))
def test_a_record_is_read_and_written_as_its_vector_says(vector: Vector) -> None:
    stored = _stored(vector["record"])
    prefix = vector.get("reply_prefix")
    if prefix is None:
        envelope = _codec().decode(stored)
    else:
        envelope = _codec().decode_reply(stored, prefix.encode())
    _assert_same(envelope, vector["message"] | vector.get("decoded", {}))
    if "encode" in vector["directions"]:
        record = _codec().encode(_envelope(vector["message"]))
        assert (record.name, record.key, record.value) == (stored.topic, stored.key, stored.value)
        assert list(record.headers) == list(stored.headers)
        assert record.timestamp == stored.timestamp


@pytest.mark.parametrize("vector", _vectors("kafka"))
def test_a_record_is_an_event_for_the_package_cloudevents(vector: Vector) -> None:
    stored = _stored(vector["record"])
    headers = {name: value or b"" for name, value in stored.headers}
    if not _is_event(vector["message"]):
        assert "ce_specversion" not in headers
        return
    # The package makes up a time of its own where there is no ce_time: a record has a timestamp.
    stamp = datetime.fromtimestamp(stored.timestamp / 1_000, UTC).isoformat().encode()
    message = kafka_binding.KafkaMessage(
        {"ce_time": stamp} | headers, stored.key, stored.value or b""
    )
    event = kafka_binding.from_binary(message, JSONFormat())
    wanted = vector["message"] | ({"content_type": None} if stored.value is None else {})
    _assert_event(event, wanted)
    for name in ("correlationid", "causationid"):
        assert event.get_extension(name) == vector["message"].get("headers", {}).get(name)


def test_what_the_package_cloudevents_writes_is_read() -> None:
    event = CloudEvent(
        {
            "id": "A234-1234-1234",
            "source": "https://example.com/shop",
            "type": "com.example.order.placed",
            "time": datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC),
            "datacontenttype": "application/json",
            "partitionkey": "customer-7",
        },
        {"order": 1},
    )
    message = kafka_binding.to_binary(event, JSONFormat())
    key = message.key
    assert isinstance(key, str)
    stored = _Stored(
        "shop.orders", key.encode(), message.value, tuple(message.headers.items()), 1_000
    )
    envelope = _codec().decode(stored)
    assert envelope is not None
    assert (envelope.id, envelope.source, envelope.type, envelope.time) == (
        "A234-1234-1234",
        "https://example.com/shop",
        "com.example.order.placed",
        1_700_000_000.25,
    )
    assert (envelope.key, envelope.content_type) == ("customer-7", "application/json")
    assert json.loads(envelope.payload) == {"order": 1}
