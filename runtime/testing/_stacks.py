"""Where code is at the moment, in words."""

from __future__ import annotations

import asyncio
import traceback
from types import FrameType
from typing import Any

__all__ = ["stack_of", "stack_of_frame"]

_OURS = __name__.partition(".")[0] + "."
_LINES = 4


def stack_of(task: asyncio.Task[Any] | None) -> str:
    """Where a task waits: the user's part of its stack, on lines of their own."""
    if task is None:
        return ""
    frames: list[FrameType] = []
    awaited: Any = task.get_coro()
    # Task.get_stack() gives the outermost frame only.
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            frames.append(frame)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return _lines(frames)


def stack_of_frame(frame: FrameType | None) -> str:
    """The stack that leads to a frame, from where the runtime called the user's code."""
    frames: list[FrameType] = []
    while frame is not None and not (frames and _is_ours(frame)):
        frames.append(frame)
        frame = frame.f_back
    return _lines(frames[::-1])


def _lines(frames: list[FrameType]) -> str:
    users = [frame for frame in frames if not _is_ours(frame)]
    summary = traceback.StackSummary.extract(
        ((frame, frame.f_lineno) for frame in users[-_LINES:]), lookup_lines=True
    )
    return "".join(
        f"\n  {line.filename}:{line.lineno} in {line.name}: {line.line}" for line in summary
    )


def _is_ours(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith((_OURS, "asyncio."))
