"""What would be ignored in silence is refused at registration, or does what it says."""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, NewType, TypeVar

import annotated_types
import msgspec
import pydantic
import pytest
from typing_extensions import TypedDict

from spa_dat import (
    Actor,
    DistributedApplication,
    Message,
    MessageBuilder,
    Overflow,
    RetryPolicy,
    Socket,
    on,
)
from spa_dat.errors import ConfigurationError
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.messaging._outgoing_message import topic_meant
from support.memory import Site

pytestmark = pytest.mark.virtual

T = TypeVar("T")
U = TypeVar("U")
ONCE = RetryPolicy(attempts=1)


@dataclasses.dataclass
class Reading:
    celsius: float


# Generic classes.


class Base(Actor, Generic[T]):
    """Handles whatever its subclass says."""

    retry = ONCE

    def __init__(self) -> None:
        self.got: list[Any] = []

    @on("one")
    async def one(self, x: T) -> None:
        self.got.append(x)

    @on("many")
    async def many(self, message: Message[list[T]]) -> None:
        self.got.append(message.payload)

    @on("maybe")
    async def maybe(self, x: T | None) -> None:
        self.got.append(x)


class Second(Base[U], Generic[T, U]):
    """Passes its second argument on; the same ``T`` is another one here."""

    @on("two")
    async def two(self, x: T) -> None:
        self.got.append(x)


class Direct(Base[Reading]): ...


class Indirect(Second[int, Reading]): ...


class Listed(Base[list[Reading]]): ...


@pytest.mark.parametrize("kind", [Direct, Indirect])
async def test_a_generic_handler_gets_what_the_subclass_says(kind: type[Base[Any]]) -> None:
    site = Site()
    app = site.app()
    app.add(kind)
    async with app:
        for topic, text in (
            ("one", '{"celsius": 1}'),
            ("many", '[{"celsius": 2}]'),
            ("maybe", "null"),
            ("one", '"nonsense"'),
            ("many", "[1]"),
        ):
            site.publish(topic, text, content_type="application/json")
        await site.settled(f"app.0.{kind.__name__}")
        run = runs_of(app).current
        assert run is not None
        made = run.actors[0].lanes[0].latest_instance
        assert isinstance(made, kind)
        assert made.got == [Reading(1.0), [Reading(2.0)], None]
        assert len(site.letters()) == 2


async def test_an_argument_may_be_generic_itself() -> None:
    site = Site()
    app = site.app()
    app.add(Listed)
    async with app:
        site.publish("one", '[{"celsius": 1}]', content_type="application/json")
        site.publish("one", '{"celsius": 1}', content_type="application/json")
        await site.settled("app.0.Listed")
        assert len(site.letters()) == 1


class Bare(Base): ...  # type: ignore[type-arg]


class Half(Second[int, T]): ...


@pytest.mark.parametrize("kind", [Bare, Half, Base])
def test_a_type_variable_that_nothing_is_said_of_is_refused(kind: type[Actor]) -> None:
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(ConfigurationError, match=r"parameter 'x'.* type variable T stands for"):
        app.add(kind)


def test_a_type_variable_of_a_function_is_refused() -> None:
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(ConfigurationError, match=r"parameter 'x': dict\[str, ~T\].* variable T"):

        @app.application("a")
        async def handle(x: dict[str, T]) -> None: ...


# Constraints.


class Colours(TypedDict):
    red: Annotated[int, pydantic.Field(ge=0, le=255)]


class Point(NamedTuple):
    x: Annotated[int, annotated_types.Ge(0)]


class Struct(msgspec.Struct):
    x: Annotated[int, annotated_types.Ge(0)]


@dataclasses.dataclass
class Order:
    amount: Annotated[int, pydantic.Field(gt=0)]


@dataclasses.dataclass
class Defaulted:
    amount: int = pydantic.Field(gt=0)


@dataclasses.dataclass
class Outer:
    orders: list[Order]


def divided(x: int) -> float:
    return 1 / x if x else float(["zero"].index("none"))


Positive = NewType("Positive", Annotated[int, annotated_types.Gt(0)])


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (Annotated[int, pydantic.Field(gt=0)], "1", "0"),
        (Annotated[int, annotated_types.Gt(0)], "1", "0"),
        (Annotated[int, annotated_types.Interval(gt=0, lt=9)], "1", "9"),
        (Annotated[float, annotated_types.MultipleOf(0.5)], "1.5", "1.4"),
        (Annotated[str, pydantic.Field(max_length=3)], '"abc"', '"abcd"'),
        (Annotated[str, annotated_types.Len(1, 3)], '"abc"', '""'),
        (Annotated[str, pydantic.StringConstraints(pattern="^a")], '"abc"', '"b"'),
        (Annotated[str, annotated_types.Predicate(str.isdigit)], '"2"', '"x"'),
        (Annotated[int, pydantic.AfterValidator(divided)], "1", "0"),
        (Annotated[int, annotated_types.Gt(0)] | None, "null", "0"),
        (list[Annotated[int, annotated_types.Gt(0)]], "[1]", "[1, 0]"),
        (Annotated[list[int], pydantic.Field(min_length=1)], "[1]", "[]"),
        (dict[str, Annotated[int, annotated_types.Gt(0)]], '{"a": 1}', '{"a": 0}'),
        (Order, '{"amount": 1}', '{"amount": 0}'),
        (Defaulted, '{"amount": 1}', '{"amount": 0}'),
        (Outer, '{"orders": [{"amount": 1}]}', '{"orders": [{"amount": 0}]}'),
        (list[Order], '[{"amount": 1}]', '[{"amount": 0}]'),
        (Colours, '{"red": 1}', '{"red": 256}'),
        (Point, "[1]", "[-1]"),
        (Positive, "1", "0"),
        (Annotated[int, msgspec.Meta(gt=0)], "1", "0"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+|^<class.*\.", "", str(value))[:60],
)
async def test_constraints_are_enforced(annotation: Any, good: str, bad: str) -> None:
    site = Site()
    app = site.app()
    got: list[Any] = []

    async def handle(payload: Any) -> None:
        got.append(payload)

    handle.__annotations__["payload"] = annotation
    app.application("a", name="actor", retry=ONCE)(handle)
    async with app:
        for text in (good, bad):
            site.publish("a", text, content_type="application/json")
        await site.settled()
        assert len(got) == 1
        assert len(site.letters()) == 1
        assert app.stats["messages.undecodable"] == 1


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        (Struct, r"pydantic cannot check Struct\.x: Ge"),
        (Annotated[bytes, pydantic.Field(max_length=3)], "not checked for raw bytes"),
        (
            Annotated[int, annotated_types.Gt(0), msgspec.Meta(lt=9)],
            r"does not know the msgspec\.Meta",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_constraints_that_nobody_can_check_are_refused(annotation: Any, problem: str) -> None:
    app = DistributedApplication("memory://", name="app")

    async def handle(x: Any) -> None: ...

    handle.__annotations__["x"] = annotation
    with pytest.raises(ConfigurationError, match=rf"handle\(\): parameter 'x': .*{problem}"):
        app.application("a")(handle)


def test_constraints_need_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(ConfigurationError, match=r"parameter 'x': .* needs pydantic, which is not"):

        @app.application("a")
        async def handle(x: Annotated[int, annotated_types.Gt(1234)]) -> None: ...


def test_a_field_as_a_default_is_refused() -> None:
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(ConfigurationError, match=r"the default of 'x' .* write x: Annotated"):

        @app.application("a")
        async def handle(x: int = pydantic.Field(gt=0)) -> None: ...


async def test_constraints_hold_for_captures() -> None:
    site = Site()
    app = site.app()
    got: list[int] = []

    @app.application("a/{x}", name="actor")
    async def handle(x: Annotated[int, annotated_types.Gt(0)]) -> None:
        got.append(x)

    async with app:
        site.publish("a/1")
        site.publish("a/0")
        await site.settled()
        assert got == [1]


# Options of classes.


def with_attributes(**attributes: Any) -> type[Actor]:
    async def handle(self: Any, x: int) -> None: ...

    return type("Meter", (Actor,), {"handle": on("a")(handle), **attributes})


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("concurency", 8, "concurrency"),
        ("mailbx", 5, "mailbox"),
        ("retries", ONCE, "retry"),
        ("retires", ONCE, "retry"),
        ("dead_line", 2.0, "deadline"),
        ("Deadline", 2, "deadline"),
        ("ressource", {}, "ressources"),
        ("resources", {}, "ressources"),
        ("overfow", Overflow.DROP_OLDEST, "overflow"),
        ("batches", (10, 1.0), "batch"),
        ("retry_request", True, "retry_requests"),
        ("replise", True, "replies"),
        ("subscripton", "shared", "subscription"),
        ("socketprovider", "memory://", "socket_provider"),
        ("every", 5.0, "every"),
        ("state", Counter, "state"),
    ],
)
def test_misspelt_options_of_a_class_are_refused(name: str, value: Any, meant: str) -> None:
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(
        ConfigurationError, match=rf"class Meter: .*'{meant}'.* annotate it: {name}"
    ):
        app.add(with_attributes(**{name: value}))
    inherits = type("Meter", (with_attributes(**{name: value}),), {})
    with pytest.raises(ConfigurationError, match=rf"'{meant}'"):
        app.add(inherits)


class Phase(enum.Enum):
    IDLE = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", 5),
        ("mailbox_name", "x"),
        ("state", "idle"),
        ("state", Phase.IDLE),
        ("every", "day"),
        ("topic", "a/b"),
        ("keys", {"a": 1}),
        ("deliver", None),
        ("replies_to", "x"),
        ("windows", "open"),
        ("_concurency", 8),
        ("retries", 3),
        ("deadline", property(lambda self: 1)),
        ("mailboxes", lambda self: 1),
    ],
)
def test_ordinary_attributes_of_a_class_are_its_own(name: str, value: Any) -> None:
    DistributedApplication("memory://", name="app").add(with_attributes(**{name: value}))


def test_an_attribute_that_is_annotated_is_the_classs_own() -> None:
    class Meter(Actor):
        windows: ClassVar[int] = 5
        concurency: int = 8
        retries: RetryPolicy = ONCE

        @on("a")
        async def handle(self, x: int) -> None: ...

    spec = DistributedApplication("memory://", name="app").add(Meter)
    assert spec.options.lanes == 1
    assert spec.options.retry == RetryPolicy()


# Topics.


@pytest.mark.parametrize("topic", ["fleet/{v}/alarm", "{order.id}", "a/{x['y']}", "a/{x:03}"])
async def test_a_forgotten_f_is_noticed(topic: str) -> None:
    site = Site()
    app = site.app()
    watcher = site.watch("#")
    raised: list[str] = []

    @app.application("n", name="actor")
    async def handle(number: int, socket: Socket, message_builder: MessageBuilder) -> None:
        for use in (
            lambda: socket.post(topic, 1),
            lambda: message_builder(topic, 1),
        ):
            with pytest.raises(ConfigurationError, match="write an f-string") as caught:
                use()
            raised.append(str(caught.value))
        for call in (socket.publish(topic, 1), socket.request(topic, 1)):
            with pytest.raises(ConfigurationError, match="write an f-string") as caught:
                await call
            raised.append(str(caught.value))

    async with app:
        site.publish("n", "1")
        await site.settled()
        with pytest.raises(ConfigurationError, match="write an f-string"):
            await app.socket().publish(topic, 1)
    assert len(raised) == 4
    assert f"f{topic!r}" in raised[0]
    assert [envelope.topic for envelope in watcher.envelopes] == ["n"]


async def test_braces_that_are_meant_are_sent() -> None:
    site = Site()
    app = site.app()
    watcher = site.watch("out/#", "reply/#")

    @app.application("in/+", name="actor")
    async def handle(message: Message[bytes], socket: Socket) -> None:
        await socket.publish("out/{{v}}", b"")
        await socket.publish("out/{}/{ }/{1}/}{", b"")
        # A bridge: who may publish there decides on the topic.
        await socket.publish(f"out/{message.topic}", b"")
        await socket.publish(f"out/{message.topic}", b"")
        assert message.response_topic is not None
        await socket.publish(message.response_topic, b"")

    async with app:
        site.publish("in/{x}", response_topic="reply/{y}")
        site.publish("in/{{x}}", response_topic="reply/{{y}}")
        await site.settled()
    assert [envelope.topic for envelope in watcher.envelopes] == [
        "out/{v}",
        "out/{}/{ }/{1}/}{",
        "out/in/{x}",
        "out/in/{x}",
        "reply/{y}",
        "out/{v}",
        "out/{}/{ }/{1}/}{",
        "out/in/{{x}}",
        "out/in/{{x}}",
        "reply/{{y}}",
    ]
    assert not site.letters()


@pytest.mark.parametrize("start", ["{", "{{", "{a.", "a/{x:"])
def test_no_topic_takes_long_to_look_at(start: str) -> None:
    # The square of this would be hours.
    topic = f"{start}{'a' * 1_000_000}/b"
    assert topic_meant(topic) == topic


# Parts of the message by name.


async def test_topic_headers_and_key_are_what_they_say() -> None:
    site = Site()
    app = site.app()
    got: list[Any] = []

    @app.application("a/+", name="actor")
    async def handle(payload: int, topic: str, headers: Mapping[str, str], key: str | None) -> None:
        got.append((payload, topic, dict(headers), key))

    @app.application("b", name="plain", deadline=5)
    async def plain(topic: Any, headers: object, key: str = "none") -> None: ...

    async with app:
        site.publish("a/1", "7", headers={"origin": "x"}, key="k")
        site.publish("a/2", "8")
        site.publish("b", "not read")
        await site.settled()
        await site.settled("app.0.plain")
        assert got == [(7, "a/1", {"origin": "x"}, "k"), (8, "a/2", {}, None)]
        assert app.stats["messages.handled"] == 3


async def test_a_capture_or_resource_of_that_name_goes_first() -> None:
    site = Site()
    app = site.app()
    got: list[Any] = []

    @app.application("a/{key}", name="actor")
    async def handle(topic: str, key: int) -> None:
        got.append((topic, key))

    async with app:
        site.publish("a/1", key="other")
        await site.settled()
        assert got == [("a/1", 1)]


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        (
            {"topic": int},
            "'topic' is annotated int, but it is the message's topic; write topic: str",
        ),
        ({"topic": Reading}, "rename the parameter if it is meant"),
        ({"headers": list[str]}, r"write headers: Mapping\[str, str\]"),
        ({"headers": dict[str, int]}, r"write headers: Mapping\[str, str\]"),
        ({"key": bytes}, r"write key: str \| None"),
        ({"key": str}, r"write key: str \| None"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_they_can_not_be_is_refused(annotations: dict[str, Any], problem: str) -> None:
    app = DistributedApplication("memory://", name="app")
    (name,) = annotations
    scope: dict[str, Any] = {}
    exec(f"async def handle({name}): ...", scope)
    scope["handle"].__annotations__.update(annotations)
    with pytest.raises(ConfigurationError, match=problem):
        app.application("a")(scope["handle"])


def test_a_batch_has_no_topic() -> None:
    app = DistributedApplication("memory://", name="app")
    with pytest.raises(ConfigurationError, match=r"'topic': each message has its own"):

        @app.application("a", batch=(10, 1))
        async def handle(payloads: list[int], topic: str) -> None: ...


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("nmae", r"DistributedApplication\(\) got .* 'nmae'; did you mean 'name'\?"),
        ("url", r"DistributedApplication\(\) got .* 'url'; there are: admin, .*, codec, "),
    ],
)
def test_a_keyword_that_an_application_does_not_take_is_refused(keyword: str, text: str) -> None:
    options: Any = {keyword: "plant"}
    with pytest.raises(ConfigurationError, match=text):
        DistributedApplication("memory://", **options)


def test_a_keyword_that_a_producer_does_not_take_is_refused() -> None:
    options: Any = {"evry": 5}
    with pytest.raises(ConfigurationError, match=r"producer\(\) got .*; did you mean 'every'\?"):
        DistributedApplication("memory://").producer(**options)
