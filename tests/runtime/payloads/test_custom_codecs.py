"""Codecs of an application's own: named by an annotation, by reply= and by a publish."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest

from spa_dat import Codec, DistributedApplication, Message, MessageBuilder, Socket, Topic
from spa_dat.errors import ConfigurationError, DecodeError, EncodeError, RemoteError
from spa_dat.runtime.payloads._codec import Decoder, encode_with
from spa_dat.runtime.payloads._custom_codecs import codec_in
from spa_dat.testing import Harness
from spa_dat.transports import Tombstone
from support.processes import collect, make
from support.waiting import eventually

BUSES = pytest.mark.parametrize("bus", ["memory://", "mqtt://broker", "kafka://broker"])


class Row(msgspec.Struct):
    name: str
    number: int


class CsvCodec(Codec):
    """One row of CSV."""

    content_type = "text/csv"

    def encode(self, value: Any) -> bytes:
        file = io.StringIO()
        csv.writer(file).writerow(msgspec.structs.astuple(value))
        return file.getvalue().encode()

    def decode(self, payload: bytes, kind: Any) -> Any:
        (row,) = csv.reader(io.StringIO(payload.decode(), newline=""))
        return msgspec.convert(row, tuple[str, int], strict=False) and kind(row[0], int(row[1]))


CSV = CsvCodec()
CsvRow = Annotated[Row, CSV]


class Raising(Codec):
    content_type = "application/raising"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode(self, value: Any) -> bytes:
        raise self.error

    def decode(self, payload: bytes, kind: Any) -> Any:
        raise self.error


class Untrue(CsvCodec):
    def encode(self, value: Any) -> bytes:
        return "text"  # type: ignore[return-value]


# Decoding.


def test_payloads_of_the_codec_are_decoded_by_it() -> None:
    decoder = Decoder.of(CsvRow)
    for content_type in ("text/csv", "Text/CSV; charset=utf-8", None):
        assert decoder.decode(b"a,1\r\n", content_type) == Row("a", 1)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/csv2", ""])
def test_no_other_payloads_are_accepted(content_type: str) -> None:
    with pytest.raises(DecodeError, match="does not fit Row: only 'text/csv' is accepted here"):
        Decoder.of(CsvRow).decode(b'{"name":"a","number":1}', content_type)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad\nrow"),
        KeyError("x"),
        SystemExit(3),
        RecursionError(),
        MemoryError(),
        AssertionError(),
    ],
    ids=repr,
)
def test_whatever_it_raises_is_an_error_of_the_payload(error: BaseException) -> None:
    codec = Raising(error)
    with pytest.raises(DecodeError, match="does not fit") as caught:
        Decoder.of(Annotated[Row, codec]).decode(b"x", codec.content_type)
    assert str(caught.value).isprintable()
    with pytest.raises(EncodeError, match="Raising cannot encode a payload of type Row"):
        encode_with(codec, Row("a", 1))


def test_an_empty_payload_is_none_where_that_is_allowed() -> None:
    assert Decoder.of(CsvRow | None).decode(b"") is None
    assert Decoder.of(Annotated[Row | None, CSV]).decode(b"") is None
    assert Decoder.of(CsvRow | None).decode(b"a,1", "text/csv") == Row("a", 1)
    # With the content type it is a payload as any other.
    with pytest.raises(DecodeError, match="it is empty"):
        Decoder.of(CsvRow | None).decode(b"", "text/csv")


def test_the_type_may_be_one_that_nothing_else_can_decode() -> None:
    class Opaque:
        def __init__(self, payload: bytes) -> None:
            self.payload = payload

    class OpaqueCodec(Codec):
        content_type = "application/opaque"

        def encode(self, value: Any) -> bytes:
            return bytes(value.payload)

        def decode(self, payload: bytes, kind: Any) -> Any:
            return kind(payload)

    value = Decoder.of(Annotated[Opaque, OpaqueCodec()]).decode(b"x")
    assert isinstance(value, Opaque)
    with pytest.raises(ConfigurationError, match="cannot be the type of a payload"):
        Decoder.of(Opaque)


def test_what_names_a_codec() -> None:
    assert codec_in(CsvRow) is CSV
    assert codec_in(CsvRow | None) is CSV
    assert codec_in(Annotated[CsvRow, "more"]) is CSV
    for annotation in (Row, Row | None, Annotated[Row, "x"], list[CsvRow], CsvRow | int, None):
        assert codec_in(annotation) is None


# Mistakes.


class Nameless(CsvCodec):
    content_type = ""


class Numbered(CsvCodec):
    content_type = 5  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (CsvCodec, "CsvCodec is a class: give an instance"),
        (Nameless(), "content_type of Nameless is ''"),
        (Numbered(), "content_type of Numbered is 5"),
    ],
)
def test_wrong_codecs_are_refused_at_registration(codec: Any, words: str) -> None:
    app = DistributedApplication("memory://", name="app")

    async def handle(row: Any) -> None: ...

    handle.__annotations__["row"] = Annotated[Row, codec]
    with pytest.raises(ConfigurationError, match=words):
        app.application("in")(handle)


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (CsvCodec, "codec: CsvCodec is a class: give an instance"),
        (Nameless(), "codec: the content_type of Nameless is ''"),
        ("text/csv", "codec: 'text/csv' is no codec"),
        (Untrue(), "Untrue.encode\\(\\) returned str: it has to return bytes"),
        (Raising(OSError("no schema")), "Raising cannot encode a payload of type Row: .*no schema"),
    ],
)
def test_wrong_codecs_are_refused_at_the_publish(codec: Any, words: str) -> None:
    app = DistributedApplication("memory://", name="app")
    raised: list[Exception] = []

    @app.application("in")
    async def handle(socket: Socket) -> None:
        try:
            await socket.publish("out", Row("a", 1), codec=codec)
        except (ConfigurationError, EncodeError) as error:
            raised.append(error)

    with Harness(app) as harness:
        harness.publish("in")
        harness.settle()
    (error,) = raised
    with pytest.raises(type(error), match=words):
        raise error


# Through an application.


@BUSES
def test_messages_requests_replies_and_batches(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    got: list[Any] = []

    @app.application("in")
    async def handle(row: CsvRow, message: Message[CsvRow], socket: Socket) -> None:
        got.append((row, message.raw, message.content_type))
        with pytest.raises(RemoteError, match="only 'text/csv' is accepted here"):
            await socket.request("next", row)
        await socket.publish("batch", row, codec=CSV)
        await socket.publish("typed", row, codec=CSV, content_type="text/csv; header=absent")
        build = MessageBuilder()
        request = build("next", row, codec=CSV)
        got.append(await socket.request(request, reply=CsvRow))

    @app.application("next")
    async def next_one(row: CsvRow) -> CsvRow:
        return Row(row.name, row.number + 1)

    @app.application("batch", batch=(5, 1.0))
    async def batch(rows: list[CsvRow]) -> None:
        got.append(rows)

    @app.application("typed")
    async def typed(message: Message[bytes]) -> None:
        got.append((message.payload, message.content_type))

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("in", Row("a", 1), codec=CSV)
        harness.settle()
        assert harness.published("batch", type=CsvRow) == [Row("a", 1)]
    assert (Row("a", 1), b"a,1\r\n", "text/csv") in got
    assert Row("a", 2) in got
    assert [Row("a", 1)] in got
    assert (b"a,1\r\n", "text/csv; header=absent") in got
    assert len(got) == 4


@BUSES
def test_topics_name_codecs_in_their_types(bus: str) -> None:
    app = DistributedApplication(bus, name="app")
    rows = Topic[CsvRow | None]("rows/{name}")
    doubled = Topic[CsvRow, CsvRow]("double")
    got: list[Any] = []

    @app.application(rows)
    async def take(row: CsvRow | None, message: Message[CsvRow | None], socket: Socket) -> None:
        got.append((row, message.content_type))
        if row is not None:
            got.append(await socket.request(doubled, row))
            got.extend(await socket.request_many(doubled, row, count=1))

    @app.application(doubled)
    async def double(row: CsvRow) -> CsvRow:
        return Row(row.name, 2 * row.number)

    @app.application("go")
    async def go(socket: Socket, message_builder: MessageBuilder) -> None:
        await socket.publish(rows.at(name="a"), Row("a", 1))
        socket.post(message_builder(rows.at(name="b"), Row("b", 2)))
        await socket.publish(rows.at(name="c"), None)

    with Harness(app) as harness:
        harness.publish("go")
        harness.publish(rows.at(name="d"), Row("d", 4))
        harness.settle()
    for row in (Row("a", 1), Row("b", 2), Row("d", 4)):
        assert (row, "text/csv") in got
        assert got.count(Row(row.name, 2 * row.number)) == 2
    assert (None, None) in got
    assert len(got) == 10


def test_what_does_not_fit_becomes_a_dead_letter() -> None:
    app = DistributedApplication("memory://", name="app")

    @app.application("in")
    async def handle(row: CsvRow) -> None: ...

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("in", b"a,b", content_type="text/csv")
        harness.publish("in", {"name": "a"})
        harness.settle()
        letters = harness.dead_letters()
    assert [letter.payload for letter in letters] == [b"a,b", b'{"name":"a"}']


def test_a_reply_that_cannot_be_encoded_is_an_error_for_the_requester() -> None:
    app = DistributedApplication("memory://", name="app")
    codec = Raising(ValueError("no"))

    @app.application("ask")
    async def answer(number: int) -> Annotated[int, codec]:
        return number

    with Harness(app) as harness:
        harness.expect_failure(EncodeError)
        with pytest.raises(RemoteError, match="Raising cannot encode"):
            harness.request("ask", 1, reply=int)


def test_a_tombstone_is_no_value_to_encode() -> None:
    app = DistributedApplication("kafka://broker", name="app")
    got: list[bool] = []

    @app.application("out")
    async def take(row: CsvRow | None, message: Message[CsvRow | None]) -> None:
        got.append(message.tombstone and row is None)

    with Harness(app) as harness:
        harness.publish("out", Tombstone(), key="k", codec=CSV)
        harness.settle()
    assert got == [True]


async def test_codecs_go_to_child_processes() -> None:
    app = make()
    got = collect(app, "out")

    @app.application("in", placement="process")
    async def work(row: CsvRow, socket: Socket) -> None:
        await socket.publish("out", [row.name, row.number])
        await socket.publish("csv", row, codec=CSV)

    @app.application("csv", name="back")
    async def back(row: CsvRow) -> None:
        got.append(row)

    async with app:
        await app.socket().publish("in", Row("a", 1), codec=CSV)
        await eventually(lambda: len(got) == 2)
    assert ["a", 1] in got
    assert Row("a", 1) in got


# Real formats: examples/codecs.py has the same codecs.


def test_avro() -> None:
    fastavro = pytest.importorskip("fastavro")
    fields = [{"name": "name", "type": "string"}, {"name": "number", "type": "long"}]
    schema = fastavro.parse_schema({"type": "record", "name": "Row", "fields": fields})

    class AvroCodec(Codec):
        content_type = "application/avro"

        def encode(self, value: Any) -> bytes:
            file = io.BytesIO()
            fastavro.schemaless_writer(file, schema, msgspec.structs.asdict(value))
            return file.getvalue()

        def decode(self, payload: bytes, kind: Any) -> Any:
            return msgspec.convert(fastavro.schemaless_reader(io.BytesIO(payload), schema), kind)

    _round_trip(AvroCodec(), Row("a", 1), Row)


def test_protobuf() -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")

    class ProtobufCodec(Codec):
        content_type = "application/protobuf"

        def encode(self, value: Any) -> bytes:
            return bytes(value.SerializeToString())

        def decode(self, payload: bytes, kind: Any) -> Any:
            return kind.FromString(payload)

    _round_trip(ProtobufCodec(), wrappers.StringValue(value="x"), wrappers.StringValue)


def _round_trip(codec: Codec, value: object, kind: Any) -> None:
    app = DistributedApplication("memory://", name="app")
    got: list[object] = []

    async def take(payload: Any) -> None:
        got.append(payload)

    take.__annotations__["payload"] = Annotated[kind, codec]
    register: Callable[..., Any] = app.application("in")
    register(take)
    with Harness(app) as harness:
        harness.publish("in", value, codec=codec)
        harness.settle()
        harness.expect_failure(DecodeError)
        harness.publish("in", b"\xff\xff", content_type=codec.content_type)
        harness.settle()
        (letter,) = harness.dead_letters()
    assert got == [value]
    assert letter.error == "DecodeError"
