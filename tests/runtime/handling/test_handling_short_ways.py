"""Handled the short way or the long way, a message means the same; on virtual time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import msgspec
import pytest

from spa_dat import Context, Message, RetryPolicy, Socket
from spa_dat.actors import chain_names
from spa_dat.errors import RemoteError
from spa_dat.runtime.handling._delivery_processor import DeliveryProcessor
from spa_dat.runtime.handling._handler_calls import HandlerCaller
from spa_dat.transports import Envelope
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


# Requests.


async def answers(number: int, context: Context, socket: Socket, message: Message[int]) -> Any:
    """It ends with its first step."""
    return number + 1


async def answers_nothing(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    """Its reply is empty."""


async def waits_and_answers(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    await asyncio.sleep(0.1)
    return number + 1


async def posts_and_answers(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    socket.post("out", number)
    return number + 1


async def posts_what_is_refused(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    socket.post("refused", number)
    return number + 1


async def asks_in_a_circle(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    return await socket.request("n", number, timeout=5.0)


async def asks_by_a_task(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    return await asyncio.create_task(socket.request("n", number, timeout=5.0))


async def answers_by_hand(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    await message.reply(number + 1)
    return number + 2


async def answers_by_hand_and_fails(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    await message.reply(number + 1)
    raise ValueError(number)


async def answers_at_last(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    if context.attempt == 1:
        raise ValueError(number)
    return number + 1


async def refuses(number: int, context: Context, socket: Socket, message: Message[int]) -> Any:
    raise RemoteError("odd", "no such number")


async def answers_too_late(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    if number == 1:
        await asyncio.sleep(40.0)
    raise ValueError(number)


async def answers_with_code_that_never_runs(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    return asyncio.sleep(1.0)


async def forgets_an_await(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    socket.publish("out", number)  # type: ignore[unused-coroutine]
    return number + 1


async def answers_what_nobody_can_send(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    return {number: float("nan")}


async def answers_at_length(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    return bytes(2_000)


async def is_cancelled_and_answers_not(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    raise asyncio.CancelledError


async def raises_a_generators_exit(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    raise GeneratorExit


async def cancels_itself_and_answers(
    number: int, context: Context, socket: Socket, message: Message[int]
) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return number + 1


async def observed_requests(
    code: Callable[[int, Context, Socket, Message[int]], Awaitable[Any]],
) -> tuple[list[Any], list[Envelope], list[Envelope], dict[str, int]]:
    """What the code has seen, the replies and letters, and what was counted."""
    site = Site(max_payload=1_000)
    app = site.app()
    seen: list[Any] = []

    @app.application(
        "n", name="actor", retry=RetryPolicy(attempts=2, first=1.0), retry_requests=True
    )
    async def handle(number: int, context: Context, socket: Socket, message: Message[int]) -> Any:
        now = asyncio.get_running_loop().time() - began
        chain = chain_names()
        seen.append((number, context.attempt, message.id, BOUND.get(), chain, round(now, 2)))
        BOUND.set("by an earlier message")
        return await code(number, context, socket, message)

    @app.application("raw", name="raw")
    async def take(payload: bytes) -> bytes:
        seen.append(payload)
        return payload

    async with app:
        began = asyncio.get_running_loop().time()
        answers = site.watch("answers", "out")
        site.faults.refuse_publish("refused")
        request = {"response_topic": "answers", "correlation": b"c", "expiry": 30.0}
        site.number("n", 1, **request)
        site.publish("n", "no number", id="undecodable", **request)
        site.number("n", 2, headers={"spa_chain": "plant/0/asker,plant/0/other"}, **request)
        site.number("n", 3)
        site.publish("raw", "good", id="good", **request)
        site.publish("raw", "refused", id="refused", **request | {"response_topic": "_spa/other"})
        await site.settled()
        await site.settled("app.0.raw")
    counted = {
        name: count
        for name, count in app.stats.items()
        if name.startswith(("messages.", "requests.", "replies.", "posts."))
    }
    replies, letters = (
        # The time and the number of the broker are not those of the other way.
        [
            msgspec.structs.replace(
                envelope, time=None, payload=re.sub(rb"//~\d+", b"", envelope.payload)
            )
            for envelope in envelopes
        ]
        for envelopes in (answers.envelopes, site.letters())
    )
    # Only of one actor is the order certain.
    return seen, sorted(replies, key=lambda reply: str(reply.source)), letters, counted


@pytest.mark.parametrize(
    "code",
    [
        answers,
        answers_nothing,
        waits_and_answers,
        posts_and_answers,
        posts_what_is_refused,
        asks_in_a_circle,
        asks_by_a_task,
        answers_by_hand,
        answers_by_hand_and_fails,
        answers_at_last,
        refuses,
        answers_too_late,
        answers_with_code_that_never_runs,
        forgets_an_await,
        answers_what_nobody_can_send,
        answers_at_length,
        is_cancelled_and_answers_not,
        raises_a_generators_exit,
        cancels_itself_and_answers,
    ],
)
async def test_a_request_means_the_same_the_short_way_and_the_long_way(
    code: Callable[[int, Context, Socket, Message[int]], Awaitable[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = await observed_requests(code)
    monkeypatch.setattr(HandlerCaller, "direct", lambda self, instance: [None] * 2)
    assert await observed_requests(code) == short
    seen, replies, _, _ = short
    numbered = [note for note in seen if isinstance(note, tuple)]
    assert {note[3] for note in numbered} == {"nothing"}
    of_others = [note[4] for note in numbered if note[0] == 2]
    assert set(of_others) <= {("plant/0/asker", "plant/0/other", "app/0/actor")}
    assert [reply.payload for reply in replies if reply.payload == b"good"] == [b"good"]


async def test_a_request_that_meets_no_obstacle_takes_the_short_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long: list[str] = []
    fully = DeliveryProcessor._handle_fully

    async def told(self: Any, instance: Any, delivery: Any, *rest: Any) -> None:
        long.append(delivery.envelope.id)
        await fully(self, instance, delivery, *rest)

    monkeypatch.setattr(DeliveryProcessor, "_handle_fully", told)
    seen, replies, _, _ = await observed_requests(answers)
    assert [note[0] for note in seen if isinstance(note, tuple)] == [1, 2, 3]
    assert {b"2", b"3", b"good"} <= {reply.payload for reply in replies}
    assert long == ["refused"]
