"""Codecs of an application's own: named by an application, an actor, an annotation, a publish."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import annotated_types
import msgspec
import pytest

from spa_dat import (
    Actor,
    Codec,
    DistributedApplication,
    Message,
    MessageBuilder,
    Socket,
    Topic,
    on,
)
from spa_dat.errors import ConfigurationError, DecodeError, EncodeError, RemoteError
from spa_dat.runtime.payloads._codec import Decoder, encode_with
from spa_dat.runtime.payloads._type_readers import codec_in
from spa_dat.testing import Harness
from spa_dat.transports import Tombstone
from support.processes import collect, make
from support.waiting import eventually

U = TypeVar("U")

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


@pytest.mark.parametrize(
    "annotation",
    [list[CsvRow], CsvRow | int, dict[str, CsvRow | None], Annotated[list[CsvRow], "x"] | None],
    ids=["list", "union", "dict", "optional"],
)
def test_a_codec_for_a_part_of_the_payload_is_refused(annotation: Any) -> None:
    words = "CsvCodec is named for a part of the payload"
    with pytest.raises(ConfigurationError, match=words):
        Decoder.of(annotation)
    with pytest.raises(ConfigurationError, match=words):
        Decoder.of(annotation, CSV)
    topic = Topic[annotation]("rows")
    with pytest.raises(ConfigurationError, match=words):
        _ = topic.codec


class Forgetful(CsvCodec):
    def decode(self, payload: bytes, kind: Any) -> Any:
        len(payload)


def test_a_value_that_is_missing_is_an_error_of_the_payload() -> None:
    words = r"does not fit Row: Forgetful.decode\(\) returned None: is a 'return' missing"
    codec = Forgetful()
    for decoder in (Decoder.of(Annotated[Row, codec]), Decoder.of(Row, codec)):
        with pytest.raises(DecodeError, match=words):
            decoder.decode(b"a,1", "text/csv")
    for kind in (Row | None, Any, object):
        assert Decoder.of(kind, codec).decode(b"a,1", "text/csv") is None


class Awaiting(CsvCodec):
    async def decode(self, payload: bytes, kind: Any) -> Any:
        return super().decode(payload, kind)


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
        (Awaiting(), "Awaiting.decode is 'async': define it with 'def'"),
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
        (Awaiting(), "codec: Awaiting.decode is 'async'"),
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


# Of an actor, and of an application.


class BarCodec(Codec):
    """One row with a bar in between."""

    content_type = "text/x-bar"

    def encode(self, value: Any) -> bytes:
        return f"{value.name}|{value.number}".encode()

    def decode(self, payload: bytes, kind: Any) -> Any:
        name, number = payload.decode().split("|")
        return Row(name, int(number))


BAR = BarCodec()


def test_beside_the_codec_all_other_formats_are_accepted_as_ever() -> None:
    decoder = Decoder.of(Row, CSV)
    for payload, content_type in (
        (b"a,1", "text/csv"),
        (b"a,1", "Text/CSV; header=absent"),
        (b'{"name":"a","number":1}', "application/json"),
        (b'{"name":"a","number":1}', None),
        (msgspec.msgpack.encode(Row("a", 1)), "application/msgpack"),
    ):
        assert decoder.decode(payload, content_type) == Row("a", 1)
    with pytest.raises(DecodeError, match=r"only bytes accept that .* with content_type="):
        decoder.decode(b"a,1", "text-csv/x")
    with pytest.raises(DecodeError, match=r"content type 'text/csv'\) does not fit Row"):
        decoder.decode(b"a", "text/csv")
    assert Decoder.of(Row | None, CSV).decode(b"", None) is None
    assert Decoder.of(Any, BAR).decode(b"a|1", "text/x-bar") == Row("a", 1)


def test_the_codec_in_an_annotation_goes_first_and_raw_bytes_are_never_decoded() -> None:
    decoder = Decoder.of(CsvRow, BAR)
    assert decoder.decode(b"a,1", "text/csv") == Row("a", 1)
    with pytest.raises(DecodeError, match="only 'text/csv' is accepted here"):
        decoder.decode(b"a|1", "text/x-bar")
    assert Decoder.of(bytes, CSV).decode(b"a,1", "text/csv") == b"a,1"
    assert Decoder.of(bytearray, CSV).decode(b"a,1", "text/csv") == bytearray(b"a,1")


def test_a_type_that_only_the_codec_knows_takes_only_its_payloads() -> None:
    class Opaque:
        pass

    class OpaqueCodec(BarCodec):
        def decode(self, payload: bytes, kind: Any) -> Any:
            return kind()

    decoder = Decoder.of(Opaque, OpaqueCodec())
    assert isinstance(decoder.decode(b"", "text/x-bar"), Opaque)
    with pytest.raises(DecodeError, match="only 'text/x-bar' is accepted here"):
        decoder.decode(b"{}", "application/json")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (U, "type variable"),
        (bytes | int, "raw bytes or decoded"),
        (Annotated[Row, annotated_types.Gt(1), msgspec.Meta(gt=1)], "Gt"),
    ],
)
def test_a_codec_does_not_make_wrong_annotations_right(annotation: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Decoder.of(annotation, CSV)


@BUSES
def test_the_closest_codec_encodes(bus: str) -> None:
    app = DistributedApplication(bus, name="app", codec=CSV)
    rows = Topic[Annotated[Row, BAR]]("typed")

    async def publish(socket: Socket, prefix: str) -> None:
        await socket.publish(f"{prefix}/default", Row("a", 1))
        socket.post(MessageBuilder()(f"{prefix}/posted", Row("a", 1)))
        await socket.publish(f"{prefix}/own", Row("a", 1), codec=BAR)
        await socket.publish(f"{prefix}/json", Row("a", 1), content_type="application/json")
        await socket.publish(f"{prefix}/same", Row("a", 1), content_type="text/csv; header=absent")
        await socket.publish(f"{prefix}/none", None)

    @app.application("of-application")
    async def of_application(socket: Socket) -> None:
        await publish(socket, "application")
        await socket.publish(rows, Row("a", 1))

    @app.application("of-actor", codec=BAR)
    async def of_actor(socket: Socket) -> None:
        await publish(socket, "actor")

    @app.producer(codec=BAR)
    async def produce(socket: Socket) -> None:
        await socket.publish("producer", Row("a", 1))

    class Lister(Actor):
        codec = BAR

        @on("of-class")
        async def handle(self, socket: Socket) -> None:
            await socket.publish("class", Row("a", 1))

    lister = app.add(Lister)
    with Harness(app) as harness:
        for topic in ("of-application", "of-actor", "of-class"):
            harness.publish(topic)
        harness.settle()
        sent = {it.topic: (it.payload, it.content_type) for it in harness.messages(type=bytes)}
    csv_row, bar = (b"a,1\r\n", "text/csv"), (b"a|1", "text/x-bar")
    json = (b'{"name":"a","number":1}', "application/json")
    assert sent["application/default"] == sent["application/posted"] == csv_row
    assert sent["actor/default"] == sent["actor/posted"] == bar
    assert sent["typed"] == sent["producer"] == sent["class"] == bar
    assert sent["application/own"] == sent["actor/own"] == bar
    assert sent["application/json"] == sent["actor/json"] == json
    assert sent["application/same"] == (b"a,1\r\n", "text/csv; header=absent")
    assert sent["application/none"] == sent["actor/none"] == (b"", None)
    # The actor's codec is not that of the content type, so the payload is a text of the runtime's.
    assert sent["actor/same"] == (json[0], "text/csv; header=absent")
    app.configure(lister, codec=None)
    assert lister.options.codec is CSV


@BUSES
def test_requests_replies_and_batches_have_the_codec_of_actor_and_application(bus: str) -> None:
    app = DistributedApplication(bus, name="app", codec=CSV)
    got: list[Any] = []

    @app.application("ask", codec=BAR)
    async def ask(socket: Socket) -> None:
        got.append(await socket.request("answer", Row("a", 1), reply=Message[Row]))
        got.append(await socket.request("annotated", Row("a", 1), reply=CsvRow))
        got.extend(await socket.request_many("by-hand", Row("a", 1), reply=Row, count=1))

    @app.application("answer", codec=BAR)
    async def answer(row: Row, message: Message[bytes]) -> Row:
        assert message.content_type == "text/x-bar"
        return Row(row.name, row.number + 1)

    @app.application("annotated", codec=BAR)
    async def annotated(row: Row) -> CsvRow:
        return Row(row.name, row.number + 2)

    @app.application("by-hand", codec=BAR, replies=True)
    async def by_hand(message: Message[Row]) -> None:
        await message.reply(Row("a", 4))

    @app.application("batch", batch=(5, 1.0))
    async def batch(rows: list[Row]) -> None:
        got.append(rows)

    @app.application("failing")
    async def failing(row: Row) -> Row:
        raise ValueError("no")

    with Harness(app) as harness:
        harness.publish("ask")
        harness.publish("batch", Row("a", 1), codec=CSV)
        harness.publish("batch", Row("b", 2))
        harness.settle()
        harness.expect_failure(ValueError)
        # Errors are texts.
        with pytest.raises(RemoteError, match="ValueError: no"):
            harness.request("failing", Row("a", 1), reply=Row)
    message = next(it for it in got if isinstance(it, Message))
    assert (message.payload, message.content_type) == (Row("a", 2), "text/x-bar")
    assert [Row("a", 1), Row("b", 2)] in got
    assert Row("a", 3) in got
    assert Row("a", 4) in got


def test_what_the_codec_cannot_decode_is_stored_as_it_came() -> None:
    app = DistributedApplication("memory://", name="app", codec=CSV)

    @app.application("in")
    async def handle(row: Row) -> None: ...

    with Harness(app) as harness:
        harness.expect_failure(DecodeError)
        harness.publish("in", b"a", content_type="text/csv")
        harness.settle()
        (letter,) = harness.dead_letters()
    assert (letter.payload, letter.error) == (b"a", "DecodeError")


async def test_sockets_of_the_application_and_child_processes_have_it() -> None:
    app = DistributedApplication("memory://", name="app", codec=CSV)
    got: list[Any] = []

    @app.application("in", placement="process")
    async def work(row: Row, socket: Socket) -> Row:
        await socket.publish("out", Row(row.name, row.number + 1))
        return Row(row.name, row.number + 2)

    @app.application("out")
    async def out(message: Message[Row]) -> None:
        got.append((message.payload, message.content_type))

    async with app:
        reply = await app.socket().request("in", Row("a", 1), reply=Message[Row])
        await eventually(lambda: len(got) == 1)
    assert (reply.payload, reply.content_type) == (Row("a", 3), "text/csv")
    assert got == [(Row("a", 2), "text/csv")]


@pytest.mark.parametrize("whose", ["actor", "application"])
async def test_a_codec_that_no_other_process_can_have_is_refused_by_name(whose: str) -> None:
    class Locked(CsvCodec):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    app = DistributedApplication(
        "memory://", name="app", codec=Locked() if whose == "application" else None
    )

    @app.application("in", placement="process", codec=Locked() if whose == "actor" else None)
    async def work(row: Row) -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"'work' .* option 'codec' -> attribute 'lock'.*have the codec make it when",
    ):
        async with app:
            pass


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (CsvCodec, "CsvCodec is a class: give an instance"),
        (Nameless(), "the content_type of Nameless is ''"),
        ("text/csv", "'text/csv' is no codec"),
    ],
)
def test_wrong_codecs_of_actors_and_applications_are_refused(codec: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"application: codec: {words}"):
        DistributedApplication("memory://", name="app", codec=codec)
    app = DistributedApplication("memory://", name="app")

    async def handle(row: Row) -> None: ...

    async def produce(socket: Socket) -> None: ...

    with pytest.raises(ConfigurationError, match=f"'handle': codec: {words}"):
        app.application("in", codec=codec)(handle)
    with pytest.raises(ConfigurationError, match=f"'produce': codec: {words}"):
        app.producer(codec=codec)(produce)

    class Lister(Actor):
        @on("in")
        async def handle(self, row: Row) -> None: ...

    Lister.codec = codec  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=f"'Lister': codec: {words}"):
        app.add(Lister)


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
