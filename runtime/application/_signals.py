"""The signals that stop a program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..._logs import get_logger
from ..diagnostics._stacks import frames_of_thread, place

__all__ = ["Signals", "ignore_signals"]

log = get_logger("spa_dat")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FOR_LAST_WORDS = 1.0
_LONGEST_REST = 20.0
_SIGN_OF_LIFE = 5.0
# Above the numbers of all signals, so that one byte carries both.
_SECOND = 0x80


class Signals:
    """SIGINT and SIGTERM: the first stops a program cleanly, the second ends it at once.

    The user's code may be blocking the event loop at the time. So signals are counted twice: by
    the interpreter's handler in the main thread, which runs as soon as that thread executes Python
    code, and by a thread that the operating system wakes; two of either end the program. Only the
    thread knows which signal came first, so it has the last word: the interpreter handles pending
    signals in the order of their numbers.

    Args:
        stop_timeout: seconds that stopping may take, not counting what has a limit of its own. If
            the loop is blocked that long after the first signal, or after `stopping`, the program
            cannot be stopped cleanly and ends with exit code 1.
    """

    def __init__(self, stop_timeout: float) -> None:
        self._longest_stop = min(stop_timeout + _LONGEST_REST, threading.TIMEOUT_MAX)
        self._stopping = threading.Lock()
        self._ended = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first: Callable[[], object] | None = None
        self._handled: list[signal.Signals] = []
        self._arrived: list[signal.Signals] = []
        self._announcing = threading.Lock()
        self._receiver: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._wake_before = -1

    @property
    def received(self) -> bool:
        """Whether there was one."""
        return bool(self._handled or self._arrived)

    def install(self, first: Callable[[], object]) -> None:
        """Handle the signals from now on; called in the main thread, on its running loop.

        Args:
            first: called on the loop when the first one arrives.
        """
        self._loop = asyncio.get_running_loop()
        self._first = first
        self._receiver, self._sender = socket.socketpair()
        # The program may have set a default timeout for sockets.
        self._receiver.setblocking(True)
        self._sender.setblocking(False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        self._wake_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="spa_dat signals", daemon=True).start()
        _installed.append(self)

    def forked(self) -> None:
        """Restore the signal handlers in a forked child process.

        Otherwise the child's signals would be written where the parent reads its own, and stop it.
        """
        self._ended.set()
        sender, self._sender = self._sender, None
        if sender is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        sender.close()
        assert self._receiver is not None
        self._receiver.close()

    def stopping(self) -> None:
        """Make sure that the program, which is stopping now, ends. Works from any thread."""
        if self._stopping.acquire(blocking=False) and not _start_thread(
            self._enforce_end, name="spa_dat stop"
        ):
            # The next one who asks may find a thread.
            self._stopping.release()

    def _enforce_end(self) -> None:
        self._ended.wait(self._longest_stop)
        while not self._ended.is_set():
            alive = threading.Event()
            self._call_on_loop(alive.set)
            if not alive.wait(_SIGN_OF_LIFE) and not self._ended.is_set():
                where = place(frames_of_thread(threading.main_thread().ident))
                _exit(1, "the program cannot stop: its event loop is blocked: %s", where)
            self._ended.wait(_SIGN_OF_LIFE)

    def restore(self) -> None:
        """Restore the signal handlers that were there before `install`."""
        self._ended.set()
        sender, self._sender = self._sender, None
        if sender is None:
            return
        _installed.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        try:
            now = signal.set_wakeup_fd(self._wake_before)
        except (OSError, ValueError):
            # It belonged to an event loop that is closed by now, as uvloop's does.
            now = signal.set_wakeup_fd(-1)
        if now != sender.fileno():
            signal.set_wakeup_fd(now)
        # This ends the thread.
        sender.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The interrupted code may hold the log's lock, so this must neither log nor wait.
        received = signal.Signals(number)
        self._handled.append(received)
        if len(self._handled) == 1:
            self._call_on_loop(self._stop)
            self._call_on_loop(self._announce, received)
        elif self._sender is not None:
            with contextlib.suppress(BlockingIOError):  # enough have arrived there
                self._sender.send(bytes((_SECOND | number,)))

    def _watch(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        with receiver:
            while data := receiver.recv(64):
                if self._wake_before >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._wake_before, bytes(b for b in data if b < _SECOND))
                for byte in data:
                    if byte & _SECOND:
                        self._end(self._second(signal.Signals(byte & ~_SECOND)))
                    elif byte in _SIGNALS and signal.getsignal(byte) == self._on_signal:
                        # Otherwise the program has installed a handler of its own.
                        self._arrives(signal.Signals(byte))

    def _arrives(self, number: signal.Signals) -> None:
        self._arrived.append(number)
        if len(self._arrived) > 1:
            self._end(number)
        self.stopping()
        self._call_on_loop(self._stop)
        # In another thread: whatever holds the log's lock must not stop this one.
        _start_thread(self._announce, number, name="spa_dat signal")

    def _second(self, last: signal.Signals) -> signal.Signals:
        """Return the second of the two signals that the interpreter has handled, ``last`` last."""
        return self._handled[0] if self._arrived == [last] else last

    def _call_on_loop(self, function: Callable[..., object], *args: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    def _stop(self) -> None:
        assert self._first is not None
        self._first()

    def _announce(self, number: signal.Signals) -> None:
        if self._announcing.acquire(blocking=False):
            log.info("%s: stopping; a second signal ends the program at once", number.name)

    def _end(self, number: signal.Signals) -> None:
        _exit(128 + number, "%s again: ending at once", number.name)


class _Held(threading.local):
    """The signal mask of a thread that is forking, as it was before; None while it is not."""

    mask: set[signal.Signals | int] | None = None


def _hold_signals() -> None:
    # Until it has handlers of its own, the child would write its signals where the parent reads.
    if _installed:
        _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _let_signals_in() -> None:
    mask, _held.mask = _held.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _IgnoredSignals:
    """SIGINT and SIGTERM, ignored in this process, and not in those that it starts.

    With SIG_IGN these would ignore them as well, and nobody could terminate them.
    """

    def __init__(self) -> None:
        self._before = {number: signal.signal(number, self._ignore) for number in _SIGNALS}

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        pass

    def forked(self) -> None:
        """Restore the signal handlers in a forked child process."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ignore:
                signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM in this process from now on; called in the main thread."""
    _installed.append(_IgnoredSignals())


def _after_fork() -> None:
    for signals in _installed:
        signals.forked()
    _installed.clear()
    _let_signals_in()


_installed: list[Signals | _IgnoredSignals] = []
_held = _Held()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_hold_signals, after_in_parent=_let_signals_in, after_in_child=_after_fork
    )


def _start_thread(function: Callable[..., object], *args: object, name: str) -> bool:
    # The program may have used up all threads that there may be, and has to end nevertheless.
    try:
        threading.Thread(target=function, args=args, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _exit(code: int, *last_words: object) -> None:
    # Whatever hangs may hold the lock of the log or of a stream.
    words = threading.Thread(target=_say, args=last_words, daemon=True)
    with contextlib.suppress(RuntimeError):
        words.start()
        words.join(_FOR_LAST_WORDS)
    os._exit(code)


def _say(text: str, *args: object) -> None:
    log.error(text, *args)
    sys.stdout.flush()
    sys.stderr.flush()
