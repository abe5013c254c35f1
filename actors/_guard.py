"""Who may cancel an actor's task, and what becomes of it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any

from .._logs import get_logger
from ._chain import CURRENT, Frame, Named

__all__ = ["End", "TaskGuard", "end_attempt", "end_code", "is_ending"]

_log = get_logger("spa_dat.actors")


class End(enum.Enum):
    """Why an actor's task is cancelled for good.

    Attributes:
        RESTART: its instance is lost, and a new one takes over.
        KILL: the system ends it.
        OUTSIDE: somebody outside of actors has cancelled the task, or the event loop has.
    """

    RESTART = "restart"
    KILL = "kill"
    OUTSIDE = "outside"


class TaskGuard:
    """Keeps an actor's own code from ending the actor's task by cancelling it.

    Libraries cancel the task that runs them in order to end a wait, and some do so too late or
    forget to take it back (`asyncio.Task.uncancel`). What code of the current message cancels
    reaches that code only. What code of an earlier message or of another actor cancels is left
    out. Outside of actors, and where the event loop has stopped, ``task.cancel()`` means what it
    says.

    Attributes:
        task: the actor's.
        end: why it is being ended; None while it is not.
        interrupted: code of the current message has cancelled it.

    Args:
        owner: the actor.
        task: its task.
        cleared: called for each cancellation that was taken back or left out.
    """

    __slots__ = ("_cleared", "_owner", "_told", "end", "interrupted", "task")

    def __init__(self, owner: Named, task: asyncio.Task[None], cleared: Callable[[], None]) -> None:
        self._owner = owner
        self._cleared = cleared
        self._told = False
        self.end: End | None = None
        self.interrupted = False
        self.task = task
        # Not a class derived from Task: a loop's task factory decides on the class.
        task.cancel = self._asked  # type: ignore[method-assign]

    def cancel(self, end: End) -> None:
        """Cancel the task for good."""
        self.end = end
        asyncio.Task.cancel(self.task)

    def restarted(self) -> bool:
        """Take the cancellation back if it was for a restart; whether it was."""
        if self.end is not End.RESTART:
            return False
        self.end = None
        self.task.uncancel()
        return True

    def release(self) -> None:
        """The task has ended."""
        del self.task.cancel

    async def recover(self) -> None:
        """Take back what the code of a message has left behind."""
        self.interrupted = False
        task = self.task
        left = False
        while self.end is None and task.cancelling():
            task.uncancel()
            left = True
        try:
            # What was asked for while the code ran, and is not delivered yet, comes here.
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self.end is not None:
                raise
            left = True
        if left:
            self._count()

    def _asked(self, msg: Any = None) -> bool:
        frame = CURRENT.get()
        if frame is None or asyncio._get_running_loop() is None:
            self.end = self.end or End.OUTSIDE
        elif frame.active and frame.owner is self._owner:
            self.interrupted = True
        else:
            self._count()
            return False
        return asyncio.Task.cancel(self.task, msg)

    def _count(self) -> None:
        self._cleared()
        if not self._told:
            self._told = True
            _log.warning(
                "code that actor %r has run cancelled the actor's task and did not take that back"
                " (Task.uncancel): it goes on; further ones are counted",
                self._owner.address,
            )


def is_ending() -> bool:
    """Whether the running actor is being ended, or the running task where there is no actor."""
    guard = _guard(CURRENT.get())
    if guard is not None:
        return guard.end is not None
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_attempt() -> None:
    """The code of a message has ended, and the runtime goes on in its place.

    What that code has left behind, such as timers, can not cancel the actor any more.
    """
    guard = end_code()
    if guard is not None:
        await guard.recover()


def end_code() -> TaskGuard | None:
    """`end_attempt`, but for what is hardly ever to be done: the guard has to `recover`, if any."""
    frame = CURRENT.get()
    if frame is None:
        return None
    CURRENT.set(Frame(frame.owner, frame.parent, frame.waiter))
    frame.end()
    guard = _guard(frame)
    return guard if guard is not None and guard.interrupted else None


def _guard(frame: Frame | None) -> TaskGuard | None:
    guard: TaskGuard | None = None if frame is None else getattr(frame.owner, "guard", None)
    return guard
