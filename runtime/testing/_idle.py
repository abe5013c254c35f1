"""Whether a thread works or waits for another one to give it something to do."""

from __future__ import annotations

import dis
import sys
import time
from functools import lru_cache, reduce
from queue import SimpleQueue
from threading import Thread
from types import BuiltinMethodType, CodeType, FrameType
from typing import Any

__all__ = ["Sign", "is_idle", "sign_of"]

Sign = tuple[int, int]
"""Differs when a thread has run in between, as far as the platform tells."""

_IDLE_IN = frozenset(
    {
        ("threading.py", "_wait_for_tstate_lock"),
        ("threading.py", "join"),
        ("queue.py", "get"),
    }
)
_WAIT = ("threading.py", "wait")
# What the interpreter does between naming a function and calling it, in one expression.
_BEFORE_CALL = ("LOAD_", "PUSH_NULL", "PRECALL", "KW_NAMES", "BUILD_", "DICT_MERGE", "BINARY_OP")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_THREAD_CLOCK = 6


def is_idle(frame: FrameType) -> bool:
    """Whether the thread of the frame, its innermost one, waits for another thread."""
    code = frame.f_code
    place = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1], code.co_name
    if place == _WAIT:
        # A condition has let go of this lock when it has woken the thread.
        waiter = frame.f_locals.get("waiter")
        return waiter is None or bool(waiter.locked())
    return place in _IDLE_IN or _waits_on_empty_queue(frame)


def sign_of(thread: Thread, frame: FrameType) -> Sign:
    """What is the same as before when the thread has not run since then."""
    if sys.platform == "linux" and thread.native_id is not None:
        try:
            # Its processor time. Unlike what pthread_getcpuclockid() takes, a number of a thread
            # that has ended does no harm.
            return 0, time.clock_gettime_ns((~thread.native_id << 3) | _THREAD_CLOCK)
        except OSError:
            pass
    return id(frame), frame.f_lasti


def _waits_on_empty_queue(frame: FrameType) -> bool:
    """Whether it is in the ``get`` of a `SimpleQueue`, which has no frame of its own."""
    for path in _paths_before(frame.f_code, frame.f_lasti):
        found = _value(frame, path) if path[-1] == "get" or len(path) == 1 else None
        if isinstance(found, BuiltinMethodType) and found.__name__ == "get":
            owner = found.__self__
            if isinstance(owner, SimpleQueue):
                # One with something in it has woken the thread.
                return owner.empty()
    return False


@lru_cache(maxsize=256)
def _paths_before(code: CodeType, offset: int) -> tuple[tuple[str, ...], ...]:
    """What the call at this offset is of and about, each as a variable and its attributes.

    That is a call as written in ``x.y.get()`` or ``get()``, or the one that a loop makes over
    ``iter(x.get, None)``.
    """
    past = [step for step in dis.get_instructions(code) if step.offset <= offset]
    operation = past.pop().opname
    if operation == "FOR_ITER":
        while past and past[-1].opname.startswith(("GET_ITER", "CALL", "PRECALL")):
            past.pop()
    elif not operation.startswith(("CALL", "PRECALL")):
        return ()
    expression: list[dis.Instruction] = []
    while past and past[-1].opname.startswith(_BEFORE_CALL):
        expression.insert(0, past.pop())
    paths: list[tuple[str, ...]] = []
    for step in expression:
        name = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
        if step.opname in _ATTRIBUTES:
            paths += [(*paths[-1], name)] if paths else []
        elif step.opname.startswith("LOAD_") and step.opname != "LOAD_CONST":
            paths.append((str(name),))
    return tuple(paths)


def _value(frame: FrameType, path: tuple[str, ...]) -> Any:
    for scope in (frame.f_locals, frame.f_globals):
        if path[0] in scope:
            try:
                return reduce(getattr, path[1:], scope[path[0]])
            except Exception:  # noqa: BLE001 (whatever the program's attributes raise)
                return None
    return None
