"""What thousands of actors cost grows no faster than their number, and a message not at all."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from contextvars import Context
from types import FrameType
from typing import Any

import pytest

from spa_dat import DistributedApplication, Socket
from spa_dat.runtime.messaging._turn import Turn
from spa_dat.transports import TopicTrie


class Steps:
    """Counts the lines that run in the package: the same in each run, whatever the machine does."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Steps:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *args: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "spa_dat" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.count += 1
        return self._trace


def application(actors: int) -> DistributedApplication:
    app = DistributedApplication("memory://", name="plant", stop_timeout=60)

    async def handle(payload: bytes) -> None:
        pass

    for number in range(actors):
        app.application(f"machine/{number}", name=f"a{number}")(handle)
    return app


async def steps(actors: int, what: str) -> int:
    counted = Steps()
    if what == "register":
        with counted:
            application(actors)
        return counted.count
    app = application(actors)
    if what == "start":
        with counted:
            await app.__aenter__()
        await app.__aexit__(None, None, None)
        return counted.count
    await app.__aenter__()
    with counted:
        if what == "problems":
            assert app.problems == {}
        else:
            await app.__aexit__(None, None, None)
    if what != "stop":
        await app.__aexit__(None, None, None)
    return counted.count


@pytest.mark.parametrize("what", ["register", "start", "problems", "stop"])
async def test_four_times_the_actors_take_four_times_the_steps(what: str) -> None:
    few, many = await steps(50, what), await steps(200, what)

    # What is done for each pair of actors would make it up to 16 times.
    assert many < 4.5 * few


async def test_a_stop_makes_two_tasks_for_each_actor() -> None:
    """What it makes for all of them at once sets the garbage collector on all that there is."""
    made: list[asyncio.Task[Any]] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coroutine, loop=loop, **options))
        return made[-1]

    app = application(50)
    async with app:
        asyncio.get_running_loop().set_task_factory(make)
    asyncio.get_running_loop().set_task_factory(None)

    # One for the actor and one for its subscription.
    assert len(made) < 2 * 50 + 10


async def messages(actors: int, count: int) -> int:
    """Return the steps that ``count`` messages take, spread over the actors."""
    app, counted = application(actors), Steps()
    async with app:
        socket = app.socket()
        for topic in range(actors):
            await socket.publish(f"machine/{topic}", b"")
        with counted:
            for number in range(count):
                socket.post(f"machine/{number % actors}", b"")
                if number % 50 == 49:
                    await asyncio.sleep(0)
            while app.stats["messages.handled"] < actors + count:
                await asyncio.sleep(0)
    return counted.count


async def test_a_message_takes_the_same_steps_whatever_the_number_of_actors() -> None:
    few, many = await messages(2, 600), await messages(300, 600)

    # With few actors several messages are handled in one go.
    assert many < 1.5 * few


def look_ups(filters: int) -> int:
    trie: TopicTrie[int] = TopicTrie()
    topics = [f"machine/{number}" for number in range(filters)]
    for number, topic in enumerate(topics):
        trie.add(topic, number)
    for topic in topics:
        trie.match(topic)
    with Steps() as counted:
        for topic in topics:
            trie.match(topic)
    return counted.count


def test_topics_are_remembered_for_as_many_filters_as_there_are() -> None:
    few, many = look_ups(100), look_ups(10_000)

    assert many == 100 * few


async def test_an_idle_actor_keeps_nothing_of_its_last_message() -> None:
    app = application(3)
    async with app:
        for number in range(3):
            await app.socket().publish(f"machine/{number}", b"x" * 100_000)
        while app.stats["messages.handled"] < 3:
            await asyncio.sleep(0)

        kept = [it for it in gc.get_objects() if isinstance(it, Turn) and it.actor.endswith("/a1")]
        assert not kept


async def subscribe(filters: int, declared: int) -> tuple[int, int]:
    """Return the steps that it takes to subscribe at runtime, and those that 100 messages take."""
    app = DistributedApplication("memory://", name="plant", stop_timeout=60)
    subscribed, messages = Steps(), Steps()

    async def handle(payload: bytes, socket: Socket) -> None:
        if payload == b"subscribe":
            with subscribed:
                for number in range(filters):
                    await socket.subscribe(f"now/{number}")

    app.application([f"machine/{number}" for number in range(declared)], name="a")(handle)
    async with app:
        await app.socket().publish("machine/0", b"subscribe")
        while app.stats["messages.handled"] < 1:
            await asyncio.sleep(0)
        with messages:
            for _ in range(100):
                app.socket().post("now/0", b"")
            while app.stats["messages.handled"] < 101:
                await asyncio.sleep(0)
    return subscribed.count, messages.count


async def test_four_times_the_filters_at_runtime_take_four_times_the_steps() -> None:
    (few, message), (many, message_of_many) = await subscribe(50, 1), await subscribe(200, 1)

    assert many < 4.5 * few
    assert message_of_many < 1.5 * message


async def test_declared_filters_cost_nothing_of_a_message_to_filters_at_runtime() -> None:
    (_, few), (_, many) = await subscribe(1, 1), await subscribe(1, 200)

    assert many < 1.5 * few


async def retained(filters: int, ends: str) -> int:
    """Return the steps that it takes to start with filters that each have a retained message."""
    app = DistributedApplication("memory://retained", name="plant")
    other = DistributedApplication("memory://retained", name="other")

    async def handle(payload: bytes) -> None:
        pass

    other.application([f"machine/{n}{ends}" for n in range(filters)], name="a")(handle)
    async with app:
        for number in range(filters):
            await app.socket().publish(f"machine/{number}/on", b"x", retain=True)
        with Steps() as counted:
            await other.__aenter__()
        while other.stats["messages.handled"] < filters:
            await asyncio.sleep(0)
        await other.__aexit__(None, None, None)
    return counted.count


@pytest.mark.parametrize("ends", ["/on", "/+"])
async def test_four_times_the_retained_messages_and_filters_take_four_times_the_steps(
    ends: str,
) -> None:
    few, many = await retained(50, ends), await retained(200, ends)

    assert many < 4.5 * few


async def foreign_requests(actors: int) -> int:
    """Return the steps that 20 requests take whose replies go to a topic of the sender's."""
    app = DistributedApplication("memory://", name="plant", stop_timeout=60)

    async def answer(payload: bytes) -> bytes:
        return payload

    for number in range(actors):
        app.application(f"machine/{number}", name=f"a{number}", replies=True)(answer)
    async with app:
        connection = app.socket()._connection
        with Steps() as counted:
            for number in range(20):
                assert not connection.takes(f"elsewhere/{number}")
    return counted.count


async def test_whether_a_topic_is_taken_costs_no_look_at_each_actor() -> None:
    few, many = await foreign_requests(5), await foreign_requests(50)

    assert many == few


def test_a_message_leaves_an_idle_actor_with_few_objects_that_it_had_not_before() -> None:
    """The garbage collector goes through all objects each time a quarter of them is new."""
    actors = 50

    async def left_behind() -> Counter[str]:
        app = application(actors)

        async def to_each(rounds: int) -> None:
            handled = app.stats["messages.handled"] + rounds * actors
            for _ in range(rounds):
                for number in range(actors):
                    app.socket().post(f"machine/{number}", b"")
                await app.socket().drain()
            while app.stats["messages.handled"] < handled:
                await asyncio.sleep(0)

        async with app:
            await to_each(2)
            gc.collect()
            gc.disable()
            gc.freeze()
            try:
                await to_each(1)
                # A look at how old messages are may have come while one was there: it notes the
                # newest one of each actor until the next look.
                app.health()
                return Counter(type(it).__name__ for it in gc.get_objects())
            finally:
                gc.unfreeze()
                gc.enable()

    # In a context without variables, as a program has it: those that a test happens to have may be
    # in the way of the actor's own, which depends on their hashes, other ones in each process.
    new = Context().run(asyncio.run, left_behind())
    # What each of them waits with, and nothing else.
    there = {name for name, count in new.items() if count >= actors}
    assert there <= {"Future", "FutureIter", "builtin_function_or_method"}


def test_an_actor_without_a_message_has_no_variables_of_its_own() -> None:
    (table,) = gc.get_referents(Context())

    def count() -> int:
        return sum(type(it) is type(table) for it in gc.get_objects())

    async def tables() -> int:
        async with application(50):
            return count()

    gc.collect()
    before = count()
    # In a context without variables, as a program has it.
    assert Context().run(asyncio.run, tables()) - before < 10
