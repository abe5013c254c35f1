"""MessagePack: payloads of that content type are decoded like JSON, and sent when it is named."""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given, strategies as st

from spa_dat import DistributedApplication, Message, MessageBuilder, Socket
from spa_dat.errors import DecodeError, EncodeError
from spa_dat.runtime.payloads._codec import Decoder, PayloadFormat, encode_as, format_of
from spa_dat.testing import Harness

TYPE = "application/msgpack"


@dataclass
class Reading:
    sensor: str
    celsius: float


class Entry(TypedDict):
    a: int


class Model(pydantic.BaseModel):
    name: str
    count: int


class Colour(enum.Enum):
    RED = "red"


def round_trip(value: object, annotation: Any) -> Any:
    return Decoder.of(annotation).decode(encode_as(value, TYPE), TYPE)


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("application/msgpack", PayloadFormat.MESSAGEPACK),
        ("Application/X-MsgPack; charset=binary", PayloadFormat.MESSAGEPACK),
        ("application/vnd.msgpack", PayloadFormat.MESSAGEPACK),
        ("application/vnd.example+msgpack", PayloadFormat.MESSAGEPACK),
        ("application/msgpack2", PayloadFormat.OTHER),
    ],
)
def test_content_types(content_type: str, form: PayloadFormat) -> None:
    assert format_of(content_type) is form


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Reading("boiler", 21.5), Reading),
        ({"a": 1}, Entry),
        (Model(name="x", count=3), Model),
        ([Model(name="x", count=3)], list[Model]),
        (Colour.RED, Colour),
        ("grün", str),
        (True, bool),
        (7, int | None),
        (None, int | None),
        (None, None),
        ({"a": [1, 2.5, None, b"\x00\xff"]}, Any),
        ({1: "a", 2: "b"}, dict[int, str]),
        ([b"\x00\xff"], list[bytes]),
        (uuid.UUID(int=5), uuid.UUID),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime),
        (Decimal("1.10"), Decimal),
        (2**63, int),
    ],
)
def test_values_come_back(value: object, annotation: Any) -> None:
    assert round_trip(value, annotation) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_value_comes_back(value: Any) -> None:
    # Bytes at the top are sent as they are.
    if not isinstance(value, bytes):
        assert round_trip(value, Any) == value


def test_equal_values_give_equal_bytes() -> None:
    one = encode_as({"b": 1, "a": {"y", "x", "z"}}, TYPE)
    assert one == encode_as({"a": {"z", "x", "y"}, "b": 1}, TYPE)


def test_it_is_what_the_specification_says() -> None:
    assert encode_as({"compact": True, "schema": 0}, TYPE) == (b"\x82\xa7compact\xc3\xa6schema\x00")
    assert encode_as("a", TYPE) == b"\xa1a"
    assert encode_as(None, TYPE) == b"\xc0"
    assert encode_as(float("nan"), TYPE) == b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize("value", [b"\x00", bytearray(b"\x00"), memoryview(b"\x00")])
def test_bytes_are_sent_as_they_are(value: object) -> None:
    assert encode_as(value, TYPE) == b"\x00"
    assert Decoder.of(bytes).decode(b"\xc1", TYPE) == b"\xc1"
    limited = Annotated[bytes, msgspec.Meta(max_length=1)]
    assert Decoder.of(limited).decode(b"\xc1", TYPE) == b"\xc1"


def test_other_content_types_change_nothing() -> None:
    assert encode_as("a", "application/json") == b"a"
    assert encode_as({"a": 1}, "application/xml") == b'{"a":1}'


def test_an_empty_payload_is_none() -> None:
    assert Decoder.of(int | None).decode(b"", TYPE) is None


_MISFITS: list[tuple[bytes, Any, str]] = [
    (b"", int, "it is empty"),
    (b"\xc1", int, "malformed|invalid"),
    (b"\x92\x01", list[int], "truncated"),
    (b"\x01\x02", int, "trailing"),
    (b"\xa1a", int, "Expected `int`, got `str`"),
    (b"\xa11", int, "Expected `int`, got `str`"),
    (b"\xa1\xff", str, "not UTF-8"),
    (b"\x81\xa4name\x01", Model, "name"),
    (b"\xd6\x05abcd", int, "Expected `int`, got `ext`"),
    (b"\x91" * 1_000_000, Any, "32768 are allowed"),
    (b"\x91" * 30_000, Any, "nested too deeply"),
    (b"\xdd\xff\xff\xff\xff", list[int], "truncated"),
    (b"\xc6\xff\xff\xff\xff", list[bytes], "Expected `array`|truncated"),
]


@pytest.mark.parametrize("number", range(len(_MISFITS)))
def test_what_does_not_fit_is_refused(number: int) -> None:
    payload, annotation, words = _MISFITS[number]
    with pytest.raises(DecodeError, match=words) as caught:
        Decoder.of(annotation).decode(payload, TYPE)
    assert len(str(caught.value)) < 600


def test_keys_with_equal_hash_values_find_no_room() -> None:
    # Tuples hash predictably, and any value may be a key.
    keys = b"".join(b"\x92\x01" + b"\xcf" + struct.pack(">Q", n) + b"\x01" for n in range(10_000))
    document = b"\xdf" + struct.pack(">I", 10_000) + keys
    for annotation in (Any, dict, dict[str, Any], dict[int, int], dict[uuid.UUID, int], Model):
        with pytest.raises(DecodeError, match="32768 are allowed"):
            Decoder.of(annotation).decode(document, TYPE)


def test_large_documents_fit_types_that_say_what_their_keys_are() -> None:
    readings = [Reading(f"sensor {number}", number / 2) for number in range(5_000)]
    assert len(encode_as(readings, TYPE)) > 32_768
    assert round_trip(readings, list[Reading]) == readings
    table = {reading.sensor: reading.celsius for reading in readings}
    assert round_trip(table, dict[str, float]) == table


def test_what_it_cannot_represent_is_an_error() -> None:
    with pytest.raises(EncodeError, match=r"MessagePack: a value of type builtins.object at `\$.a"):
        encode_as({"a": object()}, TYPE)
    with pytest.raises(EncodeError, match="MessagePack"):
        encode_as([2**64], TYPE)


@pytest.mark.parametrize("bus", ["memory://", "mqtt://broker", "kafka://broker"])
def test_it_goes_from_actor_to_actor(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    got: list[object] = []

    @app.application("in")
    async def send(reading: Reading, socket: Socket, message_builder: MessageBuilder) -> None:
        await socket.publish("one", reading, content_type=TYPE)
        await socket.publish("many", reading, content_type=TYPE)
        request = message_builder("double", 21, content_type=TYPE)
        got.append(await socket.request(request, reply=int))

    @app.application("one")
    async def one(reading: Reading, message: Message[Reading]) -> None:
        got.append((reading, message.content_type, message.raw))

    @app.application("many", batch=(5, 1.0))
    async def many(readings: list[Reading]) -> None:
        got.extend(readings)

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    with Harness(app) as harness:
        harness.publish("in", Reading("a", 1.0), content_type=TYPE)
        harness.settle()
        assert harness.published("one") == [{"sensor": "a", "celsius": 1.0}]
    raw = encode_as(Reading("a", 1.0), TYPE)
    assert (Reading("a", 1.0), TYPE, raw) in got
    assert Reading("a", 1.0) in got
    assert 42 in got
    assert len(got) == 3


def test_what_does_not_fit_becomes_a_dead_letter() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("in")
    async def handle(number: int) -> None: ...

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("in", b"\xa1a", content_type=TYPE)
        harness.settle()
        (letter,) = harness.dead_letters()
    assert letter.payload == b"\xa1a"
