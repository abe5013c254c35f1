"""What threads and an event loop tell each other about work: a loop with virtual time waits for it.

On an ordinary event loop, as in production, none of it does anything.
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
    "here",
    "let_waits_be_known",
    "place_of_caller",
    "waits_for_loop",
]


class BusyThread:
    """Says that a thread which the program has started itself has work, from now until `end`.

    Its ``with`` block ends it, too; a block in the thread makes errors say where the thread is.

    Args:
        name: of the work, for errors.
        place: where it was announced.
        when_over: called once, at the end, in whatever thread ends it.
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
        self.name = name
        self.place = place
        self.ident: int | None = None
        self._when_over = when_over
        self._waits = waits

    @property
    def is_over(self) -> bool:
        """Whether the work is done."""
        return self._when_over is None

    def end(self) -> None:
        """Say that the work is done; may be called from any thread, and more than once."""
        when_over, self._when_over = self._when_over, None
        if when_over is not None:
            when_over(self)

    def __enter__(self) -> Self:
        """Do nothing: the work began when this was made."""
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
        """`end`."""
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
    """Announce that a thread of the program's own is being given work by the code that calls this.

    Call it on the event loop, in the step that hands the work over. Under a `Harness` virtual time
    stands still until `BusyThread.end`, or until its ``with`` block is left, in whatever thread.
    In production it does nothing.

    Args:
        name: of the work, for errors; None for where this was called.
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
    """Name file and line of the code that called the caller.

    Args:
        depth: frames to go up.
    """
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class WaitsForLoop(Protocol):
    """How a thread that works for a loop with virtual time waits for what the loop does."""

    def wait_until(
        self, subscribe: Callable[[Callable[[], None]], object], timeout: float | None = None
    ) -> None:
        """Wait until what ``subscribe`` is given has been called, or so many virtual seconds.

        Raises:
            ActorStopped: what the thread runs was given up.
        """


def waits_for_loop() -> WaitsForLoop | None:
    """How the calling thread has to wait for the loop that it works for; None: as usual."""
    return here.work


def let_waits_be_known(future: Future[Any]) -> None:
    """Have ``future.result`` and ``future.exception`` wait as the calling thread has to."""
    # Else it would refer to itself, and to the frames of what it raises.
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
