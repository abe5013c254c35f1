"""Running one coroutine on a loop of its own, and finding what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from ..._texts import quoted

__all__ = ["LeftBehind", "run_alone"]

_ENDING = 2.0
# Tasks that are cancelled may start others.
_CANCELS = 5

Guard: TypeAlias = Callable[
    [asyncio.AbstractEventLoop, asyncio.Task[None]], AbstractContextManager[None]
]


def _unguarded(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]
) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


class LeftBehind(AssertionError):
    """Something is still running at the end, or has failed without anybody noticing."""


def run_alone(
    coroutine: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    deadline: float | None = None,
    *,
    guard: Guard = _unguarded,
) -> None:
    """Run a coroutine on a new loop, and close the loop.

    Args:
        coroutine: what to run.
        loop: a new one.
        deadline: the most seconds it may take, on the loop's clock; None for no limit.
        guard: entered with the loop and the main task, while they run.

    Raises:
        LeftBehind: it has left tasks running, or there were errors that nobody handled.
        AssertionError: it took longer than the deadline.
        Exception: whatever the coroutine raises.
    """
    __tracebackhide__ = True
    reports: list[str] = []
    loop.set_exception_handler(lambda _, context: reports.append(_report(context)))
    asyncio.set_event_loop(loop)
    left: list[str] = []
    try:
        main = loop.create_task(_within(deadline, coroutine), name="test")
        with guard(loop, main):
            loop.run_until_complete(main)
            left = loop.run_until_complete(_left_running())
        del main
    finally:
        _close(loop)
    gc.collect(1)
    if left:
        raise LeftBehind("the test ended with tasks still running:\n" + "\n".join(left))
    if reports:
        raise LeftBehind("errors that nobody handled:\n" + "\n".join(reports))


async def _within(deadline: float | None, coroutine: Coroutine[Any, Any, None]) -> None:
    limit = asyncio.timeout(deadline)
    try:
        async with limit:
            await coroutine
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise AssertionError(f"over its deadline of {deadline:g} s") from error


def _report(context: dict[str, Any]) -> str:
    error = context.get("exception")
    text = context.get("message", "")
    subject = context.get("task") or context.get("future") or context.get("handle") or ""
    return f"- {text} {subject!r}" + (f": {quoted(error, 1_000)}" if error is not None else "")


async def _left_running() -> list[str]:
    """Return the tasks that do not end by themselves within a moment."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                await asyncio.wait(others)
    return sorted(f"- {task!r}" for task in others if not task.done())


def _close(loop: asyncio.AbstractEventLoop) -> None:
    try:
        for _ in range(_CANCELS):
            tasks = asyncio.all_tasks(loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=_ENDING))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
