"""Isolation of an actor's code: who may cancel its task, its context, and what it may raise."""

from __future__ import annotations

import asyncio
import enum
import os
import sys
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, copy_context
from types import CoroutineType, FrameType, coroutine
from typing import Any, NoReturn

from .._logs import get_logger
from ._deadlocks import CURRENT, Frame, Named
from ._forked_processes import leave_from_executor, leave_process
from ._unrun_results import UNRUN, refuse_unrun

__all__ = [
    "DONE",
    "End",
    "FirstSteps",
    "Isolated",
    "TaskGuard",
    "end_attempt",
    "end_code",
    "give_back_steps",
    "go_on_apart",
    "interrupted_guard",
    "is_closing",
    "is_ending",
    "raised_by_hand",
    "run_apart",
    "stay_in_process",
    "take_steps",
]

_log = get_logger("spa_dat.actors")
_MOST_SPARE_STEPS = 64
_GROUPS = asyncio.TaskGroup.__module__
# A task group that waits when one of its tasks fails does not take its cancellation back.
_GROUPS_LEAVE_ONE = sys.version_info < (3, 13)
_NOTHING: Any = object()
DONE: Any = object()
"""What ``next(coroutine.__await__(), DONE)`` returns if the coroutine ends in its first step, and
what `FirstSteps` do. That costs a third less than ``send``, which raises; the result is lost."""

FirstSteps = Generator[Any, Any, None]
"""What `take_steps` returns."""

_spare_steps: list[FirstSteps] = []


class End(enum.Enum):
    """Why an actor's task is cancelled for good.

    Attributes:
        RESTART: its instance was dropped, and a new one takes over.
        KILL: the system ends it.
        OUTSIDE: code outside of actors, or the event loop, has cancelled the task.
    """

    RESTART = "restart"
    KILL = "kill"
    OUTSIDE = "outside"


class TaskGuard:
    """Keeps an actor's own code from ending the actor's task by cancelling it.

    Libraries cancel the task that runs them in order to end a wait, and some do so too late or
    forget to undo it (`asyncio.Task.uncancel`). A cancellation by code of the current message
    reaches that code only; one by code of an earlier message or of another actor is ignored.
    Outside of actors, and once the event loop has stopped, ``task.cancel()`` means what it says.

    Attributes:
        task: the actor's task.
        end: why the actor is being ended; None while it is not.
        interrupted: whether code of the current message has cancelled the task.

    Args:
        owner: the actor.
        task: its task.
        cleared: called for each cancellation that was undone or ignored.
    """

    __slots__ = (
        "_by_groups",
        "_cleared",
        "_owner",
        "_process",
        "_told",
        "end",
        "interrupted",
        "task",
    )

    def __init__(self, owner: Named, task: asyncio.Task[None], cleared: Callable[[], None]) -> None:
        self._owner = owner
        self._cleared = cleared
        self._process = os.getpid()
        self._told = False
        self._by_groups = 0
        self.end: End | None = None
        self.interrupted: bool = False
        self.task: asyncio.Task[None] = task
        # Not a subclass of Task: a loop's task factory decides on the class.
        task.cancel = self._asked  # type: ignore[method-assign]

    def cancel(self, end: End) -> None:
        """Cancel the task for good."""
        self.end = end
        asyncio.Task.cancel(self.task)

    def restarted(self) -> bool:
        """Undo the cancellation if it was for a restart; return whether it was."""
        if self.end is not End.RESTART:
            return False
        self.end = None
        self.task.uncancel()
        return True

    def release(self) -> None:
        """Restore the task's own ``cancel``, as the task has ended."""
        del self.task.cancel

    async def recover(self) -> None:
        """Undo cancellations that the code of a message has left behind."""
        self.stay_in_process()
        self.interrupted = False
        task = self.task
        left, by_groups = 0, self._by_groups
        self._by_groups = 0
        while self.end is None and task.cancelling():
            task.uncancel()
            left += 1
        try:
            # A cancellation that was requested while the code ran, but not delivered yet, arrives
            # here.
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self.end is not None:
                raise
            left += 1
        if left > by_groups:
            self._count()

    def stay_in_process(self, error: BaseException | None = None) -> None:
        """End a process that the actor's code has forked off and that has come back from it."""
        if os.getpid() != self._process:
            leave_process(self._owner.address, error)

    def _asked(self, msg: Any = None) -> bool:
        frame = CURRENT.get()
        if frame is None or asyncio._get_running_loop() is None:
            self.end = self.end or End.OUTSIDE
        elif frame.active and frame.owner is self._owner:
            self.interrupted = True
            if _GROUPS_LEAVE_ONE and sys._getframe(1).f_globals.get("__name__") == _GROUPS:
                self._by_groups += 1
        else:
            self._count()
            return False
        return asyncio.Task.cancel(self.task, msg)

    def _count(self) -> None:
        self._cleared()
        if not self._told:
            self._told = True
            _log.warning(
                "code run by actor %r cancelled the actor's task and did not undo that"
                " (Task.uncancel): the actor continues; further cases are only counted",
                self._owner.address,
            )


def is_ending() -> bool:
    """Return whether the running actor is being ended, or the running task if there is no actor."""
    guard = _guard(CURRENT.get())
    if guard is not None:
        return guard.end is not None
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_attempt() -> None:
    """Note that the code of a message has ended and the runtime takes over again.

    What that code has left behind, such as timers, can no longer cancel the actor.
    """
    guard = end_code()
    if guard is not None:
        await guard.recover()


def end_code() -> TaskGuard | None:
    """Do the cheap part of `end_attempt`; return the guard in the rare case it must `recover`."""
    frame = CURRENT.get()
    if frame is None:
        return None
    CURRENT.set(Frame(frame.owner, frame.parent, frame.waiter))
    frame.end()
    return interrupted_guard(frame)


def interrupted_guard(frame: Frame | None = None) -> TaskGuard | None:
    """Return the guard of the running actor in the rare case that it must `recover`.

    That is all of `end_attempt` for code that has not seen the actor's own frame.

    Args:
        frame: the actor's, if it is at hand.
    """
    guard = _guard(CURRENT.get() if frame is None else frame)
    return guard if guard is not None and guard.interrupted else None


def _guard(frame: Frame | None) -> TaskGuard | None:
    guard: TaskGuard | None = None if frame is None else getattr(frame.owner, "guard", None)
    return guard


class Isolated:
    """The rest of a coroutine that runs in its own context. Await it once.

    If it goes on in `FirstSteps`, its result is lost.

    It takes the coroutine's place, including for code that follows what a task is waiting for.

    Args:
        context: where the coroutine runs.
        coroutine: already started.
        waits_for: what its first step yielded.
        steps: what has run its first step, and goes on with it; None for itself.
    """

    __slots__ = ("_run", "_steps", "_waits_for", "cr_await")

    def __init__(
        self,
        context: Context,
        coroutine: Any,
        waits_for: Any,
        steps: FirstSteps | None = None,
    ) -> None:
        self._run = context.run
        self._steps = coroutine if steps is None else steps
        self._waits_for = waits_for
        self.cr_await: Any = coroutine

    @property
    def cr_frame(self) -> FrameType | None:
        """The coroutine's own frame."""
        frame: FrameType | None = self.cr_await.cr_frame
        return frame

    def __await__(self) -> Isolated:
        return self

    def __iter__(self) -> Isolated:
        return self

    def __next__(self) -> Any:
        waits_for = self._waits_for
        if waits_for is not _NOTHING:
            self._waits_for = _NOTHING
            return waits_for
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Run the next step."""
        try:
            waits_for = self._run(self._steps.send, value)
        except GeneratorExit as error:
            raised_by_hand(error)
        if waits_for is DONE:
            raise StopIteration
        return waits_for

    def throw(self, *error: Any) -> Any:
        """Run the next step with an error, such as a cancellation."""
        try:
            waits_for = self._run(self._steps.throw, *error)
        except GeneratorExit as raised:
            raised_by_hand(raised)
        finally:
            # The error's traceback refers to this frame.
            del error
        if waits_for is DONE:
            raise StopIteration
        return waits_for

    def close(self) -> None:
        """Close the coroutine."""
        self._run(self.cr_await.close)


def raised_by_hand(error: GeneratorExit) -> NoReturn:
    """Raise a substitute for a GeneratorExit that came out of an actor's code.

    The original would be taken for the closing of each coroutine that it passes through.
    """
    raise RuntimeError(f"the code raised GeneratorExit{error.args or ''}") from error


def is_closing(error: GeneratorExit) -> bool:
    """Return whether it comes from closing the coroutine that caught it, not from a callee."""
    traceback = error.__traceback__
    return traceback is None or traceback.tb_next is None


async def run_apart(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in a copy of the current context, and await the result there if necessary.

    Raises:
        BaseException: whatever it raises, except RuntimeError for a GeneratorExit.
    """
    # `actors._actor_cell.work` and `Handling.handle` do the same without the call.
    context = copy_context()
    process = os.getpid()
    try:
        try:
            result = context.run(function, *args, **kwargs)
        except GeneratorExit as error:
            raised_by_hand(error)
        if hasattr(result, "__await__"):
            return await go_on_apart(context, result)
        return result
    finally:
        if os.getpid() != process:
            frame = CURRENT.get()
            leave_process("an actor" if frame is None else frame.name)


async def go_on_apart(context: Context, awaitable: Any) -> Any:
    """Await something in a context."""
    # `actors._actor_cell.work` and `Handling.handle` do the same without the call.
    coroutine = awaitable if type(awaitable) is CoroutineType else _awaiting(awaitable)
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as done:
        return done.value
    except GeneratorExit as error:
        raised_by_hand(error)
    rest = Isolated(context, coroutine, waits_for)
    # The error may come from there, and refers to this frame.
    del waits_for
    return await rest


async def _awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def take_steps() -> FirstSteps:
    """Return what runs the first steps of one coroutine after another; see DONE.

    ``send`` it a coroutine: it returns DONE if that has ended, or else what that waits for. Nothing
    else may be sent to it until the coroutine has ended. The first error is its own end. Results
    are looked at as by `looked_at`, without a further coroutine for each.
    """
    try:
        return _spare_steps.pop()
    except IndexError:
        steps = _first_steps()
        next(steps)
        return steps


def give_back_steps(steps: FirstSteps) -> None:
    """Leave what `take_steps` has returned, and what has not ended, to the next one who needs it.

    Idle actors need none, and not every message has to make one.
    """
    if len(_spare_steps) < _MOST_SPARE_STEPS:
        _spare_steps.append(steps)


@coroutine
def _first_steps() -> FirstSteps:
    while True:
        result = yield from (yield DONE)
        if result is not None:
            if type(result) in UNRUN:
                refuse_unrun(result, "on_receive")
            # It must not be kept alive until the next one comes.
            result = None


def stay_in_process(error: BaseException | None) -> None:
    """End a process that the running actor's code has forked off and that has come back from it.

    Args:
        error: what the code has raised; None for what is being handled.
    """
    guard = _guard(CURRENT.get())
    if guard is not None:
        guard.stay_in_process(error)


def _forked() -> None:
    frame = CURRENT.get()
    leave_from_executor("a thread of an executor" if frame is None else frame.name)
    guard = _guard(frame)
    if guard is not None:
        guard.interrupted = True
    # What another process does is no part of the message.
    CURRENT.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
