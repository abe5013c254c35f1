"""The AsyncAPI document of an application: the official schema, and real payloads, fit it."""

from __future__ import annotations

import enum
import functools
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest

from spa_dat import (
    Actor,
    Codec,
    DistributedApplication,
    KafkaConfig,
    KafkaTopic,
    LastWill,
    Message,
    MessageBuilder,
    MqttConfig,
    Socket,
    Topic,
    on,
)
from spa_dat.runtime.payloads._codec import encode
from spa_dat.transports import MemoryConfig

VECTORS = Path(__file__).parent.parent.parent / "transports" / "vectors"
SCHEMA = Path(__file__).parent / "asyncapi-3.0.0.json"


@dataclass
class Reading:
    """A measurement.

    Of a machine.
    """

    celsius: float
    site: str = "berlin"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Folder:
    access: Access
    inner: list[Folder] = field(default_factory=list)


class Guarded(pydantic.BaseModel):
    access: Access


class Alarm(pydantic.BaseModel):
    text: str = pydantic.Field(max_length=10)
    pair: tuple[int, str] = (1, "x")
    reading: Reading | None = None


class Cat(msgspec.Struct, tag=True):
    lives: Annotated[int, msgspec.Meta(ge=0, le=9)]
    friend: Dog | None = None


class Dog(msgspec.Struct, tag=True):
    good: float = float("inf")
    friend: Cat | None = None


class Pair(NamedTuple):
    left: int
    right: str = ""


class Box(msgspec.Struct):
    alarms: list[Alarm]
    pair: Pair
    two: tuple[int, bool] = (1, True)


class Discriminating(TypedDict):
    discriminator: dict[str, int]
    prefixItems: str


class Plain:
    pass


class Kind(Enum):
    BOILER = "boiler"
    OVEN = "oven"


class Backwards(Codec):
    content_type = "text/x-backwards"

    def encode(self, value: Any) -> bytes:
        return str(value).encode()[::-1]

    def decode(self, payload: bytes, kind: Any) -> Any:
        return int(payload[::-1])


readings = Topic[Reading]("plant/{machine}/temperature")
alarms = Topic[Alarm]("alarm/{machine}")
doubled = Topic[int, int]("plant-double")
plains = Topic[Plain]("plain")
wide = Topic[int]("wide/+/#")
untyped: Topic[Any, Any] = Topic("untyped")


def application(bus: Any = "memory://", **options: Any) -> DistributedApplication:
    """Return one with all that a document may have."""
    app = DistributedApplication(bus, **{"name": "plant", **options})

    @app.application(readings, deliver="share")
    async def watch(reading: Reading, machine: Kind, socket: Socket) -> None:
        """Watch the
        temperatures.

        Raises alarms.
        """
        await socket.publish(alarms.at(machine=machine.value), Alarm(text="hot"))
        await socket.request(doubled, 1)
        await socket.publish(plains, Plain())
        await socket.publish(untyped, 1)
        await socket.subscribe(wide)

    @app.application([doubled, "old/#", "+/x"], name="doubler", deliver="all", qos=0)
    async def handler(message: Message[int]) -> int:
        return 2 * message.payload

    @app.application("odd", codec=Backwards())
    async def odd(payload: int) -> None: ...

    @app.application("plain")
    async def plain(payload: Annotated[Plain, Backwards()]) -> Annotated[Plain, Backwards()]:
        return payload

    @app.application("many", batch=(10, 1.0))
    async def many(animals: list[Cat | Dog]) -> None: ...

    @app.producer(every=2.5)
    async def tick(socket: Socket) -> None:
        """Tick."""
        await socket.publish(readings.at(machine="x"), Reading(1.0))

    class Store(Actor):
        """Keeps things."""

        @on("a/+", "b")
        async def keep(self, payload: bytes) -> None:
            """Keep."""

        @on("c/{number}/{kind}")
        async def ask(
            self, box: Box, number: int, kind: Literal["x", "y"], message_builder: MessageBuilder
        ) -> None: ...

        @on("d")
        async def everything(self) -> None: ...

    app.add(Store)
    return app


@functools.cache
def official() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def found(document: dict[str, Any], reference: str) -> Any:
    """What a reference leads to, with the references on the way."""
    part: Any = document
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
        if isinstance(part, dict) and "$ref" in part and isinstance(part["$ref"], str):
            part = found(document, part["$ref"])
    return part


def checked(app: DistributedApplication, **texts: str) -> dict[str, Any]:
    document = app.asyncapi(**texts)
    problems = [f"{[*e.absolute_path]}: {e.message}" for e in official().iter_errors(document)]
    assert problems == []
    for reference in references(document):
        found(document, reference)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    return document


BUSES: list[Any] = [
    "memory://",
    MemoryConfig(wire="spa-dat"),
    MqttConfig(
        "broker",
        username="ann",
        password="hunter2",
        tls=True,
        will=LastWill("gone", "hunter2"),
        websocket_path="/mqtt",
    ),
    "mqtt+unix:///run/mosquitto.sock",
    KafkaConfig(
        "k1,k2",
        username="ann",
        password="hunter2",
        tls=True,
        sasl_mechanism="SCRAM-SHA-512",
        prefix="p.",
        topics={"plant/{machine}/temperature": KafkaTopic("readings", key="machine")},
    ),
    "kafka://k?wire=spa-dat",
]


@pytest.mark.parametrize("bus", BUSES, ids=lambda bus: str(bus)[:20])
def test_the_document_is_valid_without_secrets_and_the_same_everywhere(bus: Any) -> None:
    document = checked(application(bus))
    assert "hunter2" not in json.dumps(document)
    assert "ann" not in json.dumps(document["servers"])
    assert json.dumps(application(bus, instance="7").asyncapi()) == json.dumps(document)


@pytest.mark.parametrize("bus", ["mqtt://broker", "kafka://k"])
def test_nothing_random_is_in_the_document_of_an_application_without_a_name(bus: str) -> None:
    document = checked(application(bus, name=None))
    assert json.dumps(application(bus, name=None).asyncapi()) == json.dumps(document)
    assert "ephemeral-" not in json.dumps(document)


def test_information_comes_from_the_application_or_as_given() -> None:
    assert application().asyncapi()["info"]["title"] == "plant"
    info = checked(application(), title="Plant", version="1.2", description="All of it.")["info"]
    assert (info["title"], info["version"], info["description"]) == ("Plant", "1.2", "All of it.")
    assert "Topic objects" in info["x-spa-dat-note"]
    empty = checked(DistributedApplication("memory://"))
    assert empty["info"]["title"] == "application without a name"
    assert empty["info"]["version"] == "0.0.0"
    assert empty["operations"] == {}


def test_version_and_description_are_those_of_the_package_with_all_actors() -> None:
    app = DistributedApplication("memory://", name="plant")

    async def handler(payload: int) -> None: ...

    # An installed package with one module of its name.
    handler.__module__ = "jsonschema.anything"
    app.application("a")(handler)
    info = checked(app)["info"]
    assert info["version"] == importlib.metadata.version("jsonschema")
    assert info["description"] == importlib.metadata.metadata("jsonschema")["Summary"]


def test_servers_say_how_to_reach_the_bus() -> None:
    (mqtt,) = application(BUSES[2]).asyncapi()["servers"].values()
    assert (mqtt["host"], mqtt["pathname"]) == ("broker:443", "/mqtt")
    assert (mqtt["protocol"], mqtt["protocolVersion"]) == ("secure-mqtt", "5")
    assert mqtt["security"] == [{"$ref": "#/components/securitySchemes/userPassword"}]
    assert mqtt["bindings"]["mqtt"]["lastWill"] == {"topic": "gone", "qos": 1, "retain": False}
    document = application(BUSES[4]).asyncapi()
    (kafka,) = document["servers"].values()
    assert kafka["host"] == "{bootstrap}"
    assert kafka["variables"]["bootstrap"]["enum"] == ["k1:9092", "k2:9092"]
    assert document["components"]["securitySchemes"] == {"scramSha512": {"type": "scramSha512"}}
    (unix,) = application(BUSES[3]).asyncapi()["servers"].values()
    assert (unix["host"], unix["description"]) == (
        "localhost",
        "Over the Unix socket /run/mosquitto.sock.",
    )


def test_operations_are_what_actors_receive_and_what_their_code_names() -> None:
    document = application("mqtt://broker").asyncapi()
    operations = document["operations"]
    assert {name: one["action"] for name, one in operations.items()} == {
        "watch": "receive",
        "watch.send.alarm.machine": "send",
        "watch.send.plain": "send",
        "watch.request.plant-double": "send",
        "watch.send.untyped": "send",
        "doubler.plant-double": "receive",
        "doubler.old.rest": "receive",
        "doubler.level1.x": "receive",
        "odd": "receive",
        "plain": "receive",
        "many": "receive",
        "tick.send.plant.machine.temperature": "send",
        "Store.keep.a.level2": "receive",
        "Store.keep.b": "receive",
        "Store.ask": "receive",
        "Store.everything": "receive",
    }
    watch = operations["watch"]
    assert watch["summary"] == "Watch the temperatures."
    assert watch["description"] == "Watch the\ntemperatures.\n\nRaises alarms."
    assert watch["bindings"]["mqtt"]["x-spa-dat-share"] == "plant.watch"
    assert operations["doubler.old.rest"]["bindings"]["mqtt"]["qos"] == 0
    assert operations["tick.send.plant.machine.temperature"]["summary"] == "Tick."
    assert operations["Store.keep.b"]["summary"] == "Keep."
    assert operations["Store.keep.b"]["tags"] == [{"name": "Store", "description": "Keeps things."}]
    # One channel and one message for what one actor sends and another receives.
    sent = operations["tick.send.plant.machine.temperature"]
    assert (sent["channel"], sent["messages"]) == (watch["channel"], watch["messages"])


def test_channels_have_captures_and_wildcards_as_parameters() -> None:
    channels = application("mqtt://broker").asyncapi()["channels"]
    machine = channels["plant.machine.temperature"]
    assert machine["address"] == "plant/{machine}/temperature"
    assert machine["parameters"]["machine"]["enum"] == ["boiler", "oven"]
    parameters = channels["c.number.kind"]["parameters"]
    assert parameters["number"]["description"].endswith("The application reads it as int.")
    assert parameters["kind"]["enum"] == ["x", "y"]
    old = channels["old.rest"]
    assert (old["address"], old["title"]) == ("old/{rest}", "old/#")
    assert "the filter ends in '#'" in old["parameters"]["rest"]["description"]
    any_level = channels["level1.x"]
    assert any_level["address"] == "{level1}/x"
    assert "begins with $" in any_level["description"]


def test_filters_for_the_same_topics_share_a_channel() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.application("a/{one}")
    async def first(payload: int, one: Literal["x"]) -> None: ...

    @app.application(["a/{two}", "a/#"])
    async def second(payload: int) -> None: ...

    @app.application("a.one")
    async def third(payload: int) -> None: ...

    document = checked(app)
    assert [one["address"] for one in document["channels"].values()] == [
        "a/{one}",
        "a/{rest}",
        "a.one",
    ]
    # The second takes all of them.
    assert "enum" not in document["channels"]["a.one"]["parameters"]["one"]
    assert document["operations"]["second.a.one"]["channel"] == {"$ref": "#/channels/a.one"}
    assert document["operations"]["third"]["channel"] == {"$ref": "#/channels/a.one-2"}


def test_a_cluster_has_names_groups_and_keys() -> None:
    document = application(BUSES[4]).asyncapi()
    channels, operations = document["channels"], document["operations"]
    bound = channels["readings"]
    assert (bound["address"], bound["title"]) == ("p.readings", "plant/{machine}/temperature")
    assert "ce_subject" in bound["description"]
    message = found(document, "#/channels/readings/messages/Reading")
    assert "{machine}" in message["bindings"]["kafka"]["key"]["description"]
    assert channels["alarm.machine"]["address"] == "p.alarm.{machine}"
    assert channels["plant-double"]["bindings"]["kafka"]["topic"] == "p.plant-double"
    group = operations["watch"]["bindings"]["kafka"]["groupId"]
    assert group["const"] == "p.plant.watch"
    each = operations["doubler.plant-double"]["bindings"]["kafka"]["groupId"]["pattern"]
    jsonschema.validate("p.plant.0.doubler", {"pattern": each})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate("p.plant.doubler", {"pattern": each})
    headers = found(document, message["headers"]["$ref"])["properties"]
    assert {"ce_id", "ce_source", "ce_type", "content-type", "ttl_ms"} <= {*headers}


def test_what_a_cluster_cannot_carry_has_no_address() -> None:
    strange = Topic[int]("no spaces")
    app = DistributedApplication("kafka://k", name="plant")

    @app.producer()
    async def tick(socket: Socket) -> None:
        await socket.publish(strange, 1)

    (channel,) = checked(app)["channels"].values()
    assert channel["address"] is None
    assert "'no spaces'" in channel["description"]


def test_a_filter_may_stand_for_several_channels_of_a_cluster() -> None:
    config = KafkaConfig("k", topics={"fleet/{truck}/position": KafkaTopic("positions")})
    app = DistributedApplication(config, name="plant")

    @app.application("fleet/#")
    async def watch(payload: int) -> None: ...

    operations = checked(app)["operations"]
    assert {*operations} == {"watch.positions", "watch.fleet.rest"}


@pytest.mark.parametrize("bus", ["mqtt://broker", "kafka://k"])
def test_requests_have_replies(bus: str) -> None:
    document = application(bus).asyncapi()
    asked = document["operations"]["watch.request.plant-double"]
    answered = document["operations"]["doubler.plant-double"]
    assert asked["messages"] == answered["messages"]
    inbox = found(document, asked["reply"]["channel"]["$ref"])
    replies = found(document, answered["reply"]["channel"]["$ref"])
    assert replies["address"] is None
    assert [*inbox["messages"]] == ["int.reply", "Error"]
    if bus == "kafka://k":
        assert inbox["address"] == "_spa.reply.plant"
        assert answered["reply"]["address"] == {"location": "$message.header#/reply_to"}
    else:
        assert inbox["address"] == "_spa/reply/plant/{run}/{correlation}"
        request = found(document, answered["messages"][0]["$ref"])
        assert {"responseTopic", "correlationData"} <= {*request["bindings"]["mqtt"]}
    error = found(document, answered["reply"]["messages"][1]["$ref"])
    headers = found(document, error["headers"]["$ref"])
    assert headers["required"] == ["spa_reply", "spa_error"]


def test_types_without_schema_are_said_to_be_such() -> None:
    document = application().asyncapi()
    messages = document["components"]["messages"]
    assert messages["Plain"]["payload"] == {}
    assert messages["Plain"]["description"].startswith("It has no schema: ")
    packed = messages["Plain-Backwards.request"]
    assert (packed["contentType"], packed["payload"]) == ("text/x-backwards", {})
    assert "The codec Backwards" in packed["description"]
    # What its codec does not know is read as by any other actor.
    assert {*document["channels"]["odd"]["messages"]} == {"int-Backwards", "int"}
    assert "Any bytes" in messages["RawBytes"]["description"]
    assert messages["Anything"]["payload"] == {}


def document_of(annotation: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document of an application that sends values of a type, and the messages in it."""
    topic: Any = Topic[annotation]("topic")
    app = DistributedApplication("memory://", name="plant")

    @app.producer()
    async def tick(socket: Socket) -> None:
        await socket.publish(topic, None)

    document = checked(app)
    return document, [*document["components"]["messages"].values()]


@pytest.mark.parametrize(
    ("annotation", "content_types"),
    [
        (bytes, ["application/octet-stream"]),
        (str, ["text/plain"]),
        (Literal["a", "b"], ["text/plain"]),
        (None, [None]),
        (int | str, ["text/plain", "application/json"]),
        (Reading | None, ["application/json"]),
        (object, [None]),
    ],
)
def test_the_content_type_is_that_of_the_sender(
    annotation: Any, content_types: list[str | None]
) -> None:
    _, messages = document_of(annotation)
    assert [message.get("contentType") for message in messages] == content_types


VALUES: list[tuple[Any, Any]] = [
    (Reading, Reading(1.5)),
    (list[Reading], [Reading(1.5, "x")]),
    (Alarm, Alarm(text="hot", reading=Reading(1.0))),
    (Cat | Dog, Cat(3, Dog(1.0))),
    (Box, Box([Alarm(text="x")], Pair(1), (2, False))),
    (dict[str, tuple[int, ...]], {"a": (1, 2)}),
    (Annotated[int, pydantic.Field(gt=3)], 4),
    (Kind, Kind.OVEN),
    (Access, Access.READ),
    (Access, Access.READ | Access.WRITE),
    (Guarded, Guarded(access=Access.READ | Access.WRITE)),
    (list[Folder], [Folder(Access(0)), Folder(Access.WRITE, [Folder(Access.READ | Access.WRITE)])]),
    (Discriminating, {"discriminator": {"a": 1}, "prefixItems": "x"}),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=lambda value: str(value)[:40])
def test_what_is_sent_fits_the_schema(annotation: Any, value: Any) -> None:
    document, (message,) = document_of(annotation)
    schema = {**message["payload"], "components": document["components"]}
    validator = jsonschema.Draft7Validator(schema)
    sent = json.loads(encode(value)[0])
    validator.validate(sent)
    # The schema says something: nothing else fits.
    assert not validator.is_valid({"other": [sent]})
    assert not validator.is_valid([[sent]])


@pytest.mark.parametrize(
    ("annotation", "contents"),
    [
        (str | None, {"text/plain": {"type": "string"}}),
        (Literal["a"] | None, {"text/plain": {"enum": ["a"]}}),
        (
            Annotated[str, msgspec.Meta(min_length=2)] | None,
            {"text/plain": {"type": "string", "minLength": 2}},
        ),
        (
            int | str | None,
            {
                "text/plain": {"type": "string"},
                "application/json": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
        ),
        (bytes | None, {"application/octet-stream": {"type": "string", "format": "binary"}}),
    ],
)
def test_none_is_said_to_be_nothing(annotation: Any, contents: dict[str, Any]) -> None:
    _, messages = document_of(annotation)
    assert {message["contentType"]: message["payload"] for message in messages} == contents
    assert "None is sent as an empty payload" in messages[-1]["description"]


def test_a_codec_leaves_none_to_the_other_formats() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.application("in", codec=Backwards())
    async def read(payload: Reading | None) -> None: ...

    kinds = {message["contentType"] for message in checked(app)["components"]["messages"].values()}
    assert kinds == {"text/x-backwards", "application/json"}


def test_types_of_the_same_name_do_not_collide() -> None:
    def other(name: str, kind: type) -> type:
        return msgspec.defstruct("Reading", [(name, kind)], module="elsewhere")

    first, second, again = other("kelvin", int), other("bar", float), other("kelvin", int)
    model = pydantic.create_model("Reading", volts=(int, ...))
    generic: Any = list
    types: list[Any] = [Reading, first, second, again, model, generic[second]]
    typed: Any = Topic
    app = DistributedApplication("memory://", name="plant")
    for index, annotation in enumerate(types):
        topic: Any = typed[annotation](f"topic{index}")

        def sender(topic: Any = topic) -> Any:
            async def send(socket: Socket) -> None:
                await socket.publish(topic, None)

            return send

        app.producer(name=f"sender{index}")(sender())
    document = checked(app)
    schemas = document["components"]["schemas"]
    assert {
        name: [*schema["properties"]] for name, schema in schemas.items() if name[0] == "R"
    } == {
        "Reading": ["celsius", "site"],
        "Reading-2": ["kelvin"],
        "Reading-3": ["bar"],
        "Reading-4": ["volts"],
    }
    message = found(document, "#/channels/topic5/messages/list_elsewhere.Reading")
    assert message["payload"]["items"] == {"$ref": "#/components/schemas/Reading-3"}


def test_models_have_a_schema_for_reading_and_one_for_writing() -> None:
    class Model(pydantic.BaseModel):
        text: Annotated[
            int, pydantic.PlainSerializer(str, return_type=str), pydantic.Field(alias="Text")
        ]

    topic: Any = Topic[Model]("written")
    app = DistributedApplication("memory://", name="plant")

    @app.application("read")
    async def copy(model: Model, socket: Socket) -> None:
        await socket.publish(topic, model)

    document = checked(app)
    messages = document["components"]["messages"]
    kinds = [
        found(document, message["payload"]["$ref"])["properties"]["Text"]["type"]
        for message in messages.values()
    ]
    assert kinds == ["integer", "string"]


def test_several_buses_have_channels_of_their_own() -> None:
    app = DistributedApplication("mqtt://a", name="plant")

    @app.application("x")
    async def first(payload: int) -> None: ...

    @app.application("x", socket_provider="mqtt://b")
    async def second(payload: int) -> None: ...

    document = checked(app)
    assert [server["host"] for server in document["servers"].values()] == ["a:1883", "b:1883"]
    assert {name: one["servers"] for name, one in document["channels"].items()} == {
        "x": [{"$ref": "#/servers/mqtt"}],
        "x-2": [{"$ref": "#/servers/mqtt-2"}],
    }


@pytest.mark.parametrize(
    ("bus", "file", "part", "names"),
    [
        ("mqtt://b", "mqtt.json", "publish", "user_properties"),
        ("kafka://k", "kafka.json", "record", "headers"),
    ],
)
def test_the_headers_are_those_on_the_wire(bus: str, file: str, part: str, names: str) -> None:
    schemas = application(bus).asyncapi()["components"]["schemas"]
    described = {
        header
        for name, schema in schemas.items()
        if name.endswith("-headers")
        for header in schema["properties"]
    }
    vectors = json.loads((VECTORS / file).read_text(encoding="utf-8"))["vectors"]
    sent = {
        header
        for vector in vectors
        if "encode" in vector["directions"] and vector["name"] != "dead-letter"
        for header, _ in vector[part].get(names, ())
    }
    # The sender's own; of a bound address the subject is no attribute.
    assert sent - described <= {"origin", "Größe", "subject"}
    assert {"traceparent", "spa_chain", "spa_reply", "spa_error"} <= sent & described


def test_messages_of_0_4_0_are_described_as_they_are_on_the_wire() -> None:
    document = application(BUSES[1]).asyncapi()
    message = document["components"]["messages"]["Reading.packed"]
    assert message["contentType"] == "application/vnd.spa-dat+json"
    payload = message["payload"]["properties"]["Payload"]
    assert payload["contentMediaType"] == "application/json"
    assert payload["contentSchema"] == {"$ref": "#/components/schemas/Reading"}


def test_whoever_only_subscribes_sends_nothing() -> None:
    app = DistributedApplication("memory://", name="plant")

    @app.producer()
    async def look(socket: Socket) -> None:
        await socket.subscribe(doubled)

    assert checked(app)["operations"] == {}
