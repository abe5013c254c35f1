"""Payloads: what goes on the wire for a value, and what of it fits which type."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import sys
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import given, strategies as st

from spa_dat.errors import ConfigurationError, DecodeError, EncodeError
from spa_dat.runtime.payloads import _codec as _content_types
from spa_dat.runtime.payloads._codec import Decoder, PayloadFormat, encode, format_of
from spa_dat.runtime.payloads._hash_collisions import may_collide
from spa_dat.transports import Tombstone

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Tone(enum.StrEnum):
    LOW = " low "
    HIGH = "high"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Reading:
    sensor: str
    celsius: float


@dataclasses.dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value == 0:
            raise KeyError("zero")
        if self.value < 0:
            raise ValueError("must be positive")


class Sample(msgspec.Struct):
    at: datetime
    values: list[float]


class Place(TypedDict):
    hall: str
    row: int


class Pair(NamedTuple):
    left: int
    right: str


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Order(pydantic.BaseModel):
    number: int = pydantic.Field(alias="Number")
    price: float = 0.0
    at: datetime | None = None


class Lenient(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=False)
    number: int


@pydantic.dataclasses.dataclass
class Checked:
    size: int

    @pydantic.field_validator("size")
    @classmethod
    def positive(cls, size: int) -> int:
        if size <= 0:
            raise ValueError("size must be positive")
        return size


@dataclasses.dataclass
class Basket:
    orders: list[Order]
    owner: object = None


@dataclasses.dataclass
class Shelf:
    checked: Checked


class Unknown:
    pass


class Locker(TypedDict):
    content: Unknown


Celsius = NewType("Celsius", float)
Word = NewType("Word", str)
JSON = "application/json"
TEXT = "text/plain"


def round_trip(value: object, annotation: Any) -> Any:
    payload, content_type = encode(value)
    return Decoder.of(annotation).decode(payload, content_type)


# Encoding.


@pytest.mark.parametrize(
    ("value", "payload", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
        (bytearray(b"ab"), b"ab", "application/octet-stream"),
        (memoryview(b"abcd")[::2], b"ac", "application/octet-stream"),
        (b"", b"", "application/octet-stream"),
        ("grün", "grün".encode(), TEXT),
        ("", b"", TEXT),
        (Tone.HIGH, b"high", TEXT),
        (None, b"", None),
        (21.5, b"21.5", JSON),
        (True, b"true", JSON),
        (2**70, b"1180591620717411303424", JSON),
        ([1, None, "a"], b'[1,null,"a"]', JSON),
        (Reading("boiler", 21.5), b'{"sensor":"boiler","celsius":21.5}', JSON),
        (Colour.RED, b'"red"', JSON),
        (Order(Number=3), b'{"Number":3,"at":null,"price":0.0}', JSON),
    ],
)
def test_encoding(value: object, payload: bytes, content_type: str | None) -> None:
    assert encode(value) == (payload, content_type)


def test_equal_values_give_equal_bytes() -> None:
    assert encode({"b": 1, "a": {"y", "x", "z"}}) == encode({"a": {"z", "x", "y"}, "b": 1})
    assert encode({2: {"y", "x"}, 1: None})[0] == b'{"1":null,"2":["x","y"]}'


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


class Holder(pydantic.BaseModel):
    thing: object


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, ["nan", "`$`"]),
        ({"a": [1.0, {"b": math.inf}]}, ["inf", "`$.a[1].b`"]),
        (Reading("boiler", -math.inf), ["Reading", "-inf", "`$.celsius`"]),
        (Order(Number=1, price=math.nan), ["Order", "nan", "`$.price`"]),
        ([Order(Number=1, price=math.nan)], ["nan", "`$[0].price`"]),
        ({math.nan: 1}, ["nan", "`$.keys()`"]),
        ({"a": (1, Unknown())}, ["Unknown", "`$.a[1]`"]),
        (Sample(at=Unknown(), values=[]), ["Unknown", "`$.at`"]),  # type: ignore[arg-type]
        ({"a": len}, ["builtin_function_or_method", "`$.a`"]),
        ({(1, 2): 3}, ["dict"]),
        (Holder(thing=Unknown()), ["Holder", "`$`"]),
        (["\ud800"], ["surrogate", "`$[0]`"]),
        (_cycle(), ["contains itself"]),
        (1j, ["complex"]),
        ([10**5000], ["int", "`$[0]`"]),
    ],
)
def test_what_json_can_not_carry_is_named_with_its_place(value: object, words: list[str]) -> None:
    with pytest.raises(EncodeError) as raised:
        encode(value)
    for word in words:
        assert word in str(raised.value)


def test_a_tombstone_is_an_object() -> None:
    assert encode(Tombstone()) == (b"", None)
    with pytest.raises(EncodeError, match=r"Tombstone\(\)"):
        encode(Tombstone)


def test_a_coroutine_as_a_payload_means_that_an_await_is_missing() -> None:
    async def price() -> float:
        return 1.0

    forgotten = price()
    with pytest.raises(EncodeError, match=r"price\): an `await` is missing at `\$\[1\]`"):
        encode([1.0, forgotten])
    forgotten.close()


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(EncodeError, match="UTF-8"):
        encode("\ud800")


def test_null_in_a_payload_is_not_taken_for_nan() -> None:
    assert encode({"a": None, "b": "null"})[0] == b'{"a":null,"b":"null"}'


# Content types.


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (None, PayloadFormat.UNSTATED),
        (" ", PayloadFormat.UNSTATED),
        ("application/json", PayloadFormat.JSON),
        ("Application/JSON; Charset=UTF-8", PayloadFormat.JSON),
        ("application/cloudevents+json", PayloadFormat.JSON),
        ("text/plain", PayloadFormat.TEXT),
        ("TEXT/CSV;header=present", PayloadFormat.TEXT),
        ("application/octet-stream", PayloadFormat.BINARY),
        ("image/png", PayloadFormat.OTHER),
        (";", PayloadFormat.UNSTATED),
    ],
)
def test_content_types(content_type: str | None, form: PayloadFormat) -> None:
    assert format_of(content_type) is form


# Decoding.


@pytest.mark.parametrize("content_type", [None, JSON, TEXT, "image/png", "x"])
def test_bytes_take_the_payload_whatever_its_content_type(content_type: str | None) -> None:
    payload = b'"\xff"'
    decoder = Decoder.of(bytes)
    assert decoder.is_identity
    assert decoder.decode(payload, content_type) is payload
    assert Decoder.of(bytes | None).decode(payload, content_type) == payload
    assert Decoder.of(bytearray).decode(payload, content_type) == bytearray(payload)
    assert Decoder.of(memoryview).decode(payload, content_type) == payload


def test_limits_on_bytes_count() -> None:
    short = Decoder.of(Annotated[bytes, msgspec.Meta(max_length=2)])
    assert short.decode(b"ab") == b"ab"
    with pytest.raises(DecodeError, match="length"):
        short.decode(b"abc")


@pytest.mark.parametrize(
    ("annotation", "payload", "content_type", "value"),
    [
        (str, b'"a"', None, '"a"'),
        (str, b'"a"', TEXT, '"a"'),
        (str, b'"a"', JSON, "a"),
        (str, b"", None, ""),
        (Word, b'"a"', None, '"a"'),
        (str | None, b"", None, None),
        (str | None, b"", TEXT, ""),
        (str | None, b"a", None, "a"),
        (str | int, b"5", None, 5),
        (str | int, b"boiler 5", None, "boiler 5"),
        (int, b"5", None, 5),
        (float, b"5", JSON, 5.0),
        (Celsius, b"5.5", None, 5.5),
        (bool, b"true", None, True),
        (float, b"21.5", TEXT, 21.5),
        (float, b" 21.5\n", "text/plain", 21.5),
        (int, b"-7", TEXT, -7),
        (bool, b"ON", TEXT, True),
        (bool, b"off", TEXT, False),
        (bool, b"True", TEXT, True),
        (bool, b"0", TEXT, False),
        (int | None, b"null", TEXT, None),
        (int | None, b"", None, None),
        (Colour, b'"red"', None, Colour.RED),
        (Colour, b"red", TEXT, Colour.RED),
        (Level, b"2", JSON, Level.HIGH),
        (Level, b"2", TEXT, Level.HIGH),
        (Literal["a", "b"], b'"b"', None, "b"),
        (Literal[1, 2], b"2", TEXT, 2),
        (None, b"", None, None),
        (None, b"", TEXT, None),
        (None, b"null", None, None),
        (None, b"null", JSON, None),
        (dict, b'{"a":1}', None, {"a": 1}),
        (dict[str, object], b'{"a":[null]}', None, {"a": [None]}),
        (dict[int, float], b'{"1":2}', None, {1: 2.0}),
        (list[int], b"[1,2]", None, [1, 2]),
        (Reading, b'{"sensor":"a","celsius":1,"more":0}', None, Reading("a", 1.0)),
        (Reading | None, b"null", None, None),
        (Reading | None, b"", None, None),
        (Box[int], b'{"content":1}', None, Box(1)),
        (Pair, b'[1,"a"]', None, Pair(1, "a")),
        (Place, b'{"hall":"a","row":1}', "application/geo+json", {"hall": "a", "row": 1}),
        (Any, b"[1]", None, [1]),
        (Any, b"", None, None),
        (object, b'{"a":1}', None, {"a": 1}),
        (Any, b"[1]", TEXT, "[1]"),
        (Any, b"\xff", "application/octet-stream", b"\xff"),
        (object, b"\xff", "image/png", b"\xff"),
        (Order, b'{"Number":1,"price":2}', None, Order(Number=1, price=2.0)),
        (list[Order], b'[{"Number":1}]', None, [Order(Number=1)]),
        (Order | int, b"5", None, 5),
        (Lenient, b'{"number":"5"}', None, Lenient(number=5)),
        (Checked, b'{"size":1}', None, Checked(1)),
        (Basket, b'{"orders":[{"Number":1}],"owner":5}', None, Basket([Order(Number=1)], 5)),
        (
            Basket,
            b'{"orders":[{"Number":1,"at":"2024-01-01T00:00:00Z"}]}',
            None,
            Basket([Order(Number=1, at=datetime(2024, 1, 1, tzinfo=UTC))]),
        ),
    ],
)
def test_decoding(annotation: Any, payload: bytes, content_type: str | None, value: Any) -> None:
    decoded = Decoder.of(annotation).decode(payload, content_type)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    ("annotation", "payload", "content_type", "words"),
    [
        (str, b"\xff", None, ["UTF-8", "byte 0"]),
        (str, b"5", JSON, ["`str`", "`int`"]),
        (str, b"a", "image/png", ["image/png"]),
        (int, b'"1"', None, ["`int`", "`str`"]),
        (int, b"1.5", JSON, ["`int`", "`float`"]),
        (int, b"1" * 5000, None, ["range"]),
        (int, b"1_0", TEXT, ["int"]),
        (int, b"", None, ["int", "0 bytes"]),
        (int, b"1.5", TEXT, ["int"]),
        (float, b"NaN", None, ["float"]),
        (float, b"nan", TEXT, ["nan"]),
        (float, b"1e999", None, ["range"]),
        (float, b"1", "application/octet-stream", ["octet-stream"]),
        (bool, b"1", None, ["`bool`"]),
        (bool, b"perhaps", TEXT, ["bool"]),
        (None, b"5", None, ["null"]),
        (None, b"5", TEXT, ["null"]),
        (list[int], b'[1,"x"]', None, ["`$[1]`"]),
        (list[Any], b"[" * 100_000, None, ["nested"]),
        (Any, b"not json", None, ["malformed"]),
        (dict[str, Any], b"{}", "image/png", ["image/png"]),
        (Reading, b'{"sensor":"a"}', None, ["Reading", "celsius"]),
        (Reading, b"21.5", TEXT, ["Reading"]),
        (str | int, b"[1]", None, ["array"]),
        (Positive, b'{"value":0}', None, ["KeyError", "zero"]),
        (Positive, b'{"value":-1}', None, ["must be positive"]),
        (Order, b'{"Number":"1"}', None, ["Order", "`$.Number`", "integer"]),
        (Order, b'{"Number":1,"price":NaN}', None, ["malformed"]),
        (Order, b'{"Number":1,"price":1e999}', None, ["range"]),
        (Order, b'{"Number":"1"}', TEXT, ["Order"]),
        (list[Order], b'[{"Number":"1"}]', None, ["`$[0].Number`"]),
        (Checked, b'{"size":0}', None, ["size must be positive"]),
        (Shelf, b'{"checked":{"size":0}}', None, ["size must be positive"]),
        (Basket, b'{"orders":[{"Number":"x"}]}', None, ["Number", "orders"]),
    ],
)
def test_what_does_not_fit_is_refused(
    annotation: Any, payload: bytes, content_type: str | None, words: list[str]
) -> None:
    with pytest.raises(DecodeError) as raised:
        Decoder.of(annotation).decode(payload, content_type)
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Colour, b'"hunter2"'),
        (Literal["a"], b'"hunter2"'),
        (dict[str, Colour], b'{"a":"hunter2 - at `x`"}'),
        (list[int], b'["hunter2"]'),
        (Order, b'{"Number":"hunter2"}'),
        (Basket, b'{"orders":[{"Number":"hunter2"}]}'),
    ],
)
def test_errors_do_not_quote_the_payload(annotation: Any, payload: bytes) -> None:
    for content_type in (JSON, TEXT):
        with pytest.raises(DecodeError) as raised:
            Decoder.of(annotation).decode(payload, content_type)
        assert "hunter2" not in str(raised.value)


def test_content_types_that_strangers_invent_are_not_remembered() -> None:
    before = _content_types._remembered.cache_info().currsize
    for number in range(20):
        assert format_of(f"text/{number}{'x' * 1_000}; a=b") is PayloadFormat.TEXT
        assert format_of(f"a/{number}{'x' * 1_000}+json") is PayloadFormat.JSON
    assert _content_types._remembered.cache_info().currsize == before


def test_a_long_content_type_is_cut_in_the_error() -> None:
    with pytest.raises(DecodeError) as raised:
        Decoder.of(int).decode(b"1", "x" * 10_000)
    assert len(str(raised.value)) < 300


# Types that payloads cannot have.


@pytest.mark.parametrize(
    "annotation",
    [
        Unknown,
        list[Unknown],
        Unknown | int,
        bytes | int,
        Annotated[bytes, 1] | Reading,
        "Reading",
        5,
        [int],
        type,
        Locker,
    ],
)
def test_types_that_payloads_can_not_have(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the type of a payload"):
        Decoder.of(annotation)


def test_a_type_whose_fields_can_not_be_resolved_is_refused() -> None:
    @dataclasses.dataclass
    class Local:
        inner: Nowhere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(
        ConfigurationError, match=r"'Nowhere' is not defined.*define .* at the top level"
    ) as refused:
        Decoder.of(Local)
    # It is a dataclass.
    assert "a dataclass" not in str(refused.value)


def test_a_decoder_is_made_once_for_a_type() -> None:
    assert Decoder.of(list[Reading]) is Decoder.of(list[Reading])
    assert Decoder.of(Annotated[int, []]).decode(b"5") == 5
    assert repr(Decoder.of(int | None)) == "<Decoder int | None>"


# Properties.

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(trees)
def test_documents_come_back_as_they_were(value: Any) -> None:
    if isinstance(value, str):
        assert round_trip(value, str) == value
    assert round_trip([value], list) == [value]
    assert round_trip({"a": value}, Any) == {"a": value}


@given(st.binary())
def test_bytes_come_back_as_they_were(value: bytes) -> None:
    assert round_trip(value, bytes) == value
    assert round_trip(value, bytes | None) == value
    assert round_trip(value, Any) == value


@given(texts, numbers)
def test_records_come_back_as_they_were(text: str, number: float) -> None:
    assert round_trip(Reading(text, float(number)), Reading) == Reading(text, float(number))
    place: Place = {"hall": text, "row": 1}
    assert round_trip(place, Place) == place
    order = Order(Number=1, price=float(number))
    assert round_trip(order, Order) == order
    assert round_trip(Basket([order]), Basket) == Basket([order])


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (None, None),
        (None, int | None),
        (None, Any),
        ("", str | None),
        (Tone.LOW, Tone),
        (Level.LOW, Level),
        (Colour.GREEN, Colour),
        (uuid.UUID(int=7), uuid.UUID),
        (Decimal("1.50"), Decimal),
        (datetime(2024, 5, 1, tzinfo=UTC), datetime),
        (Sample(at=datetime(2024, 5, 1, tzinfo=UTC), values=[1.0]), Sample),
        ({1, 2}, set[int]),
        (Pair(1, "a"), Pair),
        (Checked(3), Checked),
        (Shelf(Checked(3)), Shelf),
        ({"a": b"\xff"}, dict[str, bytes]),
        (10**300, int),
    ],
)
def test_values_come_back_as_they_were(value: Any, annotation: Any) -> None:
    assert round_trip(value, annotation) == value


FUZZED = [
    str, int, float, bool, None, dict, list, Any, Reading, Sample, Place, Order, Checked, Basket,
    Colour, Level, uuid.UUID, datetime, int | str | None, Order | int, list[float],
    dict[int, Reading], Positive, Pair, Literal["a", 1],
]  # fmt: skip
contents = st.sampled_from([None, "", JSON, TEXT, "application/octet-stream", "a/b", "a+json"])


@given(
    st.sampled_from(FUZZED),
    st.binary() | trees.map(lambda tree: json.dumps(tree).encode()) | texts.map(str.encode),
    contents | texts,
)
def test_nothing_but_a_decode_error_escapes(
    annotation: Any, payload: bytes, content_type: str | None
) -> None:
    with contextlib.suppress(DecodeError):
        Decoder.of(annotation).decode(payload, content_type)


def test_of_very_many_mistakes_in_a_document_only_the_number_is_said() -> None:
    payload = b"[" + b",".join([b"1"] * 1_100) + b"]"
    with pytest.raises(DecodeError, match="1100 problems, too many to list"):
        Decoder.of(list[Order]).decode(payload)
    with pytest.raises(DecodeError, match=r"object - at `\$\[0\]`"):
        Decoder.of(list[Order]).decode(b"[1, 1]")


# Numbers and UUIDs that differ by this have one hash value.
MODULUS = sys.hash_info.modulus


class Ids(pydantic.BaseModel):
    ids: set[uuid.UUID]


def document(name: str, step: int, count: int) -> tuple[Any, bytes]:
    """A type, and a document of it with so many keys, which differ by ``step``."""
    values = [10**19 + index * step for index in range(count)]
    numbers = [str(value) for value in values]
    ids = [str(uuid.UUID(int=value)) for value in values]
    one_each = ",".join(f'"{number}":1' for number in numbers)
    escaped = ",".join(f'"{number[:9]}\\u003{number[9:]}":1' for number in numbers)
    pairs = ",".join(f"[{number},true]" for number in numbers)
    kind, text = {
        "set of ids": (set[uuid.UUID], json.dumps(ids)),
        "ids": (dict[uuid.UUID, int], json.dumps(dict.fromkeys(ids, 1))),
        "numbers": (dict[int, int], f"{{{one_each}}}"),
        "escaped": (dict[int, int], f"{{{escaped}}}"),
        "decimals": (set[Decimal], json.dumps(numbers)),
        "pairs": (set[tuple[int, bool]], f"[{pairs}]"),
        "within": (dict[str, list[set[int]]], json.dumps({"a": [values]})),
        "pydantic": (Ids, json.dumps({"ids": ids})),
    }[name]
    return kind, text.encode()


@pytest.mark.parametrize(
    "name",
    ["set of ids", "ids", "numbers", "escaped", "decimals", "pairs", "within", "pydantic"],
)
def test_a_document_of_keys_that_are_all_in_each_others_way_is_refused(name: str) -> None:
    # Reading it would take up to a minute.
    kind, data = document(name, MODULUS, 25_000)
    with pytest.raises(DecodeError, match="more than 100 keys with the same hash value"):
        Decoder.of(kind).decode(data)
    for step, count in ((1, 5_000), (MODULUS, 90), (MODULUS, 400)):
        kind, data = document(name, step, count)
        Decoder.of(kind).decode(data)


@pytest.mark.parametrize(
    "kind", [Any, dict[str, int], list[int], dict[str, Any], set[str], list[float], Reading]
)
def test_what_has_no_such_keys_is_not_looked_through(kind: Any) -> None:
    assert not may_collide(msgspec.inspect.type_info(kind))
