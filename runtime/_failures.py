"""What counts as a failure of the user's code."""

from __future__ import annotations

import asyncio

__all__ = ["as_failure"]


def as_failure(raised: BaseException) -> Exception:
    """What a handler raised, as an error; raises it when the actor itself is cancelled."""
    if isinstance(raised, Exception):
        return raised
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise raised
    # Something that the handler awaited was cancelled, not the handler.
    return RuntimeError("what the handler was waiting for was cancelled")
