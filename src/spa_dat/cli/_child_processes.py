"""The supervisor of child processes: their ends, their reports, signals, and what has to wait.

One thread does it all and waits for nothing but `select`, so it hears signals whatever the children
do.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import queue
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from ._child_link import Child
from ._one_line import one_line
from ._worker_output import Outputs

__all__ = ["Init", "Owner", "Processes", "exit_code"]

_STOP = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# A child ends itself 20 seconds after its stop_timeout at the latest, unless it stands still.
_REST = 25.0
_STOP_TIMEOUT = 10.0
_LONGEST_WAIT = 1.0
# `timeout` and others signal a process, and its group as well.
_TWICE = 0.2


class Owner(Protocol):
    """Who decides what becomes of the children."""

    def ended(self, child: Child, code: int) -> None:
        """Decide what follows the end of a child; see `Child.ended` for the code."""

    def reported(self, child: Child, report: str) -> None:
        """Hear what a child reports."""

    def stop(self) -> None:
        """Start nothing more: a stop signal has come, which the children have received too."""


class Processes:
    """The children of this process.

    The first SIGTERM or SIGINT stops the children in good order, the second kills them. As the
    first process of a container it also waits for orphans.

    Args:
        owner: decides what becomes of them.
        as_json: whether all lines of the log are JSON.
    """

    def __init__(self, owner: Owner, *, as_json: bool = False) -> None:
        self._owner = owner
        self._children: dict[int, Child] = {}
        self._stop_timeouts: dict[int, float] = {}
        self._stopped: set[int] = set()
        _open_standard_streams()
        self._selector = selectors.PollSelector()
        self.outputs = Outputs(self._selector, as_json=as_json)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._signals: list[signal.Signals] = []
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._code: int | None = None
        self._is_first = os.getpid() == 1
        self._stopping = False
        self._asked: float | None = None

    def start(
        self,
        arguments: Sequence[str],
        *,
        number: int | None = None,
        count: int | None = None,
        again: bool = False,
        name: str | None = None,
    ) -> Child:
        """Start a child; raises OSError when the machine cannot.

        Args:
            arguments: as for `Child`.
            number: as for `Child`.
            count: as for `Child`.
            again: as for `Child`.
            name: what its lines of output begin with; None leaves its output alone.
        """
        child = Child(arguments, number=number, count=count, again=again, piped=name is not None)
        self._children[child.pid] = child
        self._selector.register(child.link, selectors.EVENT_READ, lambda: self._read(child))
        if name is not None:
            self.outputs.take(child, name)
        return child

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function after so many seconds."""
        entry = (time.monotonic() + seconds, next(self._numbers), function)
        heapq.heappush(self._timers, entry)

    def call_soon_threadsafe(self, function: Callable[[], object]) -> None:
        """Call a function soon; the only method for other threads."""
        self._calls.put(function)
        with contextlib.suppress(OSError):
            # Where nothing more has room, enough is there to be woken by; or it is the end.
            self._sender.send(b"\0")

    def say(self, text: str) -> None:
        """Write a line of its own to standard error."""
        self.outputs.say(one_line(text))

    def stop_child(self, child: Child) -> None:
        """Stop a child in good order; killed if it takes longer than it may."""
        if child.pid in self._stopped:
            # A second signal would end it at once.
            return
        self._stopped.add(child.pid)
        child.send(signal.SIGTERM)
        # One that is stopped (SIGSTOP) hears nothing.
        longest = self._stop_timeouts.get(child.pid, _STOP_TIMEOUT) + _REST
        self.call_later(longest, lambda: self._kill(child, longest))

    def stop_all(self) -> None:
        """Stop all children in good order; the owner starts no others."""
        if not self._stopping:
            self._stopping = True
            for child in list(self._children.values()):
                self.stop_child(child)

    def _kill(self, child: Child, longest: float) -> None:
        if self._children.get(child.pid) is child:
            self.say(f"process {child.pid} has not stopped within {longest:g} s: killing it")
            child.send(signal.SIGKILL)

    def end(self, code: int) -> None:
        """Let `run` return this exit code, unless there is one; no children are left."""
        if self._code is None:
            self._code = code

    def run(self) -> int:
        """Look after the children until `end` is called, or until a second signal."""
        self._selector.register(self._receiver, selectors.EVENT_READ, self._woken)
        handled = (*_STOP, signal.SIGCHLD, *(_PASSED_ON if self._is_first else ()))
        for number in handled:
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        try:
            while self._code is None:
                self._turn()
            self.outputs.flush()
            return self._code
        finally:
            for number in handled:
                # The end is decided: one that comes late must not change the exit code.
                late = signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN
                signal.signal(number, late)
            signal.set_wakeup_fd(-1)
            self._selector.close()
            self._receiver.close()
            self._sender.close()

    def _turn(self) -> None:
        now = time.monotonic()
        due = self._timers[0][0] - now if self._timers else _LONGEST_WAIT
        for key, _ in self._selector.select(max(0.0, min(due, _LONGEST_WAIT))):
            key.data()
        while self._signals and self._code is None:
            self._handle(self._signals.pop(0))
        self._reap()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now and self._code is None:
            heapq.heappop(self._timers)[2]()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(signal.Signals(number))

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(4096)
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()

    def _handle(self, number: signal.Signals) -> None:
        if number not in _STOP:
            for child in self._children.values():
                child.send(number)
        elif self._asked is None:
            self._asked = time.monotonic()
            self.say(f"{number.name}: stopping; a second signal ends at once")
            self.stop_all()
            self._owner.stop()
        elif time.monotonic() - self._asked > _TWICE:
            self.say(f"{number.name} again: ending at once")
            for child in self._children.values():
                child.send(signal.SIGKILL)
            self._code = 128 + number

    def _read(self, child: Child) -> None:
        reports = child.reports()
        if reports is None:
            self._unlink(child)
        for report in reports or ():
            word, _, value = report.partition(" ")
            if word == "loaded":
                with contextlib.suppress(ValueError):
                    self._stop_timeouts[child.pid] = float(value)
            self._owner.reported(child, word)

    def _unlink(self, child: Child) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.link)

    def _reap(self) -> None:
        for wanted in (-1,) if self._is_first else tuple(self._children):
            while True:
                try:
                    pid, status = os.waitpid(wanted, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                child = self._children.get(pid)
                if child is not None:
                    self._ended(child, status)

    def _ended(self, child: Child, status: int) -> None:
        # What it has said last belongs before what is said of it.
        self._read(child)
        self._unlink(child)
        self.outputs.drain(child)
        del self._children[child.pid]
        self._stop_timeouts.pop(child.pid, None)
        self._stopped.discard(child.pid)
        self._owner.ended(child, child.ended(status))


def _open_standard_streams() -> None:
    """Put nothing where a standard stream is closed, else something else would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def exit_code(code: int) -> int:
    """Return what a shell would say of a process that has ended so."""
    return code if code >= 0 else 128 - code


class Init:
    """The first process of a container: it runs the application in a child, and waits for orphans.

    The kernel gives the first process those whose parents have ended, and spares it signals that
    it does not handle. An application cannot do that itself: it would take the ends of the
    processes away that its own code waits for.

    Args:
        arguments: of the command.
        as_json: whether its own lines are JSON.
    """

    def __init__(self, arguments: Sequence[str], *, as_json: bool = False) -> None:
        self._processes = Processes(self, as_json=as_json)
        self._arguments = arguments

    def run(self) -> int:
        """Run the application; returns its exit code."""
        self._processes.call_later(0.0, lambda: self._processes.start(self._arguments))
        return self._processes.run()

    def ended(self, child: Child, code: int) -> None:
        """See `Owner.ended`."""
        self._processes.end(exit_code(code))

    def reported(self, child: Child, report: str) -> None:
        """See `Owner.reported`."""

    def stop(self) -> None:
        """See `Owner.stop`."""
