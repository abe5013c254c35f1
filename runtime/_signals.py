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

from .._logs import get_logger

__all__ = ["Signals"]

log = get_logger("spa_dat")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FOR_LAST_WORDS = 1.0


class Signals:
    """SIGINT and SIGTERM: the first stops a program in good order, the second ends it at once.

    The event loop may be blocked meanwhile, by what the user calls. So signals are counted twice,
    by the interpreter's handler in the main thread, which runs as soon as that is in Python code,
    and by a thread that is woken by the operating system; what has more is right.
    """

    def __init__(self) -> None:
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

    def restore(self) -> None:
        """Let the signals do what they did before `install`."""
        sender, self._sender = self._sender, None
        if sender is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        now = signal.set_wakeup_fd(self._wake_before)
        if now != sender.fileno():
            signal.set_wakeup_fd(now)
        # The thread ends with it.
        sender.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # In the middle of anything: no locks to wait for, and no logging.
        self._handled += 1
        self._count(signal.Signals(number), self._on_loop)

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
                        self._count(number, self._announce)

    def _count(self, number: signal.Signals, announce: Callable[[signal.Signals], None]) -> None:
        if max(self._handled, self._woken) > 1:
            self._end(number)
        else:
            self._call_on_loop(self._stop)
            announce(number)

    def _on_loop(self, number: signal.Signals) -> None:
        self._call_on_loop(self._announce, number)

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
        # Whatever it is that hangs, it may hold the lock of the log or of a stream.
        words = threading.Thread(target=_last_words, args=(number.name,), daemon=True)
        words.start()
        words.join(_FOR_LAST_WORDS)
        os._exit(128 + number)


def _last_words(name: str) -> None:
    log.warning("%s again: ending at once", name)
    sys.stdout.flush()
    sys.stderr.flush()
