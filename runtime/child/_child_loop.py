"""The event loop of a child process."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["ChildLoop"]


class ChildLoop(asyncio.SelectorEventLoop):
    """Goes on at once with what its callbacks have made ready, before it looks for more.

    A message that comes in wakes the actor's task, and nothing but its answer is waited for: a
    look at the pipe in between is a turn of the loop, and a system call, that only delays that.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        ready = self._ready
        if not ready or self._stopping or self.get_debug():
            return
        # What these make ready comes after the next look, so that nobody keeps others from theirs.
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()
