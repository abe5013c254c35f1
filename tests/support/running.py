"""Runs one asynchronous test on a loop of its own and looks for what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.deadline import interruptible
from support.virtual import VirtualLoop

__all__ = ["run_async_test"]

_ENDING = 2.0
# Tasks that are cancelled may start others.
_CANCELS = 5


def run_async_test(
    function: Callable[..., Coroutine[Any, Any, None]],
    arguments: dict[str, Any],
    *,
    virtual: bool,
) -> None:
    """Run the test; fail it also for tasks it leaves running and errors that nobody looked at.

    Args:
        function: the ``async def`` test.
        arguments: its fixtures.
        virtual: on virtual time.
    """
    loop: asyncio.AbstractEventLoop = VirtualLoop() if virtual else asyncio.SelectorEventLoop()
    reports: list[str] = []
    loop.set_exception_handler(lambda _, context: reports.append(_report(context)))
    asyncio.set_event_loop(loop)
    left: list[str] = []
    try:
        main = loop.create_task(function(**arguments), name="test")
        with interruptible(loop, main):
            loop.run_until_complete(main)
            left = loop.run_until_complete(_left_running())
        del main
    finally:
        _close(loop)
    gc.collect(1)
    if left:
        pytest.fail("the test ended with tasks still running:\n" + "\n".join(left))
    if reports:
        pytest.fail("errors that nobody handled:\n" + "\n".join(reports))


def _report(context: dict[str, Any]) -> str:
    error = context.get("exception")
    text = context.get("message", "")
    subject = context.get("task") or context.get("future") or context.get("handle") or ""
    return f"- {text} {subject!r}" + (f": {error!r}" if error is not None else "")


async def _left_running() -> list[str]:
    """What does not end by itself, after a moment for what is just ending."""
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
