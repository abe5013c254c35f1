"""Each attempt at a message has context variables of its own, and its child tasks have those."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from contextvars import ContextVar
from typing import Any

import pytest

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, on
from spa_dat.actors import ActorSystem
from spa_dat.runtime.diagnostics._stacks import frames_of
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

user: ContextVar[str | None] = ContextVar("user", default=None)


@dataclasses.dataclass
class Login:
    """Binds a variable when it is decoded."""

    name: str

    def __post_init__(self) -> None:
        seen_by_payloads.append(user.get())
        user.set(self.name)


seen_by_payloads: list[str | None] = []


@pytest.mark.parametrize("kind", ["async", "waiting", "deadline", "def", "batch", "whole message"])
async def test_a_message_does_not_see_what_an_earlier_one_has_bound(kind: str) -> None:
    site = Site()
    app = site.app()
    seen: list[str | None] = []

    def bind(number: int) -> None:
        seen.append(user.get())
        user.set(f"user {number}")

    if kind == "def":

        @app.application("n", name="actor")
        def plain(number: int) -> None:
            bind(number)

    elif kind == "batch":

        @app.application("n", name="actor", batch=(1, 0))
        async def batch(numbers: list[int]) -> None:
            bind(numbers[0])

    elif kind == "whole message":

        @app.application("n", name="actor")
        async def whole(number: int, context: Context) -> None:
            bind(number)

    else:

        @app.application("n", name="actor", deadline=5.0 if kind == "deadline" else None)
        async def handle(number: int) -> None:
            if kind == "waiting":
                await asyncio.sleep(0.01)
            bind(number)
            await asyncio.sleep(0)
            assert user.get() == f"user {number}"

    async with app:
        site.number("n", 1, 2, 3)
        await site.settled()
    assert seen == [None] * 3
    assert user.get() is None


@pytest.mark.parametrize("batch", [None, (3, 0.1)])
async def test_an_attempt_does_not_see_what_the_one_before_has_bound(
    batch: tuple[int, float] | None,
) -> None:
    site = Site()
    app = site.app()
    seen: list[str | None] = []

    async def handle(payload: Any) -> None:
        seen.append(user.get())
        user.set("somebody")
        raise ValueError

    handle.__annotations__["payload"] = int if batch is None else list[int]
    app.application("n", name="actor", batch=batch, retry=RetryPolicy(attempts=3))(handle)
    async with app:
        site.number("n", 1)
        await site.settled()
    assert seen == [None] * 3


async def test_what_a_payload_binds_belongs_to_its_message() -> None:
    site = Site()
    app = site.app()
    seen_by_payloads.clear()

    @app.application("n", name="actor")
    async def handle(login: Login) -> None: ...

    @app.application("m", name="other", deadline=5.0)
    async def slowly(login: Login, context: Context) -> None: ...

    async with app:
        for topic in ("n", "m") * 2:
            site.publish(topic, '{"name": "x"}', content_type="application/json")
        await site.settled()
        await site.settled("app.0.other")
    assert seen_by_payloads == [None] * 4


async def test_what_a_payload_of_a_batch_binds_is_seen_by_nobody_else() -> None:
    site = Site()
    app = site.app()
    seen_by_payloads.clear()
    seen: list[str | None] = []

    class Together(Actor):
        batch = (1, 0)
        retry = RetryPolicy(attempts=2)

        @on("n")
        async def handle(self, logins: list[Login], context: Context) -> None:
            seen.append(user.get())
            if context.attempt == 1:
                raise ValueError

        async def on_receive(self, message: Any) -> str | None:
            return user.get()

    spec = app.add(Together)
    async with app:
        for _ in range(2):
            site.publish("n", '{"name": "x"}', content_type="application/json")
        await site.settled("app.0.Together")
        assert await spec.ref.ask("who") is None
    assert seen_by_payloads == [None] * 4
    assert seen == [None] * 4


async def test_hooks_timers_producers_and_constructors_bind_nothing_for_others() -> None:
    app = DistributedApplication("memory://", name="app")
    seen: dict[str, str | None] = {}

    class Meter(Actor):
        def __init__(self) -> None:
            seen["__init__"] = user.get()
            user.set("__init__")

        async def on_start(self, context: Context) -> None:
            seen["on_start"] = user.get()
            user.set("on_start")
            context.later(1, self.tick, "first")
            context.later(2, self.tick, "second")

        def tick(self, name: str) -> None:
            seen[name] = user.get()
            user.set(name)

        @on("n")
        async def handle(self, number: int, context: Context) -> None:
            seen["message"] = user.get()
            user.set("message")

        def on_stop(self) -> None:
            seen["on_stop"] = user.get()

    app.add(Meter)
    calls: list[str | None] = []

    @app.producer(every=1)
    async def produce() -> None:
        calls.append(user.get())
        user.set("producer")

    async with app:
        await app.socket().publish("n", 1)
        await eventually(lambda: "second" in seen and len(calls) >= 2)
    assert list(seen) == ["__init__", "on_start", "message", "first", "second", "on_stop"]
    assert set(seen.values()) == {None}
    assert set(calls) == {None}
    assert user.get() is None


async def test_child_tasks_and_timers_of_a_message_see_what_it_has_bound() -> None:
    site = Site()
    app = site.app()
    seen: list[tuple[str, int, str | None]] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        user.set(f"user {number}")
        loop = asyncio.get_running_loop()
        loop.call_later(1, lambda: seen.append(("timer", number, user.get())))
        loop.create_task(later(number))  # noqa: RUF006

    async def later(number: int) -> None:
        await asyncio.sleep(0.5)
        seen.append(("task", number, user.get()))
        user.set("nobody's")

    async with app:
        site.number("n", 1, 2)
        await eventually(lambda: len(seen) == 4)
    assert sorted(seen) == [
        (kind, number, f"user {number}") for kind in ("task", "timer") for number in (1, 2)
    ]


async def test_local_messages_have_contexts_of_their_own() -> None:
    class Local(Actor):
        def on_receive(self, message: Any) -> Any:
            return self.slowly(message) if message == "async" else self.at_once(message)

        def at_once(self, message: Any) -> str | None:
            before = user.get()
            user.set(message)
            return before

        async def slowly(self, message: Any) -> str | None:
            before = user.get()
            user.set(message)
            await asyncio.sleep(0)
            assert user.get() == message
            return before

    system = ActorSystem()
    ref = system.spawn(Local)
    for message in ("sync", "async") * 2:
        assert await ref.ask(message) is None
    await system.stop_all(timeout=5)


async def test_an_actor_begins_with_the_context_in_which_its_application_was_started() -> None:
    site = Site()
    app = site.app()
    seen: list[str | None] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        seen.append(user.get())
        token = user.set("other")
        await asyncio.sleep(0)
        user.reset(token)

    token = user.set("everybody")
    try:
        async with app:
            site.number("n", 1, 2)
            await site.settled()
    finally:
        user.reset(token)
    assert seen == ["everybody"] * 2


async def test_current_task_is_the_actors_and_a_copied_context_is_the_messages() -> None:
    site = Site()
    app = site.app()
    tasks: set[Any] = set()
    copies: list[contextvars.Context] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        user.set(f"user {number}")
        await asyncio.sleep(0)
        tasks.add(asyncio.current_task())
        copies.append(contextvars.copy_context())

    async with app:
        site.number("n", 1, 2)
        await site.settled()
    assert len(tasks) == 1
    assert [copy[user] for copy in copies] == ["user 1", "user 2"]


async def test_where_a_handler_waits_can_be_told() -> None:
    site = Site()
    app = site.app()
    tasks: list[asyncio.Task[Any] | None] = []

    @app.application("n", name="actor")
    async def handle(number: int) -> None:
        tasks.append(asyncio.current_task())
        await inner()

    async def inner() -> None:
        await asyncio.sleep(1)

    async with app:
        site.number("n", 1)
        await eventually(lambda: bool(tasks))
        (task,) = tasks
        assert task is not None
        await asyncio.sleep(0)
        names = [frame.f_code.co_name for frame in frames_of(task)]
        assert names[-3:] == ["handle", "inner", "sleep"]
        assert names.count("handle") == 2  # the runtime's, and the user's
        await site.settled()
