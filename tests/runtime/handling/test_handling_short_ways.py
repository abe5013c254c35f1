"""Handled the short way or the long way, a message means the same; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from spa_dat import Context, Message, RetryPolicy, Socket
from spa_dat.runtime.handling._handler_calls import HandlerCaller
from support.memory import Site

pytestmark = pytest.mark.virtual

BOUND: ContextVar[str] = ContextVar("bound", default="nothing")


async def done(number: int, context: Context, socket: Socket) -> None:
    """It ends with its first step."""


async def waits(number: int, context: Context, socket: Socket) -> None:
    await asyncio.sleep(0.1)


async def posts(number: int, context: Context, socket: Socket) -> None:
    socket.post("out", number)
    await asyncio.sleep(0.1)
    socket.post("out", number)


async def posts_and_is_refused(number: int, context: Context, socket: Socket) -> None:
    socket.post("refused", number)


async def publishes(number: int, context: Context, socket: Socket) -> None:
    await socket.publish("out", number)


async def fails_once(number: int, context: Context, socket: Socket) -> None:
    if context.attempt == 1:
        raise ValueError(number)


async def posts_and_fails(number: int, context: Context, socket: Socket) -> None:
    socket.post("out", number)
    await asyncio.sleep(0.1)
    raise ValueError(number)


async def is_cancelled(number: int, context: Context, socket: Socket) -> None:
    raise asyncio.CancelledError


async def exits_a_generator(number: int, context: Context, socket: Socket) -> None:
    raise GeneratorExit


async def cancels_itself_and_is_done(number: int, context: Context, socket: Socket) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    socket.post("out", number)


async def observed(
    code: Callable[[int, Context, Socket], Awaitable[None]],
) -> tuple[list[Any], list[Any], dict[str, int]]:
    """What the code has seen, what others have of it afterwards, and what was counted."""
    site = Site()
    app = site.app()
    seen: list[Any] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2, first=1.0))
    async def handle(number: int, context: Context, socket: Socket, message: Message[int]) -> None:
        now = asyncio.get_running_loop().time() - began
        seen.append((number, context.attempt, message.id, BOUND.get(), round(now, 2)))
        BOUND.set("by an earlier message")
        await code(number, context, socket)

    @app.application("raw", name="raw")
    async def take(payload: bytes) -> None:
        seen.append(payload)
        if payload == b"bad":
            raise ValueError(payload)

    async with app:
        began = asyncio.get_running_loop().time()
        out = site.watch("out")
        site.faults.refuse_publish("refused")
        site.number("n", 1)
        site.publish("n", "no number", id="undecodable")
        site.number("n", 2)
        site.publish("raw", "good", id="good")
        site.publish("raw", "bad", id="bad")
        await site.settled()
        await site.settled("app.0.raw")
        left: list[Any] = [
            (letter.payload, letter.headers["spa_dead_error"], letter.headers["spa_dead_attempts"])
            for letter in site.letters()
        ]
        left += [(envelope.payload, envelope.id) for envelope in out.envelopes]
    counted = {name: count for name, count in app.stats.items() if name.startswith("messages.")}
    return seen, left, counted


@pytest.mark.parametrize(
    ("code", "attempts", "handled", "errors"),
    [
        (done, 1, 2, []),
        (waits, 1, 2, []),
        (posts, 1, 2, []),
        (posts_and_is_refused, 1, 2, ["PublishRefused"] * 2),
        (publishes, 1, 2, []),
        (fails_once, 2, 2, []),
        (posts_and_fails, 2, 0, ["ValueError"] * 2),
        (is_cancelled, 2, 0, ["RuntimeError"] * 2),
        (exits_a_generator, 2, 0, ["RuntimeError"] * 2),
        (cancels_itself_and_is_done, 1, 2, []),
    ],
)
async def test_a_message_means_the_same_the_short_way_and_the_long_way(
    code: Callable[[int, Context, Socket], Awaitable[None]],
    attempts: int,
    handled: int,
    errors: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = await observed(code)
    monkeypatch.setattr(HandlerCaller, "direct", lambda self, instance: [None] * 2)
    assert await observed(code) == short
    seen, left, counted = short
    numbered = [note for note in seen if isinstance(note, tuple)]
    assert [note[:2] for note in numbered] == [
        (number, attempt) for number in (1, 2) for attempt in range(1, attempts + 1)
    ]
    assert {note[3] for note in numbered} == {"nothing"}
    assert counted["messages.handled"] == handled + 1
    assert counted["messages.undecodable"] == 1
    failed = sorted(note[1] for note in left if len(note) == 3)
    assert failed == sorted([*errors, "DecodeError", "ValueError"])
