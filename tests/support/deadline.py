"""A deadline for each phase of each test, so that nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

__all__ = ["DEADLINE", "deadline", "interruptible"]

DEADLINE = 150.0
"""Seconds for each of a test's set-up, call and tear-down; ``@pytest.mark.deadline(n)`` changes it
for the call."""

_SECOND_CHANCE = 5.0
_running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Fail what runs inside, in the main thread, once the time is over.

    A running asynchronous test is cancelled first, so that it can clean up; if that does not
    end it within some seconds, or if it is not asynchronous, it is interrupted where it is.
    """
    cancelled = False

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        nonlocal cancelled
        if _running and not cancelled:
            cancelled = True
            loop, task = _running[-1]
            for other in asyncio.all_tasks(loop):
                other.print_stack(limit=4, file=sys.stderr)
            loop.call_soon_threadsafe(task.cancel, f"over its deadline of {seconds} s")
            signal.setitimer(signal.ITIMER_REAL, _SECOND_CHANCE)
            return
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"over its deadline of {seconds} s")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except asyncio.CancelledError:
        if cancelled:
            pytest.fail(f"over its deadline of {seconds} s; it was cancelled")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, outer)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def interruptible(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> Iterator[None]:
    """While inside, a deadline that is over cancels the task."""
    _running.append((loop, task))
    try:
        yield
    finally:
        _running.pop()
