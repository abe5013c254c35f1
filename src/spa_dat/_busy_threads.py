"""Announced work in threads: an event loop with virtual time waits for it.

On an ordinary event loop, as in production, nothing here has any effect.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol, Self

__all__ = [
    "BusyThread",
    "WaitsForLoop",
    "busy_thread",
    "has_own_clock",
    "here",
    "let_waits_be_known",
    "place_of_caller",
    "waits_for_loop",
]


class BusyThread:
    """The work of a thread that the program has started itself, from now until `end`.

    Leaving its ``with`` block ends it, too; if the block is in the thread, errors say where the
    thread is.

    Args:
        name: the name of the work, for error messages.
        place: where it was announced.
        when_over: called once, at the end, in the thread that ends it.
        waits: how a thread waits for the loop while it is in the ``with`` block.
    """

    __slots__ = ("_waits", "_when_over", "ident", "name", "place")

    def __init__(
        self,
        name: str,
        place: str,
        when_over: Callable[[BusyThread], object] | None = None,
        waits: WaitsForLoop | None = None,
    ) -> None:
        self.name: str = name
        self.place: str = place
        self.ident: int | None = None
        self._when_over = when_over
        self._waits = waits

    @property
    def is_over(self) -> bool:
        """Whether the work has ended."""
        return self._when_over is None

    def end(self) -> None:
        """End the work; may be called from any thread, and more than once."""
        when_over, self._when_over = self._when_over, None
        if when_over is not None:
            when_over(self)

    def __enter__(self) -> Self:
        """Enter the block; the work has begun already, when this was made."""
        self.ident = threading.get_ident()
        if self._waits is not None and here.work is None and not _on_event_loop():
            here.work = self._waits
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Call `end`."""
        if here.work is self._waits:
            here.work = None
        self.end()


class _Here(threading.local):
    work: WaitsForLoop | None = None


here = _Here()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def busy_thread(name: str | None = None) -> BusyThread:
    """Announce that the caller hands over work to one of the program's own threads.

    Call it on the event loop, in the step that hands over the work. Under a `Harness` virtual time
    stands still until `BusyThread.end`, or until its ``with`` block is left, in any thread. In
    production it has no effect.

    Args:
        name: the name of the work, for error messages; None for a general one.
    """
    place = place_of_caller(2)
    try:
        announce = getattr(asyncio.get_running_loop(), "announce", None)
    except RuntimeError:
        announce = None
    name = name or "work in a thread"
    if announce is None:
        return BusyThread(name, place)
    announced: BusyThread = announce(name, place)
    return announced


def place_of_caller(depth: int = 1) -> str:
    """Return file and line of the code that called the caller.

    Args:
        depth: frames to go up.
    """
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class WaitsForLoop(Protocol):
    """How a thread that works for a loop with virtual time waits for the loop."""

    def wait_until(
        self, subscribe: Callable[[Callable[[], None]], object], timeout: float | None = None
    ) -> None:
        """Wait until the function passed to ``subscribe`` is called, or for ``timeout`` seconds.

        Raises:
            ActorStopped: the work of the thread was given up.
        """


def has_own_clock(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether an event loop has virtual time, which waits for no socket or process."""
    return bool(getattr(loop, "has_own_clock", False))


def waits_for_loop() -> WaitsForLoop | None:
    """Return how the calling thread has to wait for its loop; None for the usual way."""
    return here.work


def let_waits_be_known(future: Future[Any]) -> None:
    """Make ``future.result`` and ``future.exception`` wait as the calling thread has to."""
    # Otherwise the future would refer to itself, and to the frames of what it raises.
    itself: Callable[[], Any] = weakref.ref(future)

    def wait(timeout: float | None) -> float | None:
        work, future = here.work, itself()
        if work is None or future.done():
            return timeout
        work.wait_until(lambda resume: future.add_done_callback(lambda _: resume()), timeout)
        return 0.0

    def result(timeout: float | None = None) -> Any:
        return Future.result(itself(), wait(timeout))

    def exception(timeout: float | None = None) -> BaseException | None:
        return Future.exception(itself(), wait(timeout))

    for method in (result, exception):
        setattr(future, method.__name__, method)
