"""The clock that durations are measured with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..._busy_threads import has_own_clock

__all__ = ["clock_of"]


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return what tells the time of a loop; cheaper, and on uvloop finer, than its own method."""
    return loop.time if has_own_clock(loop) else time.monotonic
