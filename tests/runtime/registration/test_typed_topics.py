"""Typed topics: one definition for publishers, requesters, handlers and tests."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    MessageBuilder,
    Socket,
    SyncSocket,
    Topic,
    on,
)
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Harness
from support.type_checking import check_types, errors

T = TypeVar("T")


@dataclass
class Reading:
    celsius: float


@dataclass
class Exact(Reading):
    error: float = 0.0


@dataclass
class Order:
    item: str


@dataclass
class Receipt:
    number: int


readings = Topic[Reading]("plant/{machine}/temperature")
orders = Topic[Order, Receipt]("shop/orders")


@pytest.fixture
def app() -> DistributedApplication:
    return DistributedApplication("memory://", name="typed")


# The topic.


def test_a_topic_knows_its_address_and_types() -> None:
    topic = readings.at(machine="boiler")
    assert (topic.address, topic.filter) == ("plant/boiler/temperature",) * 2
    assert (topic.payload, topic.reply) == (Reading, None)
    assert (orders.payload, orders.reply) == (Order, Receipt)
    assert str(orders) == "shop/orders"
    assert repr(orders) == "Topic[Order, Receipt]('shop/orders')"
    assert repr(topic) == "Topic[Reading]('plant/boiler/temperature')"


def test_equal_topics_are_equal() -> None:
    same = Topic[Reading]("plant/{machine}/temperature")
    assert same == readings
    assert hash(same) == hash(readings)
    assert Topic[Order]("plant/{machine}/temperature") != readings
    assert readings.at(machine="a") != readings
    assert readings != "plant/{machine}/temperature"


def test_a_topic_without_types_takes_everything() -> None:
    topic: Topic[Any, Any] = Topic("x")
    assert (topic.payload, topic.reply, repr(topic)) == (Any, Any, "Topic('x')")


def test_a_topic_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(readings.at(machine="a"))) == readings.at(machine="a")


class Machine(str, Enum):  # noqa: UP042 (StrEnum has another text)
    BOILER = "boiler"


class Line(int, Enum):
    FIRST = 1


def test_members_of_an_enum_fill_captures_with_their_values() -> None:
    topic = Topic[Reading]("plant/{machine}/{line}")
    assert topic.at(machine=Machine.BOILER, line=Line.FIRST).address == "plant/boiler/1"


def test_numbers_fill_captures() -> None:
    assert readings.at(machine=7).address == "plant/7/temperature"


@pytest.mark.parametrize("value", ["", "a/b", "+", "a+", "#", "/"])
def test_what_is_not_one_level_fills_no_capture(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"at\(machine='.*one level"):
        readings.at(machine=value)


@pytest.mark.parametrize("value", [None, True, 1.5, b"boiler", ["a"]])
def test_other_types_fill_no_capture(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"at\(machine=.*give a str or an int"):
        readings.at(machine=value)


def test_all_captures_have_to_be_filled_and_no_others() -> None:
    with pytest.raises(ConfigurationError, match=r"takes machine=, and got nothing"):
        readings.at()
    with pytest.raises(ConfigurationError, match=r"takes machine=, and got machine=, line="):
        readings.at(machine="a", line="b")
    with pytest.raises(ConfigurationError, match=r"takes nothing, and got item="):
        orders.at(item="tea")


def test_a_topic_that_is_several_addresses_cannot_be_published_to() -> None:
    with pytest.raises(ConfigurationError, match=r"has captures.*\.at\(machine=\.\.\.\)"):
        _ = readings.address
    with pytest.raises(ConfigurationError, match="has a wildcard"):
        _ = Topic[Reading]("plant/+/temperature").address
    with pytest.raises(ConfigurationError, match=r"nothing can fill the wildcard '#'"):
        Topic[Reading]("{machine}/#").at(machine="a")


def test_a_value_with_braces_is_published_to_but_not_subscribed_to() -> None:
    topic = readings.at(machine="{x}")
    assert topic.address == "plant/{x}/temperature"
    with pytest.raises(ConfigurationError, match="braces"):
        _ = topic.filter


@pytest.mark.parametrize("text", ["", "a/{b", "a/#/b", "{a}/{a}", "a\0"])
def test_a_text_that_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Topic[Reading](text)


def test_other_things_than_texts_are_refused() -> None:
    wrong: Any = 3
    with pytest.raises(ConfigurationError, match=r"Topic\(3\)"):
        Topic[Reading](wrong)


# In use.


def test_it_stands_wherever_a_topic_is_wanted(app: DistributedApplication) -> None:
    seen: list[Any] = []

    @app.application(readings)
    async def watch(reading: Reading, machine: str, socket: Socket) -> None:
        seen.append((reading, machine))
        if machine == "m":
            socket.post(readings.at(machine="copy"), reading)

    class Shop(Actor):
        @on(orders)
        async def order(self, order: Order) -> Receipt:
            return Receipt(len(order.item))

    class Short(Actor):
        topics = Topic[Order]("short/{name}")

        async def on_message(self, message: Message[Order], name: str) -> None:
            seen.append((message.payload, name))

    app.add(Shop)
    app.add(Short)

    @app.application(Topic[str]("go"))
    async def go(text: str, socket: Socket, message_builder: MessageBuilder) -> None:
        seen.append(await socket.request(orders, Order("tea")))
        seen.extend(await socket.request_many(orders, Order("salt"), count=1))
        whole = await socket.request(orders, Order("t"), reply=Message[Receipt])
        seen.append(whole.payload)
        await socket.publish(message_builder(Topic[Order]("short/{name}").at(name="b"), Order("b")))
        await socket.publish(Topic[Order]("short/{name}").at(name="p"), Order("p"))

    @app.application(Topic[str]("thread"))
    def thread(text: str, socket: SyncSocket) -> None:
        seen.append(socket.request(orders, Order("in a thread")))
        seen.extend(socket.request_many(orders, Order(""), count=1))
        socket.publish(Topic[Order]("short/{name}").at(name="t"), Order("t"))
        socket.post(Topic[Order]("short/{name}").at(name="o"), Order("o"))

    with Harness(app) as bench:
        bench.publish(readings.at(machine="m"), Reading(1.0))
        bench.settle()
        assert seen[0] == (Reading(1.0), "m")
        assert seen[1] == (Reading(1.0), "copy")
        seen.clear()
        assert bench.published(readings) == [Reading(1.0)]
        assert [message.payload for message in bench.messages(readings)] == [Reading(1.0)]
        assert bench.request(orders, Order("tea")) == Receipt(3)
        bench.publish("go", "go")
        bench.publish("thread", "go")
        bench.settle()
    for expected in (
        Receipt(3),
        Receipt(4),
        Receipt(1),
        (Order("b"), "b"),
        (Order("p"), "p"),
        Receipt(11),
        Receipt(0),
        (Order("t"), "t"),
        (Order("o"), "o"),
    ):
        assert expected in seen


def test_an_actor_can_subscribe_to_one(app: DistributedApplication) -> None:
    seen: list[tuple[str, float]] = []
    one = Topic[Reading]("a/{machine}")

    @app.application([one, "turn/+"])
    async def watch(message: Message[Reading], socket: Socket, machine: str = "") -> None:
        seen.append((message.topic, message.payload.celsius))
        if message.topic == "turn/on":
            await socket.subscribe(Topic[Reading]("b/{machine}"))
        if message.topic == "turn/off":
            await socket.unsubscribe(Topic[Reading]("b/{machine}"))

    with Harness(app) as bench:
        for topic in ("b/1", "turn/on", "b/2", "turn/off", "b/3", "a/4"):
            bench.publish(topic, Reading(1.0))
            bench.settle()
    assert [topic for topic, _ in seen] == ["turn/on", "b/2", "turn/off", "a/4"]


def test_a_request_needs_a_type_of_replies(app: DistributedApplication) -> None:
    failed: list[str] = []

    @app.application("go")
    async def go(text: str, socket: Socket) -> None:
        for call in (socket.request, socket.request_many):
            try:
                await call(readings.at(machine="a"), Reading(1.0))
            except ConfigurationError as error:
                failed.append(str(error))

    with Harness(app) as bench:
        bench.publish("go", "go")
        bench.settle()
    assert [text for text in failed if "no type of replies" in text] == failed
    assert len(failed) == 2


# Handlers.


def test_a_handler_that_takes_something_else_is_refused(app: DistributedApplication) -> None:
    with pytest.raises(ConfigurationError, match=r"takes Order, but Topic\[Reading\].* Reading"):

        @app.application([readings])
        async def watch(order: Order) -> None: ...

    with pytest.raises(ConfigurationError, match=r"takes Order, but"):

        @app.application([readings])
        async def whole(message: Message[Order]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"takes Order, but"):

        @app.application([readings], batch=(10, 1.0))
        async def many(orders: list[Order]) -> None: ...


def test_a_handler_that_returns_something_else_is_refused(app: DistributedApplication) -> None:
    class Shop(Actor):
        @on(orders, "more/orders")
        async def order(self, order: Order) -> int:
            return 1

    with pytest.raises(ConfigurationError, match=r"order\(\) returns int, but a reply .* Receipt"):
        app.add(Shop)


def test_handlers_that_fit_are_registered(app: DistributedApplication) -> None:
    exact = Topic[Exact, Exact]("exact")

    @app.application(exact)
    async def parent(reading: Reading) -> Exact:
        return Exact(reading.celsius)

    @app.application([exact, Topic[int]("number"), Topic[str | int]("both")], name="union")
    async def union(payload: int | str | Exact) -> None: ...

    @app.application(readings, name="raw")
    async def raw(message: Any) -> None: ...

    @app.application([readings], name="bytes")
    async def own(message: Message[Any], context: Context) -> None: ...

    @app.application([orders], name="replies", replies=True)
    async def replies(message: Message[Order]) -> None:
        await message.reply(Receipt(1))

    @app.application(readings, name="batch", batch=(10, 1.0))
    async def batch(several: list[Message[Reading]]) -> None: ...

    @app.application(Topic[int | None]("optional"), name="optional")
    async def optional(number: int | None) -> None: ...

    with Harness(app) as bench:
        assert bench.request(exact, Exact(2.0)) == Exact(2.0)
        assert bench.request(orders, Order("x")) == Receipt(1)


def test_topics_with_the_same_filter_are_refused(app: DistributedApplication) -> None:
    with pytest.raises(ConfigurationError, match="match the same topics"):

        @app.application([readings, Topic[Reading]("plant/{other}/temperature")])
        async def watch(reading: Reading) -> None: ...


def test_only_texts_and_topics_decorate() -> None:
    wrong: Any = 3
    with pytest.raises(ConfigurationError, match="takes topics as strings, not 3"):
        on(wrong)


# Type checkers.

GOOD = """
from dataclasses import dataclass
from spa_dat import Actor, DistributedApplication, Message, Socket, SyncSocket, Topic, on
from spa_dat import MessageBuilder
from spa_dat.testing import Harness

@dataclass
class Reading:
    celsius: float

@dataclass
class Order:
    item: str

@dataclass
class Receipt:
    number: int

readings = Topic[Reading]("plant/{machine}/temperature")
orders = Topic[Order, Receipt]("shop/orders")
app = DistributedApplication("memory://")

@app.application(readings, retry_requests=True, name="a")
async def asynchronous(reading: Reading, machine: str) -> None: ...

@app.application(readings)
def threaded(reading: Reading, socket: SyncSocket) -> None:
    socket.publish(readings.at(machine="a"), reading)

@app.application(readings, batch=(10, 1.0))
async def batch(several: list[Reading]) -> None: ...

@app.application(orders)
async def answer(message: Message[Order]) -> Receipt:
    return Receipt(1)

@app.application([readings, "other"])
async def several(machine: str, reading: Reading) -> None: ...

class Shop(Actor):
    @on(orders)
    async def order(self, order: Order) -> Receipt:
        return Receipt(1)

    @on(readings)
    def watch(self, reading: Reading, machine: str) -> None: ...

    @on(readings, "more")
    async def more(self, machine: str) -> None: ...

async def use(socket: Socket, sync: SyncSocket, builder: MessageBuilder) -> None:
    await socket.publish(readings.at(machine="a"), Reading(1.0), key="a")
    socket.post(readings.at(machine="a"), Reading(1.0))
    await socket.publish(builder(readings.at(machine="a"), Reading(1.0)))
    reveal_type(await socket.request(orders, Order("tea"), timeout=3))
    reveal_type(await socket.request_many(orders, Order("tea"), count=2))
    reveal_type(sync.request(orders, Order("tea")))
    reveal_type(await socket.request(orders, Order("tea"), reply=Message[Receipt]))
    reveal_type(await socket.request("other", 1))

def test() -> None:
    with Harness(app) as bench:
        bench.publish(readings.at(machine="a"), Reading(1.0))
        reveal_type(bench.request(orders, Order("tea")))
        reveal_type(bench.published(readings))
        reveal_type(bench.messages(readings))
        reveal_type(bench.published("x", type=int))

reveal_type(readings)
reveal_type(orders.at())
"""

BAD = """
from dataclasses import dataclass
from spa_dat import Actor, DistributedApplication, Message, Socket, Topic, on
from spa_dat.testing import Harness

@dataclass
class Reading:
    celsius: float

@dataclass
class Order:
    item: str

readings = Topic[Reading]("plant/{machine}/temperature")
orders = Topic[Order, int]("shop/orders")
app = DistributedApplication("memory://")

@app.application(readings)  # error
async def a(order: Order) -> None: ...

@app.application(readings)  # error
def b(message: Message[Order]) -> None: ...

@app.application(orders)  # error
async def c(order: Order) -> str:
    return ""

@app.application(orders)  # error
async def d(order: Order) -> None: ...

class Shop(Actor):
    @on(orders)  # error
    async def order(self, reading: Reading) -> int:
        return 1

    @on(readings)  # error
    async def watch(self, reading: Reading) -> int:
        return 1

async def use(socket: Socket) -> None:
    await socket.publish(readings.at(machine="a"), Order("tea"))  # error
    await socket.publish(readings.at(machine="a"))  # error
    socket.post(readings.at(machine="a"), 1.0)  # error
    await socket.request(orders, Reading(1.0))  # error
    number: str = await socket.request(orders, Order("tea"))  # error
    readings.at(machine=None)  # error

def test() -> None:
    with Harness(app) as bench:
        bench.publish(readings.at(machine="a"), Order("tea"))  # error
        first: Order = bench.published(readings)[0]  # error
"""


def test_type_checkers_compare_all_of_them_and_find_every_mistake(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    good, bad = check_types(tmp_path, GOOD, BAD)
    assert errors(good) == [], good
    revealed = [
        line.split('"')[1].replace("spa_dat.runtime.messaging.", "").replace("builtins.", "")
        for line in good
        if "Revealed type" in line
    ]
    assert revealed == [
        "Receipt",
        "list[Receipt | spa_dat.errors.RemoteError]",
        "Receipt",
        "_message.Message[Receipt]",
        "bytes",
        "Receipt",
        "list[Reading]",
        "list[_message.Message[Reading]]",
        "list[int]",
        "_typed_topic.Topic[Reading, None]",
        "_typed_topic.Topic[Order, Receipt]",
    ]
    wanted = [number for number, line in enumerate(BAD.splitlines(), 1) if line.endswith("# error")]
    assert sorted(errors(bad)) == wanted, bad
