"""Waiting for something to become true."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from spa_dat.harness import _eventually

__all__ = ["eventually", "threads_have_left"]


async def eventually(
    predicate: Callable[[], Any], timeout: float = 60.0, interval: float = 0.01
) -> Any:
    """Wait as `spa_dat.testing.eventually` does, but longer: on a busy machine all takes long."""
    __tracebackhide__ = True
    return await _eventually.eventually(predicate, timeout, interval)


async def threads_have_left(predicate: Callable[[], Any], timeout: float = 60.0) -> None:
    """Wait until threads on their way out have made something true, by the system's clock.

    A thread is free for virtual time once it has handed in its result, but goes on a little.
    """
    __tracebackhide__ = True
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, f"not true within {timeout} s"
        pause.wait(0.002)
        await asyncio.sleep(0)
