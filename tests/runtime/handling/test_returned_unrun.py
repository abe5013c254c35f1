"""Code that a handler returns instead of running it is a failure, and names the handler."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from spa_dat import Actor, Context, RetryPolicy
from spa_dat.actors import ActorSystem, returns_nothing
from spa_dat.errors import RestartLimitReached
from support.memory import Site
from support.waiting import eventually

pytestmark = pytest.mark.virtual

ONCE = RetryPolicy(attempts=1)


async def save() -> None:
    raise AssertionError("nobody awaits it")


async def lines() -> AsyncIterator[int]:
    yield 1


def numbers() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("code", [save, lines, numbers], ids=lambda code: code.__name__)
@pytest.mark.parametrize("kind", ["async", "deadline", "responder", "batch", "wrapped", "class"])
async def test_the_message_becomes_a_dead_letter(kind: str, code: Callable[[], Any]) -> None:
    site = Site()
    app = site.app()
    if kind == "class":

        class Store(Actor):
            topics = "n"
            retry = ONCE

            async def on_message(self, number: int) -> Any:
                return code()

        app.configure(app.add(Store), name="actor")
    elif kind == "batch":

        @app.application("n", name="actor", retry=ONCE, batch=(2, 0.1))
        async def store_all(numbers: list[int]) -> None:
            return code()  # type: ignore[no-any-return]

    elif kind == "wrapped":

        async def store_wrapped(number: int) -> Any:
            return code()

        @app.application("n", name="actor", retry=ONCE)
        @functools.wraps(store_wrapped)
        async def wrapper(**arguments: Any) -> Any:
            return await store_wrapped(**arguments)

    else:
        options: dict[str, Any] = {"deadline": 5.0} if kind == "deadline" else {}

        @app.application("n", name="actor", retry=ONCE, replies=kind == "responder", **options)
        async def store(number: int) -> None:
            return code()  # type: ignore[no-any-return]

    async with app:
        site.number("n", 1)
        await site.settled()
    (letter,) = site.letters()
    assert letter.headers["spa_dead_error"] == "ConfigurationError"
    text = letter.headers["spa_dead_text"]
    assert "tore" in text or "on_message" in text
    assert f"({code.__qualname__}), which nobody runs" in text


async def test_what_a_function_in_a_thread_returns_is_awaited_or_refused() -> None:
    site = Site()
    app = site.app()
    saved: list[int] = []

    async def save_it(number: int) -> None:
        saved.append(number)

    @app.application("n", name="actor", retry=ONCE)
    def store(number: int) -> Any:
        return save_it(number) if number else numbers()

    async with app:
        site.number("n", 0, 1)
        await site.settled()
    assert saved == [1]
    (letter,) = site.letters()
    assert "store() returned a generator" in letter.headers["spa_dead_text"]


async def test_producers_timers_and_local_messages_fail(caplog: pytest.LogCaptureFixture) -> None:
    app = Site().app()

    class Store(Actor):
        topics = "n"

        async def on_message(self, number: int) -> None: ...

        async def on_receive(self, message: str) -> Any:
            return save()

    store = app.add(Store)

    @app.producer(every=60)
    async def produce(context: Context) -> Any:
        async def put_off() -> Any:
            return save()

        context.later(1.0, put_off)
        return save()

    async with app:
        store.ref.tell("x")
        await eventually(lambda: app.stats["timers.failed"] > 0)
        assert app.stats["producers.failed"] == 1
        assert app.stats["actors.failed"] == 1
    assert "produce() returned a coroutine (save), which nobody runs" in caplog.text
    assert "on_receive returned a coroutine (save)" in caplog.text


async def test_a_hook_that_did_not_run_is_no_start(caplog: pytest.LogCaptureFixture) -> None:
    app = Site().app()

    class Store(Actor):
        topics = "n"

        async def on_start(self) -> Any:
            return save()

        async def on_message(self, number: int) -> None: ...

    app.add(Store)
    with pytest.raises(RestartLimitReached, match="which nobody"):
        async with app:
            pass


async def test_a_coroutine_that_somebody_runs_may_be_returned() -> None:
    site = Site()
    app = site.app()
    ran: list[int] = []

    async def helper(number: int) -> None:
        ran.append(number)

    @app.application("n", name="actor", retry=ONCE)
    async def handle(number: int) -> Any:
        coroutine = helper(number)
        if number == 1:
            await coroutine
            return coroutine
        return asyncio.ensure_future(coroutine)

    async with app:
        site.number("n", 1, 2)
        await site.settled()
        await eventually(lambda: ran == [1, 2])
    assert site.letters() == []


async def test_what_local_code_returns_is_still_the_answer() -> None:
    class Meter(Actor):
        async def on_receive(self, message: str) -> str:
            return message

    system = ActorSystem()
    ref = system.spawn(Meter)
    ref.tell("nobody waits")
    assert await ref.ask("answer") == "answer"
    await system.stop_all(timeout=5)


async def nothing(number: int) -> None:
    if number:
        return
    with contextlib.suppress(ValueError):
        return
    try:
        for _ in range(number):
            async with asyncio.timeout(number):
                return
    finally:
        logging.getLogger()


async def the_value(number: int) -> Any:
    return number


async def the_value_or_nothing(number: int) -> Any:
    return save() if number else None


async def nothing_or_the_value(number: int) -> Any:
    return None if number else save()


async def the_value_at_last(number: int) -> Any:
    try:
        return None
    finally:
        if number:
            return number  # noqa: B012


class Shapes:
    async def method(self, number: int) -> None: ...

    async def __call__(self, number: int) -> None: ...


@pytest.mark.parametrize(
    "function",
    [nothing, Shapes().method, functools.partial(nothing), functools.partial(nothing, 1)],
)
def test_nobody_has_to_look_at_what_returns_nothing(function: Any) -> None:
    assert returns_nothing(function)


def test_code_is_read_once_for_all_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyed:
        async def method(self) -> None:
            """Do nothing."""

    def note(handler: object, function: object) -> None: ...

    def again(code: object) -> None:
        raise AssertionError("each key has an instance, and reading takes longer than all else")

    assert returns_nothing(Keyed().method)
    assert returns_nothing(functools.partial(note, None))
    monkeypatch.setattr(dis, "get_instructions", again)
    assert returns_nothing(Keyed().method)
    assert returns_nothing(functools.partial(note, None))


@pytest.mark.parametrize(
    "function",
    [
        the_value,
        the_value_or_nothing,
        nothing_or_the_value,
        the_value_at_last,
        functools.partial(the_value),
        functools.partial(Shapes()),
        Shapes(),
    ],
)
def test_what_may_return_something_is_looked_at(function: Any) -> None:
    assert not returns_nothing(function)
