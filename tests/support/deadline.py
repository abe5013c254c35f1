"""A deadline for each phase of each test, so that nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

__all__ = ["DEADLINE", "deadline", "interruptible", "keep_stderr"]

DEADLINE = 150.0
"""Seconds for each of a test's set-up, call and tear-down; ``@pytest.mark.deadline(n)`` changes it
for the call."""

_SECOND_CHANCE = 5.0
# What ignores that many interruptions, one each time that long, ends with its process.
_MOST_INTERRUPTIONS = 12
# Seconds after all of that when the process ends even if no Python code runs in the main thread.
_LAST_REST = 30.0
_running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []
_stderr = 2
_depth = 0


class _OverDeadline(SystemExit):
    """A test is over its deadline.

    Event loops let a SystemExit through, whichever of their callbacks and tasks it is raised in.
    Anything else they report, and go on.
    """


def keep_stderr() -> None:
    """Have what ends the process told where standard error goes now, whatever captures it later."""
    global _stderr
    _stderr = os.dup(2)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Fail what runs inside, in the main thread, once the time is over.

    A running asynchronous test is cancelled first, so that it can clean up; if that does not
    end it within some seconds, or if it is not asynchronous, it is interrupted where it is, again
    and again. What does not end even so ends with its process, whose stacks are written to standard
    error: a test never hangs in silence.
    """
    alarms = 0
    cancelled = False

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        nonlocal alarms, cancelled
        alarms += 1
        if _running and alarms == 1:
            cancelled = True
            loop, task = _running[-1]
            for other in asyncio.all_tasks(loop):
                other.print_stack(limit=4, file=sys.stderr)
            loop.call_soon_threadsafe(task.cancel, f"over its deadline of {seconds} s")
            return
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__)
        if alarms > _MOST_INTERRUPTIONS:
            _end_process(seconds)
        raise _OverDeadline(f"over its deadline of {seconds} s")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    before = signal.setitimer(signal.ITIMER_REAL, seconds, _SECOND_CHANCE)
    try:
        with _process_ends(seconds):
            yield
        if alarms > cancelled:
            # It has caught what ended its waiting.
            pytest.fail(f"over its deadline of {seconds} s")
    except asyncio.CancelledError:
        if cancelled:
            pytest.fail(f"over its deadline of {seconds} s; it was cancelled")
        raise
    except _OverDeadline as error:
        pytest.fail(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _process_ends(seconds: float) -> Iterator[None]:
    """End the process long after a deadline, also when it never returns to its Python code."""
    global _depth
    if not _depth:
        left = seconds + _SECOND_CHANCE * (_MOST_INTERRUPTIONS + 1) + _LAST_REST
        faulthandler.dump_traceback_later(left, exit=True, file=_stderr)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            faulthandler.cancel_dump_traceback_later()


def _end_process(seconds: float) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "a test")
    text = f"\n{test}: does not end, {_MOST_INTERRUPTIONS} interruptions after its deadline of"
    os.write(_stderr, f"{text} {seconds} s\n".encode())
    faulthandler.dump_traceback(_stderr)
    os._exit(1)


@contextlib.contextmanager
def interruptible(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> Iterator[None]:
    """While inside, a deadline that is over cancels the task."""
    _running.append((loop, task))
    try:
        yield
    finally:
        _running.pop()
