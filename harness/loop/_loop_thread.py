"""The thread in which the event loop of a harness runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ...actors import ThreadWorker
from ...errors import ConfigurationError

__all__ = ["LoopThread", "is_loop_running"]

T = TypeVar("T")


class LoopThread:
    """The thread in which a loop runs: the caller's, or one of its own.

    Args:
        own: use a thread of its own, because the caller's has a running event loop.
    """

    def __init__(self, *, own: bool) -> None:
        self._worker = ThreadWorker("harness") if own else None

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in that thread, and wait for it.

        Raises:
            ConfigurationError: it is the caller's thread, and an event loop is now running there.
            Exception: whatever the function raises.
        """
        if self._worker is not None:
            return self._worker.submit(function).result()
        if is_loop_running():
            raise ConfigurationError(
                "the harness was started where no event loop was running, and is used inside one:"
                " start it in the async def test or fixture itself, or with the fixture 'harness'"
            )
        return function()

    def end(self) -> None:
        """End the thread; nothing is called any more."""
        if self._worker is not None:
            self._worker.abandon()


def is_loop_running() -> bool:
    """Tell whether an event loop is running in the calling thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
