"""Waiting for several tasks at once, while starting and while stopping."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable
from typing import Any

from ..._logs import get_logger
from ..._texts import describe

__all__ = ["wait_for_all", "wait_for_each", "wait_until"]

log = get_logger("spa_dat")


async def wait_for_all(awaitables: Iterable[Awaitable[Any]]) -> None:
    """Wait for all at once; the first error cancels the others and is raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    if not tasks:
        return
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def wait_for_each(awaitables: Iterable[Awaitable[Any]]) -> None:
    """Wait for all at once; errors are logged instead of raised, so that stopping continues."""
    for outcome in await _outcomes([*awaitables]):
        if isinstance(outcome, Exception):
            log.error("while stopping: %s", describe(outcome), exc_info=outcome)


async def _outcomes(awaitables: list[Awaitable[Any]]) -> list[Any]:
    if len(awaitables) != 1:
        return await asyncio.gather(*awaitables, return_exceptions=True)
    # Most actors have one of everything, and need no task for it.
    try:
        return [await awaitables[0]]
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return []
    except Exception as error:  # noqa: BLE001 (whatever the caller waits for)
        return [error]


async def wait_until(deadline: float, awaitable: Awaitable[Any]) -> None:
    """Wait, but not longer than until ``deadline`` (loop time)."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await awaitable
