"""Runs an actor's code apart: in a context of its own, and nothing it raises passes for more.

Context variables that code sets while it handles one message must not be seen by the next one.
A task can not change its context, and a task for each message costs several times what a message
does, so the steps of the coroutine are run in a copy of the actor's context instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from types import CoroutineType, FrameType
from typing import Any, NoReturn

__all__ = ["DONE", "Isolated", "go_on_apart", "is_closing", "raised_by_hand", "run_apart"]

_NOTHING: Any = object()

DONE: Any = object()
"""What ``context.run(next, coroutine.__await__(), DONE)`` gives when the coroutine has ended with
its first step. That costs a third less than ``send``, which raises; what is returned is lost."""


class Isolated:
    """The rest of a coroutine that is run in a context of its own. Await it once.

    It stands where the coroutine would stand, also for those who follow what a task waits for.

    Args:
        context: where the coroutine runs.
        coroutine: begun already.
        waits_for: what its first step gave.
    """

    __slots__ = ("_run", "_waits_for", "cr_await")

    def __init__(self, context: Context, coroutine: Any, waits_for: Any) -> None:
        self._run = context.run
        self._waits_for = waits_for
        self.cr_await = coroutine

    @property
    def cr_frame(self) -> FrameType | None:
        """The coroutine's own."""
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
            return self._run(self.cr_await.send, value)
        except GeneratorExit as error:
            raised_by_hand(error)

    def throw(self, *error: Any) -> Any:
        """Run the next step with an error, such as a cancellation."""
        try:
            return self._run(self.cr_await.throw, *error)
        except GeneratorExit as raised:
            raised_by_hand(raised)
        finally:
            # The error's traceback refers to this frame.
            del error

    def close(self) -> None:
        """Give the coroutine up."""
        self._run(self.cr_await.close)


def raised_by_hand(error: GeneratorExit) -> NoReturn:
    """Raise what stands for a GeneratorExit that came out of an actor's code.

    It would be taken for the end of the coroutine through which it passes.
    """
    raise RuntimeError(f"the code raised GeneratorExit{error.args or ''}") from error


def is_closing(error: GeneratorExit) -> bool:
    """Whether it comes from closing the coroutine that has caught it, not from what that called."""
    traceback = error.__traceback__
    return traceback is None or traceback.tb_next is None


async def run_apart(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in a copy of the current context, and await there what it may return.

    Raises:
        BaseException: whatever it raises, but RuntimeError for a GeneratorExit.
    """
    context = copy_context()
    try:
        result = context.run(function, *args, **kwargs)
    except GeneratorExit as error:
        raised_by_hand(error)
    if hasattr(result, "__await__"):
        return await go_on_apart(context, result)
    return result


async def go_on_apart(context: Context, awaitable: Any) -> Any:
    """Await something in a context."""
    coroutine = awaitable if type(awaitable) is CoroutineType else _awaiting(awaitable)
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as done:
        return done.value
    except GeneratorExit as error:
        raised_by_hand(error)
    rest = Isolated(context, coroutine, waits_for)
    # What it raises may come from there, and refers to this frame.
    del waits_for
    return await rest


async def _awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
