"""Stacks: where code is at the moment, and tracebacks that begin at the user's code."""

from __future__ import annotations

import asyncio
import gc
import sys
import sysconfig
from types import AsyncGeneratorType, FrameType, TracebackType
from typing import Any, cast

from ...errors import SpaDatError

__all__ = [
    "frames_above",
    "frames_of",
    "frames_of_call",
    "frames_of_thread",
    "is_ours",
    "of_users_code",
    "place",
    "users_part",
]

_OURS = __name__.partition(".")[0] + "."
_LIBRARIES = tuple(
    dict.fromkeys(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_KINDS = (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await"))
_STEPS = ("async_generator_asend", "async_generator_athrow")


def frames_of(task: asyncio.Future[Any]) -> list[FrameType]:
    """Return the frames of a waiting task, outermost first; none for other futures."""
    frames: list[FrameType] = []
    awaited: Any = task.get_coro() if isinstance(task, asyncio.Task) else None
    # Task.get_stack() gives the outermost frame only.
    while awaited is not None:
        for prefix, inner in _KINDS:
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                # A wrapper that runs a coroutine in its own context reports the same frame again.
                if not frames or frames[-1] is not frame:
                    frames.append(frame)
                awaited = getattr(awaited, inner)
                break
        else:
            # There is no other way to find the generator that such a step belongs to.
            found = gc.get_referents(awaited) if type(awaited).__name__ in _STEPS else ()
            awaited = next((each for each in found if isinstance(each, AsyncGeneratorType)), None)
    return frames


def users_part(task: asyncio.Future[Any]) -> object | None:
    """Return the outermost awaitable of the user's code in a task; None if all of it is ours.

    It is the same object for as long as that code is running.
    """
    awaited: Any = task.get_coro() if isinstance(task, asyncio.Task) else None
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None and not is_ours(frame):
            return cast("object", awaited)
        awaited = getattr(awaited, "cr_await", None)
    return None


def frames_of_thread(ident: int | None) -> list[FrameType]:
    """Return the frames of a thread, outermost first, from where this package called other code."""
    return frames_above(None if ident is None else sys._current_frames().get(ident))


def frames_of_call(ident: int | None, task: asyncio.Task[Any] | None = None) -> list[FrameType]:
    """Return the frames of a thread from the innermost call of the user's code, outermost first.

    Code of this package and of libraries that the user's has called is a part of it. Without a call
    of the user's it is the same as `frames_of_thread`.

    Args:
        ident: the thread.
        task: what its event loop is running: nothing outside of this is looked at. None for a
            thread without an event loop.
    """
    innermost = None if ident is None else sys._current_frames().get(ident)
    first = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    frames: list[FrameType] = []
    frame = innermost
    found = False
    while frame is not None and not (found and is_ours(frame)):
        frames.append(frame)
        found = found or _is_users(frame)
        if frame is first:
            break
        frame = frame.f_back
    return frames[::-1] if found else frames_above(innermost)


def frames_above(frame: FrameType | None) -> list[FrameType]:
    """Return a frame and its callers, outermost first, from where this package called others."""
    frames: list[FrameType] = []
    while frame is not None and not (frames and is_ours(frame)):
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def is_ours(frame: FrameType) -> bool:
    """Return whether a frame runs code of this package or of asyncio."""
    return _module(frame).startswith((_OURS, "asyncio."))


def place(frames: list[FrameType]) -> str | None:
    """Return which function of the user's is running, and at which line; None if there is none.

    Args:
        frames: outermost first.
    """
    others = [frame for frame in frames if not is_ours(frame)]
    if not others:
        return None
    users = [frame for frame in others if _is_users(frame)]
    outer, inner = (users or others[-1:])[0], (users or others)[-1]
    where = f"{_name(outer)} at {inner.f_code.co_filename}:{inner.f_lineno}"
    return where if inner is outer else f"{where} in {_name(inner)}"


def _is_users(frame: FrameType) -> bool:
    return not is_ours(frame) and not frame.f_code.co_filename.startswith(_LIBRARIES)


def _name(frame: FrameType) -> str:
    return frame.f_code.co_qualname.rpartition("<locals>.")[2]


def of_users_code(error: BaseException) -> _ExcInfo | None:
    """Return ``exc_info`` for the log, without the frames of this package before the user's code.

    An error that this package raised itself needs no traceback if its text says everything;
    anything else raised here is a bug of ours, and keeps its traceback.
    """
    traceback = error.__traceback__
    while traceback is not None and _module(traceback.tb_frame).startswith(_OURS):
        traceback = traceback.tb_next
    if traceback is None and not isinstance(error, SpaDatError | TimeoutError):
        traceback = error.__traceback__
    elif traceback is None and error.__cause__ is None:
        return None
    return type(error), error, traceback


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
