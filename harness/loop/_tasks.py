"""The tasks on the loop of a harness: whose they are, and how they end with it."""

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

__all__ = ["OWNER", "bury_tasks", "lost_failures", "make_task", "quiet"]

OWNER: ContextVar[Any] = ContextVar("spa_dat_owner", default=None)
"""The life of the application that the running code belongs to; None for the world around it."""

_CLOSINGS = 100
# These look after their tasks themselves.
_LIBRARIES = (
    os.path.join(os.path.dirname(str(errors.__file__)), ""),
    f"{os.sep}aiokafka{os.sep}",
    f"{os.sep}asyncio{os.sep}",
)
# In the order in which they were made, which a set of them does not have.
_made: WeakKeyDictionary[asyncio.Task[Any], None] = WeakKeyDictionary()


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task that belongs to the life of an application in which it is made."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    _made[task] = None
    context = options.get("context")
    life = OWNER.get() if context is None else context.get(OWNER)
    if life is not None:
        life.tasks.add(task)
    return task


def lost_failures(loop: asyncio.AbstractEventLoop) -> list[tuple[str, Exception]]:
    """What failed in tasks of the user's that nobody has asked for it: their names and errors."""
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
    """Close what all tasks of a loop run, except for the one that calls this."""
    # Cleaning up code of the user's may want to begin something.
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
    raise asyncio.CancelledError("the harness is done")


def _close(coroutine: Any) -> None:
    """Close a coroutine, beginning with what it waits for.

    One that wants to wait while it is closed would be forgotten by those that wait for it, in the
    middle of that.
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
    """Keep the log of the runtime to what is beyond any simulated trouble."""
    logger = logging.getLogger("spa_dat")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
