"""The short ways in the loop over a mailbox mean the same as the calls that they stand for."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from spa_dat.actors import (
    Actor,
    ActorRef,
    ActorSystem,
    Mailbox,
    Overflow,
    _actor_cell,
    _deadlocks,
    _isolation,
)
from spa_dat.actors._deadlocks import CURRENT, Frame, current_actor, current_frame
from spa_dat.actors._isolation import end_code
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


SET_LATER: ContextVar[str] = ContextVar("set_later")
OTHERS = [ContextVar[int](f"other_{number}") for number in range(60)]

Views = list[str | None]


def look(views: Views) -> None:
    views.append(current_actor())


def look_with_a_variable(views: Views) -> None:
    SET_LATER.set("by what was left behind")
    look(views)


async def look_in_a_task(views: Views) -> None:
    look_with_a_variable(views)


def leave_callback(views: Views) -> Any:
    return asyncio.get_running_loop().call_soon(look, views)


def leave_callback_and_variable(views: Views) -> Any:
    left = leave_callback(views)
    BOUND.set("by the message")
    return left


def leave_task(views: Views) -> Any:
    return asyncio.ensure_future(look_in_a_task(views))


def leave_other_context(views: Views) -> Any:
    other = copy_context()
    other.run(SET_LATER.set, "by the message")
    return asyncio.get_running_loop().call_soon(look, views, context=other)


def leave_ask(views: Views) -> Any:
    frame = current_frame()
    return asyncio.get_running_loop().call_soon(
        lambda: views.append(None if frame is None or not frame.active else frame.name),
        context=Context(),
    )


def with_few_variables(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Run a test without the context variables that other tests and plugins have left."""

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        await asyncio.create_task(test(*args, **kwargs), context=Context())

    return run


class Leaves(Actor):
    """Leaves something behind, and in the next message waits until that has had a look."""

    def __init__(self, leave: Callable[[Views], Any]) -> None:
        self.leave = leave
        self.left: list[Any] = []
        self.views: Views = []
        self.own: Views = []

    async def on_receive(self, message: Any) -> None:
        if message == "leave":
            self.left.append(self.leave(self.views))
        elif message == "wait":
            await eventually(lambda: len(self.views) == len(self.left))
            self.own.append(current_actor())


@pytest.mark.parametrize("variables", [0, len(OTHERS)], ids=["few variables", "many variables"])
@pytest.mark.parametrize(
    "leave",
    [leave_callback, leave_callback_and_variable, leave_task, leave_other_context, leave_ask],
)
async def test_what_a_message_leaves_behind_is_no_part_of_the_next_one(
    leave: Callable[[Views], Any], variables: int
) -> None:
    for other in OTHERS[:variables]:
        other.set(1)
    system, actor = ActorSystem(), Leaves(leave)
    ref = system.spawn(lambda: actor, name="leaves", mailbox=Mailbox(1_000))
    for _ in range(3):
        # In one go, and with messages before it that leave nothing behind.
        for message in ("nothing", "nothing", "leave", "wait"):
            ref.tell(message)
    await ref.ask("nothing")
    assert actor.views == [None] * 3
    assert actor.own == ["leaves"] * 3
    await system.stop_all(timeout=10)


@pytest.mark.skipif(not _deadlocks._COUNTS_LOCALS, reason="each message has its own here")
@with_few_variables
async def test_messages_that_leave_nothing_behind_share_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []

    class CountedFrame(Frame):
        def __post_init__(self) -> None:
            made.append(self.name)

    monkeypatch.setattr(_actor_cell, "Frame", CountedFrame)
    system = ActorSystem()
    ref = system.spawn(lambda: Leaves(leave_task), name="leaves", mailbox=Mailbox(1_000))
    for _ in range(10):
        for _ in range(100):
            ref.tell("nothing")
        await ref.ask("nothing")
    assert 1 <= len(made) < 10
    await system.stop_all(timeout=10)


@pytest.mark.skipif(not _deadlocks._COUNTS_LOCALS, reason="each message has its own here")
@with_few_variables
async def test_a_frame_is_shared_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class CountedFrame(Frame):
        def __post_init__(self) -> None:
            made.append(self.name)

    system, actor = ActorSystem(), Leaves(leave_task)
    ref = system.spawn(lambda: actor, name="leaves", mailbox=Mailbox(1_000))
    ref.tell("leave")
    ref.tell("wait")
    await ref.ask("nothing")
    monkeypatch.setattr(_actor_cell, "Frame", CountedFrame)
    for _ in range(500):
        ref.tell("nothing")
    await ref.ask("nothing")
    assert len(made) < 100
    await system.stop_all(timeout=10)


async def test_runs_of_first_steps_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = _isolation._first_steps

    def counted() -> Any:
        made.append(1)
        return make()

    monkeypatch.setattr(_isolation, "_first_steps", counted)
    monkeypatch.setattr(_isolation, "_spare_steps", [])
    system = ActorSystem()
    refs = [system.spawn(lambda: Leaves(leave_task)) for _ in range(5)]
    for _ in range(10):
        for ref in refs:
            for _ in range(10):
                ref.tell("nothing")
            await ref.ask("nothing")
    assert len(made) <= len(refs)
    await system.stop_all(timeout=10)


async def test_what_the_last_message_leaves_behind_is_no_part_of_an_idle_actor() -> None:
    system, actor = ActorSystem(), Leaves(leave_callback)
    ref = system.spawn(lambda: actor, name="leaves")
    ref.tell("nothing")
    ref.tell("leave")
    await eventually(lambda: len(actor.views) == 1)
    assert actor.views == [None]
    await system.stop_all(timeout=10)


async def test_what_a_told_message_returns_is_not_kept() -> None:
    class Result: ...

    class Returns(Actor):
        result: weakref.ref[Result] | None = None

        async def on_receive(self, message: Any) -> Result:
            result = Result()
            self.result = weakref.ref(result)
            return result

    system, actor = ActorSystem(), Returns()
    system.spawn(lambda: actor).tell("message")
    await eventually(lambda: actor.result is not None)
    assert actor.result is not None
    assert actor.result() is None
    await system.stop_all(timeout=10)


async def test_a_mailbox_of_another_kind_is_offered_what_is_told() -> None:
    class Noting(Mailbox):
        __slots__ = ("noted",)

        def offer(self, item: Any) -> bool:
            self.noted = item.message
            return super().offer(item)

    system, kept, mailbox = ActorSystem(), Kept(), Noting()
    ref = system.spawn(lambda: kept, mailbox=mailbox)
    ref.tell("message")
    assert mailbox.noted == "message"
    await eventually(lambda: kept.seen == ["message"])
    await system.stop_all(timeout=10)


class Receives(Actor):
    """Gets items without a reference, as lanes do, and leaves something behind."""

    def __init__(self) -> None:
        self.views: Views = []

    async def take(self, item: Callable[[Views], Any]) -> None:
        own = current_frame()
        assert own is not None
        assert own.active
        item(self.views)


async def ends_its_code_and_leaves(instance: Receives, item: Any) -> None:
    await instance.take(item)
    # As for a message whose posts are still to be confirmed.
    end_code()


@pytest.mark.parametrize("receive", [Receives.take, ends_its_code_and_leaves])
@pytest.mark.parametrize(
    "leave", [leave_callback, leave_callback_and_variable, leave_task, leave_other_context]
)
async def test_what_an_item_leaves_behind_is_no_part_of_the_next_one(
    receive: Any, leave: Callable[[Views], Any]
) -> None:
    system, actor, mailbox = ActorSystem(), Receives(), Mailbox()
    system.spawn(lambda: actor, name="receives", mailbox=mailbox, receive=receive)
    for _ in range(3):
        for item in (id, id, leave, id, id):
            mailbox.force(item)
        await eventually(lambda: not mailbox.items)
    await eventually(lambda: len(actor.views) == 3)
    assert actor.views == [None] * 3
    await system.stop_all(timeout=10)


async def test_a_message_whose_code_has_ended_early_is_over_in_what_it_left_behind() -> None:
    left: list[Context] = []
    views: Views = []

    async def receive(instance: Kept, item: str) -> None:
        if item == "leave":
            # As many as the actor itself has of the table of variables, and gives up.
            left.extend((copy_context(), copy_context()))
            end_code()
        else:
            views.append(current_actor())
            views.append(left[0].run(current_actor))

    system, mailbox = ActorSystem(), Mailbox()
    system.spawn(Kept, name="receives", mailbox=mailbox, receive=receive)
    mailbox.force("leave")
    await eventually(lambda: len(left) == 2)
    await asyncio.sleep(0)
    mailbox.force("look")
    await eventually(lambda: len(views) == 2)
    assert views == ["receives", None]
    await system.stop_all(timeout=10)
