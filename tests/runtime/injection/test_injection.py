"""What the parameters of a handler get, and which handlers are refused."""

from __future__ import annotations

import contextlib
import enum
import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import pytest
from hypothesis import given, strategies as st

from spa_dat.errors import ConfigurationError, DecodeError
from spa_dat.runtime.injection._injection import Injection
from spa_dat.runtime.messaging._message import Message
from spa_dat.runtime.messaging._outgoing_message import MessageBuilder
from spa_dat.transports import Envelope, TopicFilter

if TYPE_CHECKING:
    from nowhere import Absent  # type: ignore[import-not-found]

F = TypeVar("F", bound=Callable[..., Any])


class Socket:
    pass


class Context:
    pass


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.Enum):
    RED = "red"


class Database:
    pass


@dataclass
class Reading:
    celsius: float


SPECIAL: dict[type, str] = {Socket: "socket", Context: "context"}
BUILDER = MessageBuilder()


@dataclass
class FakeScope:
    """A scope over plain values, which decodes as the runtime does."""

    injection: Injection
    raw: bytes = b'{"celsius":5}'
    captures: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, object] = field(default_factory=lambda: {"db": "the database"})
    socket: str = "the socket"
    context: str = "the context"
    state: str = "the state"
    message_builder: MessageBuilder = BUILDER

    @property
    def payload(self) -> Any:
        decoder = self.injection.payload_decoder
        return self.raw if decoder is None else decoder.decode(self.raw, None)

    def message(self) -> Message[Any]:
        return Message.of(Envelope(topic="plant/a", payload=self.raw), self.payload)


def analyse(
    function: Callable[..., Any], *topics: str, resources: tuple[str, ...] = ("db",), **options: Any
) -> Injection:
    filters = [TopicFilter.parse(topic) for topic in topics or ("plant/{machine}/temperature",)]
    return Injection.analyse(
        function, topics=filters, resources=resources, special=SPECIAL, **options
    )


def arguments(function: Callable[..., Any], *topics: str, **scope: Any) -> dict[str, Any]:
    injection = analyse(function, *topics)
    scope.setdefault("captures", {"machine": "boiler"})
    return injection.bind(FakeScope(injection, **scope))


def refusal(function: Callable[..., Any], *topics: str, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        analyse(function, *topics, **options)
    return str(raised.value)


# The rules, in their order.


def test_annotations_decide_whatever_the_name() -> None:
    def handler(
        payload: Socket, socket: Context, machine: Message[Reading], db: Context | None = None
    ) -> None: ...

    given_ = arguments(handler)
    assert given_["payload"] == "the socket"
    assert given_["socket"] == "the context"
    assert given_["machine"].payload == Reading(5.0)
    assert given_["db"] == "the context"


def test_reserved_names() -> None:
    def handler(message, socket, state, context, message_builder, payload): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    given_ = arguments(handler)
    assert isinstance(given_.pop("message"), Message)
    assert given_ == {
        "socket": "the socket",
        "state": "the state",
        "context": "the context",
        "message_builder": BUILDER,
        "payload": b'{"celsius":5}',
    }


def test_a_message_without_type_has_the_raw_payload() -> None:
    def unannotated(message): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    def bare(message: Message) -> None: ...  # type: ignore[type-arg]
    def anything(message: Any) -> None: ...

    for handler in (unannotated, bare, anything):
        assert arguments(handler)["message"].payload == b'{"celsius":5}'


def test_the_payload_has_the_annotated_type() -> None:
    def named(payload: Reading) -> None: ...
    def remaining(reading: Reading, unit: str = "C") -> None: ...
    def annotated(reading: Annotated[Reading, "doc"]) -> None: ...

    assert arguments(named) == {"payload": Reading(5.0)}
    assert arguments(remaining) == {"reading": Reading(5.0)}
    assert arguments(annotated) == {"reading": Reading(5.0)}


def test_a_raw_message_beside_a_decoded_payload() -> None:
    def handler(message: Message[bytes], reading: Reading) -> None: ...

    given_ = arguments(handler)
    assert given_["message"].payload == b'{"celsius":5}'
    assert given_["message"].topic == "plant/a"
    assert given_["reading"] == Reading(5.0)


def test_a_decoded_message_beside_the_payload() -> None:
    def handler(message: Message[Reading], reading: Reading) -> None: ...

    given_ = arguments(handler)
    assert given_["message"].payload == given_["reading"] == Reading(5.0)


def test_all_at_once() -> None:
    async def remember(
        reading: Reading, machine: str, state: Database, db: Database, socket: Socket
    ) -> None: ...

    assert arguments(remember) == {
        "reading": Reading(5.0),
        "machine": "boiler",
        "state": "the state",
        "db": "the database",
        "socket": "the socket",
    }


def test_a_handler_without_parameters() -> None:
    def handler() -> None: ...

    assert arguments(handler) == {}
    assert analyse(handler).payload_decoder is None


def test_the_payload_is_not_decoded_unless_asked_for() -> None:
    def handler(machine: str) -> None: ...

    assert analyse(handler).payload_decoder is None
    assert arguments(handler, raw=b"not json") == {"machine": "boiler"}


def test_bytes_are_handed_on_untouched() -> None:
    def handler(payload: bytes) -> None: ...

    decoder = analyse(handler).payload_decoder
    assert decoder is not None
    assert decoder.is_identity


def test_keywords_that_take_anything_get_everything_injectable() -> None:
    def handler(socket: Socket, **everything: Any) -> None: ...

    given_ = arguments(handler, "plant/{machine}", "plant/{machine}/{sensor}")
    assert isinstance(given_.pop("message"), Message)
    assert given_ == {
        "socket": "the socket",
        "state": "the state",
        "context": "the context",
        "message_builder": BUILDER,
        "payload": b'{"celsius":5}',
        "db": "the database",
        "machine": "boiler",
    }
    typed = arguments(lambda message, **rest: None)
    assert "message" in typed


def test_keywords_that_take_anything_share_the_type_of_the_payload() -> None:
    def by_message(message: Message[Reading], **rest: Any) -> None: ...
    def by_payload(reading: Reading, **rest: Any) -> None: ...

    assert arguments(by_message)["payload"] == Reading(5.0)
    given_ = arguments(by_payload)
    assert given_["message"].payload == given_["payload"] == given_["reading"] == Reading(5.0)


def test_a_parameter_with_a_default_that_nobody_fills_keeps_it() -> None:
    def handler(payload: bytes, factor: float = 2.0, *, unit: str = "C") -> None: ...

    assert arguments(handler) == {"payload": b'{"celsius":5}'}


# Captures.


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (str, "7", "7"),
        (Any, "7", "7"),
        (int, "7", 7),
        (float, "-1.5", -1.5),
        (bool, "true", True),
        (bool, "off", False),
        (uuid.UUID, str(uuid.UUID(int=7)), uuid.UUID(int=7)),
        (Colour, "red", Colour.RED),
        (Level, "1", Level.LOW),
        (Literal["a", 1], "1", 1),
        (int | None, "7", 7),
    ],
)
def test_captures_are_converted(annotation: Any, text: str, value: object) -> None:
    def handler(machine): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    handler.__annotations__["machine"] = annotation
    got = arguments(handler, captures={"machine": text})["machine"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "7a"),
        (int, "1_0"),
        (int, "9" * 5000),
        (float, "nan"),
        (bool, "maybe"),
        (uuid.UUID, "7"),
        (Colour, "blue"),
        (Literal["a"], "b"),
    ],
)
def test_a_capture_that_does_not_fit_is_a_decode_error(annotation: Any, text: str) -> None:
    def handler(machine): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    handler.__annotations__["machine"] = annotation
    with pytest.raises(DecodeError) as raised:
        arguments(handler, captures={"machine": text})
    assert "'machine'" in str(raised.value)
    assert text[:10] in str(raised.value)
    assert len(str(raised.value)) < 300


@given(st.text())
def test_no_text_of_a_capture_raises_anything_else(text: str) -> None:
    def handler(machine: int | float | bool | None) -> None: ...

    injection = analyse(handler)
    with contextlib.suppress(DecodeError):
        injection.bind(FakeScope(injection, captures={"machine": text}))


def test_a_capture_that_one_topic_lacks_needs_a_default() -> None:
    def without(machine: str) -> None: ...
    def with_default(machine: int = -1) -> None: ...

    topics = ("plant/{machine}", "plant/all")
    text = refusal(without, *topics)
    assert "'plant/all'" in text
    assert "default" in text
    assert arguments(with_default, *topics, captures={}) == {"machine": -1}
    assert arguments(with_default, *topics, captures={"machine": "4"}) == {"machine": 4}


def test_required_captures() -> None:
    def handler(machine: str, sensor: str = "") -> None: ...

    assert analyse(handler, "plant/{machine}/{sensor}").required_captures == {"machine"}


def test_a_capture_can_not_be_a_record() -> None:
    def handler(machine: Reading) -> None: ...

    assert "capture 'machine' cannot be a Reading" in refusal(handler)


# Refusals.


def test_a_parameter_that_nobody_can_fill() -> None:
    def handler(reading: Reading, other: Reading) -> None: ...

    text = refusal(handler)
    assert text.startswith("handler(): nothing to pass to 'reading', 'other'")
    for available in ("message_builder", "Message[...]", "Socket", "db", "machine", "payload"):
        assert available in text


def test_a_payload_needs_an_annotation() -> None:
    def handler(reading): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    assert "parameter 'reading' has no annotation" in refusal(handler)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("machin", "machine"), ("Machine", "machine"), ("sockt", "socket"), ("databse", "database")],
)
def test_a_misspelt_name_is_not_taken_for_the_payload(name: str, meant: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def handler({name}: str) -> None: ...", namespace)
    assert f"did you mean {meant!r}?" in refusal(namespace["handler"], resources=("database",))


def test_a_name_like_one_that_is_taken_may_be_the_payload() -> None:
    def handler(machine: str, machines: list[str]) -> None: ...

    assert arguments(handler, raw=b'["a"]') == {"machine": "boiler", "machines": ["a"]}


def test_a_forgotten_resource_is_not_taken_for_the_payload() -> None:
    def handler(store: Database) -> None: ...

    text = refusal(handler)
    assert "Database cannot be the type of a payload" in text
    assert "resources: db" in text


def test_a_second_payload() -> None:
    def handler(payload: bytes, reading: Reading) -> None: ...

    assert "nothing to pass to 'reading'" in refusal(handler)


def test_one_payload_has_one_type() -> None:
    def with_payload(message: Message[Reading], text: str) -> None: ...
    def two_messages(message: Message[Reading], other: Message[str]) -> None: ...

    assert "cannot be read as Reading and as str" in refusal(with_payload)
    assert "cannot be read as Reading and as str" in refusal(two_messages)


def test_a_message_parameter_with_the_payloads_type() -> None:
    def handler(message: Reading) -> None: ...

    assert "write Message[Reading]" in refusal(handler)


@pytest.mark.parametrize(
    ("topics", "resources", "name"),
    [
        (["a/{socket}"], [], "socket"),
        (["a/b"], ["payload"], "payload"),
        (["a/{db}"], ["db"], "db"),
    ],
)
def test_names_are_disjoint(topics: list[str], resources: list[str], name: str) -> None:
    def handler() -> None: ...

    text = refusal(handler, *topics, resources=tuple(resources))
    assert f"{name!r} is both" in text


def test_parameters_without_a_name() -> None:
    def many(*values: bytes) -> None: ...
    def only_positional(payload: bytes, /) -> None: ...
    def filled_positional(factor: int = 1, /, payload: bytes = b"") -> None: ...

    assert "*values" in refusal(many)
    assert "positional-only" in refusal(only_positional)
    assert set(arguments(filled_positional)) == {"payload"}


@pytest.mark.parametrize("thing", [None, "handler", Reading])
def test_what_is_no_function(thing: Any) -> None:
    assert "give a function" in refusal(thing)


def test_a_function_without_a_readable_signature() -> None:
    assert "the parameters of max() cannot be read" in refusal(max)


def test_generators() -> None:
    def generator():  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield 1

    async def asynchronous():  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield 1

    assert "generator" in refusal(generator)
    assert "generator" in refusal(asynchronous)


def test_a_state_that_was_not_given() -> None:
    def needs(state: Database) -> None: ...
    def allows(state: Database | None) -> None: ...
    def unannotated(state): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    def defaults(state: int = 3) -> None: ...

    assert "register the handler with state=" in refusal(needs, has_state=False)
    for handler in (allows, unannotated):
        injection = analyse(handler, has_state=False)
        assert injection.bind(FakeScope(injection)) == {"state": "the state"}
    injection = analyse(defaults, has_state=False)
    assert injection.bind(FakeScope(injection)) == {}


# Producers.


def test_a_producer_gets_no_messages() -> None:
    def good(socket: Socket, state: Any, db: Database, message_builder: Any) -> None: ...
    def by_name(message): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    def by_type(m: Message[bytes]) -> None: ...
    def remaining(reading: Reading) -> None: ...
    def optional(payload: bytes = b"x") -> None: ...
    def anything(**rest: Any) -> None: ...

    def produce(function: Callable[..., Any]) -> dict[str, Any]:
        injection = Injection.analyse(function, resources=["db"], kind="producer", special=SPECIAL)
        return injection.bind(FakeScope(injection))

    assert set(produce(good)) == {"socket", "state", "db", "message_builder"}
    assert produce(optional) == {}
    assert set(produce(anything)) == {"socket", "state", "context", "message_builder", "db"}
    for function in (by_name, by_type):
        with pytest.raises(ConfigurationError, match="a producer gets no messages"):
            produce(function)
    with pytest.raises(ConfigurationError, match="nothing to pass to 'reading'") as raised:
        produce(remaining)
    assert "payload" not in str(raised.value)


# Seen through wrappers.


class Machine:
    def heard(self, reading: Reading, machine: str) -> Reading:
        return reading

    async def __call__(self, reading: Reading) -> None: ...

    @staticmethod
    def no_self() -> None: ...


def test_methods() -> None:
    expected = {"reading": Reading(5.0), "machine": "boiler"}
    assert arguments(Machine().heard) == expected
    unbound = analyse(Machine.heard, has_self=True)
    assert unbound.bind(FakeScope(unbound, captures={"machine": "boiler"})) == expected
    assert "has no self" in refusal(Machine.no_self, has_self=True)


def test_callable_objects() -> None:
    assert arguments(Machine()) == {"reading": Reading(5.0)}
    assert analyse(Machine()).is_async


def test_partials_keep_what_they_were_given() -> None:
    async def handler(reading: Reading, machine: str, factor: float, **rest: Any) -> None: ...

    given_ = arguments(functools.partial(handler, machine="mine", factor=2.0))
    assert given_["reading"] == Reading(5.0)
    assert "machine" not in given_
    assert analyse(functools.partial(handler, machine="mine", factor=2.0)).is_async


def test_decorated_functions() -> None:
    def timed(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    @timed
    async def handler(reading: Reading) -> int:
        return 1

    assert arguments(handler) == {"reading": Reading(5.0)}
    assert analyse(handler).is_async
    assert analyse(handler).returns is int


# Annotations as text.


def test_types_of_the_function_in_which_the_handler_is_defined() -> None:
    @dataclass
    class Local:
        celsius: float

    class Handlers:
        def heard(self, reading: Local) -> None: ...

    def handler(reading: Local) -> None: ...

    assert arguments(handler) == {"reading": Local(5.0)}
    injection = analyse(Handlers.heard, has_self=True)
    assert injection.bind(FakeScope(injection)) == {"reading": Local(5.0)}


def test_types_that_the_handler_encloses() -> None:
    def make() -> tuple[type, Callable[..., Any]]:
        @dataclass
        class Local:
            celsius: float

        def handler(reading: Local, again: Any = None) -> Any:
            return Local, handler, never_assigned

        if TYPE_CHECKING:
            never_assigned = 1
        return Local, handler

    local, handler = make()
    assert arguments(handler) == {"reading": local(5.0)}


def test_an_annotation_only_for_type_checkers() -> None:
    def by_name(socket: Absent, db: Absent, state: Absent) -> None: ...
    def payload(reading: Absent) -> None: ...
    def named_payload(payload: Absent) -> None: ...
    def message(message: Absent) -> None: ...
    def capture(machine: Absent) -> None: ...

    assert set(arguments(by_name)) == {"socket", "db", "state"}
    for handler in (payload, named_payload, message, capture):
        text = refusal(handler)
        assert "the annotation 'Absent' of parameter" in text
        assert "cannot be resolved" in text


# Replies.


def test_who_answers_requests() -> None:
    def nothing() -> None: ...
    def unannotated(): ...  # type: ignore[no-untyped-def]  # noqa: ANN202
    def never() -> NoReturn:
        raise AssertionError

    def value() -> Reading | None: ...
    def builds(message_builder: MessageBuilder) -> None: ...
    def anything(**rest: Any) -> None: ...
    def absent() -> Absent: ...

    for handler in (nothing, unannotated, never, anything):
        injection = analyse(handler)
        assert not injection.is_responder()
        assert not injection.returns_value
        assert injection.returns is None
        assert injection.is_responder(replies=True)
    assert analyse(value).is_responder()
    assert analyse(value).returns_value
    assert analyse(value).returns == Reading | None
    assert analyse(builds).is_responder()
    assert analyse(builds).wants_message_builder
    assert not analyse(builds).returns_value
    assert analyse(absent).is_responder()
    assert analyse(absent).returns == "Absent"


def test_kinds_of_functions() -> None:
    async def asynchronous() -> None: ...
    def synchronous() -> None: ...

    assert analyse(asynchronous).is_async
    assert not analyse(synchronous).is_async
    assert repr(analyse(synchronous)) == "<Injection synchronous()>"
