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
from functools import partial
from types import FrameType
from typing import Any

from .._logs import get_logger
from ._stacks import frames_of_thread, place

__all__ = ["Signals"]

log = get_logger("spa_dat")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FOR_LAST_WORDS = 1.0
_LONGEST_REST = 20.0
_SIGN_OF_LIFE = 5.0


class Signals:
    """SIGINT and SIGTERM: the first stops a program in good order, the second ends it at once.

    The event loop may be blocked meanwhile, by what the user calls. So signals are counted twice,
    by the interpreter's handler in the main thread, which runs as soon as that is in Python code,
    and by a thread that is woken by the operating system; who has two first ends the program.

    Args:
        stop_timeout: seconds that stopping may take, but for what bounds itself. If the loop is
            blocked so long after the first signal, or after `stopping`, nobody can stop the
            program in good order, and it ends with exit code 1.
    """

    def __init__(self, stop_timeout: float) -> None:
        self._longest_stop = stop_timeout + _LONGEST_REST
        self._stopping = threading.Lock()
        self._ended = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first: Callable[[], object] | None = None
        self._handled = 0
        self._woken = 0
        self._announcing = threading.Lock()
        self._ending = threading.Lock()
        self._receiver: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._wake_before = -1

    def install(self, first: Callable[[], object]) -> None:
        """Handle the signals from now on; called in the main thread, on its running loop.

        Args:
            first: called on the loop when the first one arrives.
        """
        self._loop = asyncio.get_running_loop()
        self._first = first
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        self._wake_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="spa_dat signals", daemon=True).start()

    def stopping(self) -> None:
        """The program stops now: see to it that it ends. Works from any thread."""
        if self._stopping.acquire(blocking=False):
            threading.Thread(target=self._see_to_it, name="spa_dat stop", daemon=True).start()

    def _see_to_it(self) -> None:
        self._ended.wait(self._longest_stop)
        while not self._ended.is_set():
            alive = threading.Event()
            self._call_on_loop(alive.set)
            if not alive.wait(_SIGN_OF_LIFE) and not self._ended.is_set():
                where = place(frames_of_thread(threading.main_thread().ident))
                _exit(1, "the program cannot stop, its event loop is blocked: %s", where)
            self._ended.wait(_SIGN_OF_LIFE)

    def restore(self) -> None:
        """Let the signals do what they did before `install`."""
        self._ended.set()
        sender, self._sender = self._sender, None
        if sender is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        try:
            now = signal.set_wakeup_fd(self._wake_before)
        except (OSError, ValueError):
            # It belonged to an event loop that is closed by now, as uvloop's does.
            now = signal.set_wakeup_fd(-1)
        if now != sender.fileno():
            signal.set_wakeup_fd(now)
        # The thread ends with it.
        sender.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # In the middle of anything, which may hold the lock of the log: it must go on first.
        self._handled += 1
        received = signal.Signals(number)
        if self._handled == 1:
            self._call_on_loop(self._stop)
            self._call_on_loop(self._announce, received)
        else:
            threading.Thread(target=self._end, args=(received,), daemon=True).start()

    def _watch(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        with receiver:
            while data := receiver.recv(64):
                if self._wake_before >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._wake_before, data)
                for number in _SIGNALS:
                    for _ in range(data.count(number)):
                        self._woken += 1
                        self.stopping()
                        if self._woken == 1:
                            self._call_on_loop(self._stop)
                            # Not here: whatever holds the lock of the log must not stop this.
                            announce = partial(self._announce, number)
                            threading.Thread(target=announce, daemon=True).start()
                        else:
                            self._end(number)

    def _call_on_loop(self, function: Callable[..., object], *args: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(function, *args)

    def _stop(self) -> None:
        assert self._first is not None
        self._first()

    def _announce(self, number: signal.Signals) -> None:
        if self._announcing.acquire(blocking=False):
            log.info("%s: stopping; a second signal ends at once", number.name)

    def _end(self, number: signal.Signals) -> None:
        if not self._ending.acquire(blocking=False):
            return
        _exit(128 + number, "%s again: ending at once", number.name)


def _exit(code: int, *last_words: object) -> None:
    # Whatever it is that hangs, it may hold the lock of the log or of a stream.
    words = threading.Thread(target=_say, args=last_words, daemon=True)
    words.start()
    words.join(_FOR_LAST_WORDS)
    os._exit(code)


def _say(text: str, *args: object) -> None:
    log.error(text, *args)
    sys.stdout.flush()
    sys.stderr.flush()
