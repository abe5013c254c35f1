"""Waiting for something to become true, and making a handler wait."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

__all__ = ["Gate", "eventually"]

T = TypeVar("T")


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], timeout: float = ..., interval: float = ...
) -> T: ...


@overload
async def eventually(
    predicate: Callable[[], T], timeout: float = ..., interval: float = ...
) -> T: ...


async def eventually(
    predicate: Callable[[], Any],
    timeout: float = 10.0,
    interval: float = 0.01,
) -> Any:
    """Wait until the predicate is true, and return what it returned.

    Args:
        predicate: called again and again; a plain or an ``async`` function.
        timeout: seconds on the loop's clock, virtual or real.
        interval: seconds between two calls.

    Raises:
        AssertionError: it was not true in time; the text says what was waited for.
    """
    __tracebackhide__ = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        result = predicate()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if loop.time() >= deadline:
            raise AssertionError(
                f"not true within {timeout} s: {_describe(predicate)} (last value: {value!r})"
            )
        await asyncio.sleep(interval)


def _describe(predicate: Callable[[], object]) -> str:
    try:
        return " ".join(inspect.getsource(predicate).split())
    except (OSError, TypeError):
        return repr(predicate)


class Gate:
    """A place where handlers wait until the test lets them continue.

    Attributes:
        arrived: how often a handler has arrived.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self._open = asyncio.Event()

    async def pass_(self) -> None:
        """Wait until the gate is open."""
        self.arrived += 1
        await self._open.wait()

    async def reached(self, times: int = 1) -> None:
        """Wait until handlers have arrived so many times."""
        await eventually(lambda: self.arrived >= times, 60.0)

    def open(self) -> None:
        """Let everybody pass from now on."""
        self._open.set()
