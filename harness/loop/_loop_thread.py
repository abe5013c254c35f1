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
    """Where a loop runs: in the thread of who calls, or in one of its own.

    Args:
        own: one of its own, because the caller has a running event loop.
    """

    def __init__(self, *, own: bool) -> None:
        self._worker = ThreadWorker("harness") if own else None

    def call(self, function: Callable[[], T]) -> T:
        """Call a function there, and wait for it.

        Raises:
            ConfigurationError: it is the thread of who calls, and an event loop runs in it by now.
            Exception: whatever the function raises.
        """
        if self._worker is not None:
            return self._worker.submit(function).result()
        if is_loop_running():
            raise ConfigurationError(
                "the harness was started where no event loop ran, and is used inside of one: start"
                " it in the async def test or fixture itself, or with the fixture 'harness'"
            )
        return function()

    def end(self) -> None:
        """Nothing is called any more."""
        if self._worker is not None:
            self._worker.abandon()


def is_loop_running() -> bool:
    """Whether an event loop runs in the calling thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
