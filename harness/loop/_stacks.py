"""The stack of a task or a thread, as text for error messages."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from types import FrameType
from typing import Any

from ...runtime.diagnostics._stacks import frames_above, frames_of, is_ours

__all__ = ["frames_of_other_threads", "stack_of", "stack_of_frame"]

_LINES = 4


def stack_of(task: asyncio.Task[Any] | None) -> str:
    """Return where a task is waiting: the user's part of its stack, one line for each frame."""
    return "" if task is None else _lines(frames_of(task))


def frames_of_other_threads() -> dict[int, FrameType]:
    """Return the current frame of each thread but the calling one, by its identifier."""
    # A function that held its own frame would be garbage in a cycle, and keep what the frames of
    # all threads refer to alive until the collector runs.
    own = threading.get_ident()
    return {ident: frame for ident, frame in sys._current_frames().items() if ident != own}


def stack_of_frame(frame: FrameType | None) -> str:
    """Return the stack above a frame, from where the runtime called the user's code."""
    return _lines(frames_above(frame))


def _lines(frames: list[FrameType]) -> str:
    users = [frame for frame in frames if not is_ours(frame)]
    summary = traceback.StackSummary.extract(
        ((frame, frame.f_lineno) for frame in users[-_LINES:]), lookup_lines=True
    )
    return "".join(
        f"\n  {line.filename}:{line.lineno} in {line.name}: {line.line}" for line in summary
    )
