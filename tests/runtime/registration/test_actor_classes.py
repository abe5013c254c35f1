"""Actor classes: several handlers, one mailbox, one state; local messages beside the bus's."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Message,
    MessageBuilder,
    RetryPolicy,
    Socket,
    SyncSocket,
    on,
)
from spa_dat.errors import ActorStopped, ConfigurationError, DeadlockDetected, RemoteError
from spa_dat.transports.memory import MemoryProvider
from support.probe import talking
from support.waiting import eventually


@pytest.fixture
def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
def app(provider: MemoryProvider) -> DistributedApplication:
    return DistributedApplication(provider, name="plant")


@dataclass
class Reading:
    sensor: str
    celsius: float


async def test_handlers_of_a_class_share_its_attributes_and_take_constructor_arguments(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        def __init__(self, limit: float, *, unit: str) -> None:
            self.limit, self.unit, self.last = limit, unit, 0.0

        @on("boiler/temperature")
        async def measured(self, reading: Reading) -> None:
            self.last = reading.celsius

        @on("boiler/limit")
        async def change(self, limit: float) -> float:
            before, self.limit = self.limit, limit
            return before

        @on("boiler/state")
        async def state(self, message: Message[None]) -> dict[str, Any]:
            return {"last": self.last, "limit": self.limit, "unit": self.unit}

    app.add(Boiler, 90.0, unit="C")
    async with app, talking(provider) as socket:
        await socket.publish("boiler/temperature", Reading("a", 71.5))
        assert await socket.request("boiler/limit", 80.0, reply=float) == 90.0
        assert await socket.request("boiler/state", reply=dict) == {
            "last": 71.5,
            "limit": 80.0,
            "unit": "C",
        }


async def test_the_short_form_and_its_filters(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[tuple[str, str]] = []

    class Echo(Actor):
        topics = ("a/{what}", "b")

        async def on_message(self, text: str, message: Message[str], what: str = "none") -> None:
            got.append((message.topic, what))

    class One(Actor):
        topics = "c"

        async def on_message(self, text: str) -> None:
            got.append(("c", text))

    app.add(Echo)
    app.add(One)
    async with app, talking(provider) as socket:
        for topic in ("a/x", "b", "c"):
            await socket.publish(topic, "text")
        await eventually(lambda: len(got) == 3)
    assert sorted(got) == [("a/x", "x"), ("b", "none"), ("c", "text")]


async def test_the_first_declared_filter_that_matches_wins_and_each_message_comes_once(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[str] = []

    class Base(Actor):
        @on("plant/boiler/temperature")
        async def special(self, payload: str) -> None:
            got.append(f"special {payload}")

        @on("plant/{machine}/temperature")
        async def machine(self, payload: str, machine: str) -> None:
            got.append(f"{machine} {payload}")

    class Plant(Base):
        @on("plant/#")
        async def rest(self, message: Message[str]) -> None:
            got.append(f"rest {message.topic}")

        async def special(self, payload: str) -> None:
            got.append(f"overridden {payload}")

    app.add(Plant)
    async with app, talking(provider) as socket:
        await socket.publish("plant/boiler/temperature", "1")
        await socket.publish("plant/mill/temperature", "2")
        await socket.publish("plant/mill/speed", "3")
        await socket.publish("plant", "4")
        await eventually(lambda: len(got) == 4)
        assert await eventually(lambda: len(provider.broker.queues["plant.0.Plant"]) == 0)
    assert got == ["overridden 1", "mill 2", "rest plant/mill/speed", "rest plant"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


async def test_captures_are_converted_and_what_does_not_fit_is_parked(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    got: list[tuple[Any, ...]] = []

    class Plant(Actor):
        @on("i/{number}/{colour}/{side}/{ident}")
        async def all(
            self,
            payload: None,
            number: int,
            colour: Colour,
            side: Literal["left", "right"],
            ident: uuid.UUID,
        ) -> None:
            got.append((number, colour, side, ident))

    ident = uuid.UUID(int=5)
    app.add(Plant)
    async with app, talking(provider) as socket:
        await socket.publish(f"i/7/red/left/{ident}")
        bad = [f"i/x/red/left/{ident}", f"i/7/green/left/{ident}", f"i/7/red/up/{ident}"]
        for topic in (*bad, "i/7/red/left/zz"):
            await socket.publish(topic)
        await eventually(lambda: app.stats["dead_letters.stored"] == 4)
    assert got == [(7, Colour.RED, "left", ident)]
    assert app.stats["messages.failed"] == 0


async def test_a_payload_that_does_not_fit_is_parked_or_answered(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    @app.application("a")
    async def quiet(reading: Reading) -> None: ...

    @app.application("b")
    async def responder(reading: Reading) -> str:
        return "never"

    async with app, talking(provider) as socket:
        await socket.publish("a", {"sensor": "x"})
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
        with pytest.raises(RemoteError, match="celsius") as caught:
            await socket.request("b", {"sensor": "x"}, timeout=5.0)
        assert caught.value.code == "bad-request"


async def test_local_messages_and_those_of_the_bus_go_through_one_mailbox(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Counter(Actor):
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.running = 0

        async def work(self, word: str) -> None:
            assert self.running == 0
            self.running += 1
            await asyncio.sleep(0.001)
            self.seen.append(word)
            self.running -= 1

        @on("count")
        async def count(self, payload: str) -> None:
            await self.work(f"bus {payload}")

        async def on_receive(self, message: Any) -> Any:
            if message == "fail":
                raise ValueError("told to")
            if message == "seen":
                return list(self.seen)
            await self.work(f"local {message}")
            return None

    counter = app.add(Counter)
    with pytest.raises(ActorStopped, match="'Counter' is not started"):
        _ = counter.ref
    async with app, talking(provider) as socket:
        ref = counter.ref
        for number in range(5):
            ref.tell(number)
            await socket.publish("count", str(number))
        with pytest.raises(ValueError, match="told to"):
            await ref.ask("fail")
        await ref.send("sent")
        await eventually(lambda: app.stats["messages.handled"] == 5)
        seen = await ref.ask("seen")
        assert [word for word in seen if word.startswith("bus")] == [f"bus {n}" for n in range(5)]
        assert [word for word in seen if word.startswith("local")] == [
            *(f"local {n}" for n in range(5)),
            "local sent",
        ]
        assert ref.is_alive
    assert not ref.is_alive
    with pytest.raises(ActorStopped):
        ref.tell("late")
    with pytest.raises(ActorStopped):
        await ref.ask("late")
    with pytest.raises(ActorStopped):
        _ = counter.ref


async def test_local_messages_that_wait_are_handled_before_the_actor_stops(
    app: DistributedApplication,
) -> None:
    seen: list[int] = []

    class Counter(Actor):
        @on("count")
        async def count(self, payload: str) -> None: ...

        async def on_receive(self, message: int) -> None:
            await asyncio.sleep(0)
            seen.append(message)

        async def on_stop(self) -> None:
            seen.append(-1)

    counter = app.add(Counter)
    async with app:
        for number in range(5):
            counter.ref.tell(number)
    assert seen == [0, 1, 2, 3, 4, -1]


async def test_actors_of_an_application_ask_each_other_and_a_cycle_is_named(
    app: DistributedApplication,
) -> None:
    class Front(Actor):
        @on("front")
        async def ask(self, payload: str) -> str:
            return str(await back.ref.ask(payload))

        async def on_receive(self, message: Any) -> Any:
            return "never"

    class Back(Actor):
        @on("back")
        async def nothing(self, payload: str) -> None: ...

        async def on_receive(self, message: Any) -> Any:
            if message == "cycle":
                return await front.ref.ask("x")
            return f"back {message}"

    front, back = app.add(Front), app.add(Back)
    answers: list[str] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        answers.append(await socket.request("front", "hello", reply=str, timeout=5.0))
        with pytest.raises(RemoteError, match="DeadlockDetected") as caught:
            await socket.request("front", "cycle", timeout=5.0)
        answers.append(caught.value.text)

    async with app:
        await eventually(lambda: len(answers) == 2)
    assert answers[0] == "back hello"
    assert DeadlockDetected.__name__ in answers[1]
    assert "Front" in answers[1]
    assert "Back" in answers[1]


async def test_one_class_serves_as_several_actors(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        def __init__(self, answer: str) -> None:
            self.answer = answer

        @on("who")
        async def who(self, payload: str) -> str:
            return self.answer

    first = app.add(Boiler, "first")
    second = app.add(Boiler, "second")
    app.configure(second, name="second")
    async with app, talking(provider) as socket:
        answers = await socket.request_many("who", "x", reply=str, count=2, timeout=5.0)
        assert sorted(map(str, answers)) == ["first", "second"]
        assert (first.ref.name, second.ref.name) == ("Boiler", "second")


async def test_static_and_class_methods_can_be_handlers(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        factor: ClassVar[int] = 3

        @staticmethod
        @on("static")
        async def static(number: int) -> int:
            return number + 1

        @classmethod
        @on("class")
        async def of_class(cls, number: int) -> int:
            return number * cls.factor

    app.add(Boiler)
    async with app, talking(provider) as socket:
        assert await socket.request("class", 5, reply=int, timeout=5.0) == 15
        assert await socket.request("static", 5, reply=int, timeout=5.0) == 6


async def test_an_actor_that_raises_goes_on_with_the_same_instance(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        retry = RetryPolicy(attempts=1)

        def __init__(self) -> None:
            self.count = 0

        @on("a")
        async def measured(self, payload: str) -> None:
            self.count += 1
            raise ValueError("no")

        @on("count")
        async def how_many(self, payload: str) -> int:
            return self.count

    app.add(Boiler)
    async with app, talking(provider) as socket:
        await socket.publish("a", "1")
        await socket.publish("a", "2")
        assert await socket.request("count", "x", reply=int, timeout=5.0) == 2
        assert app.stats["dead_letters.stored"] == 2


async def test_hooks_may_be_plain_functions_and_need_no_super_init(
    app: DistributedApplication,
) -> None:
    events: list[str] = []

    class Base(Actor):
        def __init__(self) -> None:
            events.append("init")

        def on_start(self) -> None:
            events.append(f"start {self.actor_ref.name}")

        @on("a")
        async def measured(self, payload: str) -> None: ...

        def on_stop(self) -> None:
            events.append("stop")

    class Boiler(Base):
        def __init__(self) -> None:
            events.append("own init")

    app.add(Boiler)
    async with app:
        pass
    assert events == ["own init", "start Boiler", "stop"]


@pytest.mark.virtual
async def test_the_seeds_way_to_reply_works_from_a_class(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        @on("a")
        async def seed(
            self, message: Message[str], socket: Socket, message_builder: MessageBuilder
        ) -> None:
            await socket.publish(
                message_builder(topic=message.response_topic, payload=message.payload.upper())
            )

        @on("b")
        async def direct(self, message: Message[str]) -> str:
            await message.reply("first", headers={"mine": "1"})
            return "second"

    app.add(Boiler)
    async with app, talking(provider) as socket:
        assert await socket.request("a", "x", reply=str, timeout=5.0) == "X"
        reply = await socket.request("b", "x", reply=Message[str], timeout=5.0)
        assert (reply.payload, reply.headers["mine"]) == ("first", "1")
        await asyncio.sleep(0.01)
    assert app.stats["replies.dropped"] == 0


async def test_an_actor_can_stop_from_inside_through_its_reference(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str, context: Context) -> None: ...

        async def on_receive(self, message: Any) -> None:
            self.stop()

    spec = app.add(Boiler)
    async with app, talking(provider) as socket:
        ref = spec.ref
        ref.tell("stop")
        await eventually(lambda: not ref.is_alive)
        for number in range(3):
            await socket.publish("a", str(number))
    # What nobody handled stays with the bus.
    assert len(provider.broker.queues["plant.0.Boiler"]) == 3
    async with app:
        await eventually(lambda: app.stats["messages.handled"] == 3)


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_an_actor_that_is_stopped_by_reference_leaves_its_subscription_like_any_other(
    app: DistributedApplication, provider: MemoryProvider, concurrency: int
) -> None:
    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str) -> None: ...

    @app.application("a", name="other")
    async def other(payload: str, context: Context) -> None:
        context.stop()

    spec = app.add(Boiler)
    app.configure(spec, concurrency=concurrency)
    async with app, talking(provider) as socket:
        ended = asyncio.ensure_future(app.wait())
        await spec.refs[0].stop()
        # An actor that takes nothing any more must not look like one that does.
        await eventually(lambda: "plant.0.Boiler" not in provider.broker.links)
        assert not ended.done()
        await socket.publish("a", "1")
        # And when no other one is left, there is nothing more to do.
        await ended


async def test_hooks_may_ask_for_what_producers_may() -> None:
    seen: list[object] = []

    @contextlib.asynccontextmanager
    async def database() -> AsyncIterator[str]:
        yield "open"

    class Greeter(Actor):
        ressources: ClassVar = {"db": database}

        async def on_start(self, socket: Socket, context: Context, db: str) -> None:
            self.socket = socket
            await socket.publish("greetings", f"{context.actor} {db}", retain=True)

        def on_stop(self, db: str) -> None:
            seen.append(f"stopped {db}")

        @on("greetings")
        async def greeted(self, payload: str) -> None:
            seen.append(payload)

    app = DistributedApplication("memory://", name="hooks")
    app.add(Greeter)
    async with app:
        await eventually(lambda: "Greeter open" in seen)
    assert seen[-1] == "stopped open"


def test_a_hook_that_nobody_can_fill_is_refused() -> None:
    class Wrong(Actor):
        async def on_start(self, sokcet: Socket, number: int) -> None: ...

        @on("a")
        async def take(self, payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match="number"):
        DistributedApplication("memory://").add(Wrong)


def test_a_plain_hook_can_not_ask_for_a_socket() -> None:
    class Wrong(Actor):
        def on_stop(self, socket: SyncSocket) -> None: ...

        @on("a")
        async def take(self, payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match="async def"):
        DistributedApplication("memory://").add(Wrong)


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_receive", "on_failure"])
def test_a_hook_that_is_no_method_is_refused(hook: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Wrong.{hook} is 5"):
        type("Wrong", (Actor,), {hook: 5})


@pytest.mark.parametrize("frozen", [False, True])
async def test_an_actor_may_be_a_dataclass_that_is_not_frozen(frozen: bool) -> None:
    as_dataclass: Any = dataclass

    @as_dataclass(frozen=frozen)
    class Limit(Actor):
        limit: int = 5

        @on("a")
        async def take(self, payload: str) -> None: ...

        async def on_receive(self, message: object) -> int:
            return self.limit

    app = DistributedApplication("memory://", name="app")
    if frozen:
        with pytest.raises(ConfigurationError, match="Limit is a frozen dataclass"):
            app.add(Limit)
        return
    spec = app.add(Limit)
    async with app:
        assert await spec.ref.ask("limit") == 5


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_receive", "on_failure"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_that_would_never_run_is_refused(hook: str, is_async: bool) -> None:
    def plain(self: Any, *args: Any) -> Any:
        yield

    async def asynchronous(self: Any, *args: Any) -> Any:
        yield

    with pytest.raises(ConfigurationError, match=rf"Boiler\.{hook} is a generator"):
        type("Boiler", (Actor,), {hook: asynchronous if is_async else plain})


async def test_a_generator_can_not_be_put_off(
    app: DistributedApplication, provider: MemoryProvider
) -> None:
    problems: list[str] = []

    def plain() -> Any:
        yield

    async def asynchronous() -> Any:
        yield

    @app.application("a")
    async def handler(payload: str, context: Context) -> None:
        for function in (plain, asynchronous):
            with pytest.raises(ConfigurationError, match="it is a generator") as caught:
                context.later(0, function)
            problems.append(str(caught.value))

    async with app, talking(provider) as socket:
        await socket.publish("a", "x")
        await eventually(lambda: len(problems) == 2)
