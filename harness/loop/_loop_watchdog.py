"""The watchdog of the harness: interrupts code that blocks an event loop."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from ._stacks import stack_of_frame

__all__ = ["Heartbeat", "LoopBlocked", "watched"]

_LOOKS_A_GRACE = 5
_DEBUGGERS = ("bdb", "pdb", "pydevd", "debugpy")
_SIGNAL: signal.Signals | None = getattr(signal, "SIGURG", None)


class LoopBlocked(BaseException):
    """Raised inside code that blocks an event loop; handlers are not supposed to catch it."""


class Heartbeat:
    """The heartbeat of one event loop.

    Attributes:
        count: goes up with each iteration.
        blocked: a description of what has blocked it; None if nothing has.
        ident: the identifier of the thread that it runs in.
        is_over: whether the loop does not run any more, so that nothing may be interrupted.
    """

    def __init__(self, grace: float, is_waiting: Callable[[], bool]) -> None:
        self.count = 0
        self.blocked: str | None = None
        self.ident = 0
        self.is_over = False
        self._grace = grace
        self._is_waiting = is_waiting
        self._seen = -1
        self._since = 0.0

    def begin(self) -> None:
        """Note that the loop is about to run in this thread; the time since it last ran is over."""
        self.ident = threading.get_ident()
        self.is_over = False
        self._seen = -1

    def look(self, now: float) -> float:
        """Interrupt the loop if one iteration takes too long.

        Returns:
            Seconds until the next look.
        """
        if self.count != self._seen or self._is_waiting():
            self._seen, self._since = self.count, now
        elif now - self._since > self._grace and not self.is_over:
            self._since = now
            frame = sys._current_frames().get(self.ident)
            if frame is not None and not _is_debugged(frame):
                self.blocked = self.blocked or (
                    f"the event loop was blocked for {self._grace:g} real seconds by"
                    f"{stack_of_frame(frame)}"
                )
                _interrupt(self.ident)
        return self._grace / _LOOKS_A_GRACE


class _LoopWatchdog:
    """One thread that checks all running loops."""

    def __init__(self) -> None:
        self._heartbeats: dict[Heartbeat, None] = {}
        # Entering a lock cannot be interrupted between its being taken and the block; entering a
        # condition, which is written in Python, can, and then nobody would ever give it back.
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def add(self, heartbeat: Heartbeat) -> None:
        with self._lock:
            self._heartbeats[heartbeat] = None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="spa_dat watchdog", daemon=True
                )
                self._thread.spa_dat_watches = True  # type: ignore[attr-defined]
                self._thread.start()
            else:
                self._change.notify()

    def remove(self, heartbeat: Heartbeat) -> None:
        """Forget a heartbeat that is over; afterwards its thread is not interrupted any more."""
        with self._lock:
            self._heartbeats.pop(heartbeat, None)

    def _run(self) -> None:
        with self._lock:
            while True:
                now = time.monotonic()
                # Where it was interrupted before it could say that it is over.
                for heartbeat in [one for one in self._heartbeats if one.is_over]:
                    del self._heartbeats[heartbeat]
                waits = [heartbeat.look(now) for heartbeat in self._heartbeats]
                self._change.wait(min(waits, default=None))


_watchdog = _LoopWatchdog()


@contextlib.contextmanager
def watched(heartbeat: Heartbeat) -> Iterator[None]:
    """Interrupt whatever blocks the loop of this thread, while inside the ``with`` block."""
    heartbeat.begin()
    by_signal = _SIGNAL is not None and threading.current_thread() is threading.main_thread()

    def interrupt(number: int, frame: FrameType | None) -> None:
        # What was sent at the last moment would strike whatever comes after the loop.
        if not heartbeat.is_over:
            raise LoopBlocked("the event loop was blocked")

    before = signal.signal(_SIGNAL, interrupt) if by_signal and _SIGNAL is not None else None
    _watchdog.add(heartbeat)
    try:
        yield
    finally:
        heartbeat.is_over = True
        try:
            _watchdog.remove(heartbeat)
        finally:
            if by_signal and _SIGNAL is not None:
                signal.signal(_SIGNAL, before)
            elif heartbeat.blocked is not None:
                # Nor may an exception for this thread that has not been raised yet.
                _raise_what_is_left()


def _interrupt(ident: int) -> None:
    if _SIGNAL is not None and ident == threading.main_thread().ident:
        # Also ends calls that wait in the operating system.
        signal.pthread_kill(ident, _SIGNAL)
    else:
        _raise_later(ident)


def _raise_later(ident: int) -> None:
    """Have `LoopBlocked` raised in a thread, in place of one that it has not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(LoopBlocked))


def _raise_what_is_left() -> None:
    """Raise, and catch, what this thread has not raised yet.

    Taking it back instead would leave the interpreter looking for it for good: every thread of the
    process gets slower, and on Python 3.11 one that is traced never leaves the call that it is in.
    """
    with contextlib.suppress(LoopBlocked):
        _raise_later(threading.get_ident())
        while True:
            pass


def _is_debugged(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).split(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False
