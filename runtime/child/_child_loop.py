"""What the event loop of a child process looks at."""

from __future__ import annotations

import asyncio
import selectors

__all__ = ["PipeSelector", "child_loop"]


class PipeSelector(selectors.DefaultSelector):
    """Reads the pipe while the loop looks for what has come in, if nothing else has.

    A message that comes in wakes the actor's task, and nothing but its answer is waited for. What
    a look has made ready runs in the same turn of the loop; a callback of the pipe's would run in
    that turn, and the task in the next one, after another look.

    Args:
        pipe: descriptor of the end that is read.
    """

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        found = super().select(timeout)
        if len(found) == 1 and found[0][0].fd == self._pipe:
            # What asyncio keeps there: the callbacks for reading and writing.
            reader: asyncio.Handle
            reader, _ = found[0][0].data
            reader._run()
            return []
        return found


def child_loop(pipe: int) -> asyncio.AbstractEventLoop:
    """Return an event loop that reads the pipe as `PipeSelector` does."""
    return asyncio.SelectorEventLoop(PipeSelector(pipe))
