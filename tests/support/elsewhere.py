"""Threads that the event loop of a test knows nothing of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["ThreadElsewhere", "threads", "threads_end"]


class ThreadElsewhere(threading.Thread):
    """A thread of a program's own, started, in a module in which no future is made.

    Args:
        function: to run in it.
        args: for the function.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(name="elsewhere", daemon=True)
        self._call: Callable[[], object] = lambda: function(*args)
        self.start()

    def run(self) -> None:
        """Run the function."""
        self._call()


def threads() -> set[threading.Thread]:
    """All threads, except for those of the package that stay as long as the process."""
    return {
        thread for thread in threading.enumerate() if not getattr(thread, "spa_dat_watches", False)
    }


def threads_end(before: Collection[threading.Thread], seconds: float = 10.0) -> None:
    """Wait until the threads have ended that were not there before.

    In real seconds, as it takes a thread some to end, and virtual time says nothing of that.

    Raises:
        AssertionError: one does not end; says which.
    """
    for thread in threads() - set(before):
        thread.join(seconds)
        assert not thread.is_alive(), f"{thread} did not end within {seconds:g} s"
