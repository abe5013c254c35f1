"""Waiting for something to become true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spa_dat.harness import _waiting

__all__ = ["eventually"]


async def eventually(
    predicate: Callable[[], Any], timeout: float = 60.0, interval: float = 0.01
) -> Any:
    """Wait as `spa_dat.testing.eventually` does, but longer: on a busy machine all takes long."""
    __tracebackhide__ = True
    return await _waiting.eventually(predicate, timeout, interval)
