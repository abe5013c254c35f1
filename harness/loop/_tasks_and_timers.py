"""The tasks and timers on the loop of a harness: whose they are, and how they end with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from ... import errors

__all__ = ["OWNER", "bury_tasks", "drop_due", "drop_timers", "lost_failures", "make_task", "quiet"]

OWNER: ContextVar[Any] = ContextVar("spa_dat_owner", default=None)
"""The life of the application that the running code belongs to; None for the harness itself."""

_CLOSINGS = 100
# Code that handles the failures of its tasks itself.
_LIBRARIES = (
    os.path.join(os.path.dirname(str(errors.__file__)), ""),
    f"{os.sep}aiokafka{os.sep}",
    f"{os.sep}asyncio{os.sep}",
)
# In the order in which they were made, which a set of them does not have.
_made: WeakKeyDictionary[asyncio.Task[Any], None] = WeakKeyDictionary()


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task that belongs to the life of the application that makes it."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    _made[task] = None
    context = options.get("context")
    life = OWNER.get() if context is None else context.get(OWNER)
    if life is not None:
        life.tasks.add(task)
    return task


def drop_timers(loop: asyncio.AbstractEventLoop, life: object) -> None:
    """Cancel the timers of a life that was killed, and whatever else of it the loop would call."""
    drop_due(loop)
    for handle in tuple(loop._scheduled):  # type: ignore[attr-defined]
        if handle._context.get(OWNER) is life:
            handle.cancel()


def drop_due(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the loop is about to call and belongs to a life that was killed."""
    for handle in loop._ready:  # type: ignore[attr-defined]
        owner = handle._context.get(OWNER)
        if owner is not None and owner.over:
            handle.cancel()


def lost_failures(loop: asyncio.AbstractEventLoop) -> list[tuple[str, Exception]]:
    """Return the names and errors of the user's tasks whose failure nobody has retrieved."""
    failures = []
    for task in list(_made):
        if task.get_loop() is loop and task._log_traceback:
            error = task.exception()
            code = getattr(task.get_coro(), "cr_code", None)
            if isinstance(error, Exception) and code is not None and not _is_library(code):
                failures.append((code.co_qualname, error))
    return failures


def _is_library(code: CodeType) -> bool:
    return any(folder in code.co_filename for folder in _LIBRARIES)


def bury_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Close the coroutines of all tasks of a loop, except the current one."""
    # Clean-up code of the user's may try to start tasks.
    loop.set_task_factory(_make_no_task)
    current = asyncio.current_task()
    for task in [task for task in list(_made) if task.get_loop() is loop and not task.done()]:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        if task is not current:
            with quiet():
                _close(task.get_coro())


def _make_no_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> asyncio.Task[Any]:
    coroutine.close()
    raise asyncio.CancelledError("the harness has ended")


def _close(coroutine: Any) -> None:
    """Close a coroutine, beginning with the innermost one that it awaits.

    Closing the outer one first would abandon an inner one that awaits something while it is closed.
    """
    for _ in range(_CLOSINGS):
        inner = coroutine
        while (awaited := getattr(inner, "cr_await", None)) is not None and getattr(
            awaited, "cr_frame", None
        ) is not None:
            inner = awaited
        with contextlib.suppress(BaseException):
            inner.close()
        if getattr(coroutine, "cr_frame", None) is None:
            return


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the log of the runtime, but for what no simulated fault can cause."""
    logger = logging.getLogger("spa_dat")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
