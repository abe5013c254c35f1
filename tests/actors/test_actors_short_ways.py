"""The short ways in the loop over a mailbox mean the same as the calls that they stand for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any

import pytest

from spa_dat.actors import Actor, ActorRef, ActorSystem, Mailbox, Overflow
from spa_dat.actors._deadlocks import CURRENT, Frame
from spa_dat.errors import ActorError
from support.waiting import eventually

BOUND: ContextVar[str] = ContextVar("bound", default="nothing")

Way = Callable[[ActorRef[Any], Mailbox, Any], Awaitable[BaseException | None]]


async def tell(ref: ActorRef[Any], mailbox: Mailbox, message: Any) -> None:
    """Without an asker: the first step is ``next`` with a default."""
    ref.tell(message)


async def ask(ref: ActorRef[Any], mailbox: Mailbox, message: Any) -> BaseException | None:
    """With an asker: the first step is ``send``."""
    try:
        assert await ref.ask(message) == "answer"
    except BaseException as error:
        return error
    return None


async def put(ref: ActorRef[Any], mailbox: Mailbox, message: Any) -> None:
    """No local message: `run_apart`, in calls."""
    mailbox.force(message)


class Later:
    """What can be awaited and is no coroutine."""

    def __init__(self, code: Callable[[], Any]) -> None:
        self.code = code

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.code()


class Code(Actor):
    """Runs the same code in each of the shapes that on_receive may have."""

    def __init__(self, error: Callable[[], BaseException] | None) -> None:
        self.error = error
        self.seen: list[tuple[str, bool]] = []
        self.frames: list[Frame] = []

    def code(self) -> str:
        frame = CURRENT.get()
        assert frame is not None
        self.seen.append((BOUND.get(), frame.active))
        self.frames.append(frame)
        BOUND.set("by an earlier message")
        if self.error is not None:
            raise self.error()
        return "answer"


class Plain(Code):
    def on_receive(self, message: Any) -> Any:
        return self.code()


class EndsAtOnce(Code):
    async def on_receive(self, message: Any) -> Any:
        return self.code()


class Waits(Code):
    async def on_receive(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return self.code()


class ReturnsAnAwaitable(Code):
    def on_receive(self, message: Any) -> Any:
        return Later(self.code)


class ReturnsACoroutine(Code):
    def on_receive(self, message: Any) -> Any:
        async def rest() -> Any:
            return self.code()

        return rest()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (None, None),
        (lambda: ValueError("wrong"), ValueError),
        (lambda: GeneratorExit("by hand"), RuntimeError),
        (lambda: StopAsyncIteration("by hand"), (StopAsyncIteration, RuntimeError)),
        (lambda: asyncio.CancelledError(), ActorError),
        (lambda: BaseExceptionGroup("both", [KeyboardInterrupt()]), BaseExceptionGroup),
    ],
    ids=["done", "error", "generator exit", "stop iteration", "cancelled", "group"],
)
@pytest.mark.parametrize("shape", [Plain, EndsAtOnce, Waits, ReturnsAnAwaitable, ReturnsACoroutine])
@pytest.mark.parametrize("way", [tell, ask, put])
async def test_a_message_means_the_same_however_it_comes(
    way: Way,
    shape: type[Code],
    error: Callable[[], BaseException] | None,
    raised: type[BaseException] | tuple[type[BaseException], ...] | None,
) -> None:
    failures: list[BaseException] = []
    system = ActorSystem(on_failure=lambda ref, error, where: failures.append(error))
    mailbox, code = Mailbox(), shape(error)
    ref = system.spawn(lambda: code, mailbox=mailbox)
    task = system.task(ref)
    for _ in range(3):
        answer = await way(ref, mailbox, "message")
        if answer is not None:
            failures.append(answer)
    await eventually(lambda: len(code.seen) == 3 and not code.frames[-1].active)
    assert code.seen == [("nothing", True)] * 3
    assert not any(frame.active or frame.parent or frame.waiter for frame in code.frames)
    assert [isinstance(failure, raised or ()) for failure in failures] == [True] * (
        0 if raised is None else 3
    )
    assert not task.done()
    assert not task.cancelling()
    await system.stop_all(timeout=10)
    assert len(failures) == (0 if raised is None else 3)


class Kept(Actor):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> None:
        self.seen.append(message)


async def taken_by_calls(mailbox: Mailbox, count: int) -> list[Any]:
    mailbox.bind(asyncio.get_running_loop(), "by calls")
    seen: list[Any] = []
    while len(seen) < count:
        await mailbox.arrival()
        seen.append(mailbox.get_nowait())
    return seen


async def taken_by_an_actor(mailbox: Mailbox, count: int) -> list[Any]:
    system, kept = ActorSystem(), Kept()
    system.spawn(lambda: kept, mailbox=mailbox)
    await eventually(lambda: len(kept.seen) == count)
    await system.stop_all(timeout=10)
    return kept.seen


@pytest.mark.parametrize("take", [taken_by_calls, taken_by_an_actor])
@pytest.mark.parametrize(
    ("mailbox", "count", "expected"),
    [
        (lambda: Mailbox(), 4, [10, 21, 30, 41]),
        (lambda: Mailbox(1), 4, [10, 21, 30, 41]),
        (lambda: Mailbox(4, Overflow.LATEST_BY_KEY, lambda item: item % 10), 2, [30, 41]),
    ],
    ids=["roomy", "full", "latest by key"],
)
async def test_what_is_taken_from_a_mailbox_is_the_same_whoever_takes_it(
    take: Callable[[Mailbox, int], Awaitable[list[Any]]],
    mailbox: Callable[[], Mailbox],
    count: int,
    expected: list[int],
) -> None:
    box = mailbox()
    puts = []
    for item in (10, 21, 30, 41):
        if box.overflow is Overflow.LATEST_BY_KEY:
            box.offer(item)
        else:
            puts.append(asyncio.ensure_future(box.put_wait(item)))
    await asyncio.sleep(0)
    assert await take(box, count) == expected
    await asyncio.gather(*puts)
    assert not box.items
