"""Threads that begin in a module in which no future is made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["ThreadElsewhere"]


class ThreadElsewhere(threading.Thread):
    """A thread of a program's own, started; the harness knows nothing of what it does.

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
