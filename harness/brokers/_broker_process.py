"""A broker as a child process, and the ports that it claims."""

from __future__ import annotations

import abc
import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

from ._errors import BrokerFailed, BrokerUnavailable

__all__ = ["BrokerProcess", "PortClaims"]

_FIRST_PORT, _LAST_PORT = 15_000, 32_000
_PAUSE = 0.005
_SIGNAL_AGAIN = 1.0
_WATCHDOG = 'read _; kill -9 "$1"; sleep 1; rm -rf "$2"'


class BrokerProcess(abc.ABC):
    """A broker on 127.0.0.1 for tests, with its own ports and data folder.

    Use it as a context manager, ``with`` or ``async with``, or call `start` and `close`. It keeps
    its ports and data over `restart`, and ends with the process that started it, however that ends.

    Attributes:
        host: the address on which it listens.
        folder: its configuration, log and data; removed by `close`.
    """

    host = "127.0.0.1"
    title = "the broker"
    _start_timeout = 30.0
    _stop_timeout = 10.0

    def __init__(self) -> None:
        self.folder: Path = Path(tempfile.mkdtemp(prefix=f"spa-dat-{type(self).__name__.lower()}-"))
        self._log_file = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._ports = PortClaims()

    @classmethod
    @abc.abstractmethod
    def missing(cls) -> str | None:
        """Say what this machine lacks to run the broker, and how to get it; None if nothing."""

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """The address of the plain listener, for an application or a provider."""

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """Return the command that starts it; may prepare its data."""

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Tell whether clients can use it; may raise OSError instead of returning False."""

    @property
    def pid(self) -> int:
        """The process id of the running broker.

        Raises:
            BrokerFailed: it is not running.
        """
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the process is running (a paused one is)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything that the broker has logged, over all restarts."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            BrokerUnavailable: this machine lacks something; the text says how to get it.
            BrokerFailed: it is already running, or does not answer in time.
        """
        text = self.missing()
        if text is not None:
            raise BrokerUnavailable(text)
        if self.alive:
            raise BrokerFailed(
                f"{self.title} is already running; use restart(), or make another one"
            )
        self._end_watchdog()
        command = self._command()
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (a command of ours)
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at the terminal is for the tests, which then end the broker.
                start_new_session=True,
            )
        self._watch()
        self._wait_until_answering()

    def stop(self) -> None:
        """Send SIGTERM, and wait until it has saved its data and ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: it saves nothing, and tells no client."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) it and start it again: same ports, same data."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        self.start()

    def pause(self) -> None:
        """Send SIGSTOP: connections stay open, and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT, which ends `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it if it runs and remove its folder. Calling it again does nothing."""
        if self.alive:
            # What it would save on SIGTERM is removed anyway.
            self._end(signal.SIGKILL)
        self._end_watchdog()
        self._ports.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Call `start`."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Call `close`."""
        self.close()

    async def __aenter__(self) -> Self:
        """Call `start`, which blocks the event loop."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Call `close`."""
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise BrokerFailed(f"{self.title} is not running; its log:\n{self.log}")
        return self._process

    def _accepts(self, port: int) -> bool:
        with socket.create_connection((self.host, port), timeout=1.0):
            return True

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def _wait_until_answering(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while True:
            try:
                self._running()
            except BrokerFailed:
                self._end_watchdog()
                raise
            with contextlib.suppress(OSError):
                if self._answers():
                    return
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise BrokerFailed(
                    f"{self.title} did not answer within {self._start_timeout:g} s; its log:\n"
                    f"{self.log}"
                )
            time.sleep(_PAUSE)

    def _watch(self) -> None:
        """Start a shell that kills the broker when its input ends, as it does with this process."""
        self._watchdog = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._running().pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        deadline = time.monotonic() + self._stop_timeout
        try:
            while True:
                process.send_signal(how)
                # A stopped process gets no other signal, and not only `pause` can have stopped it.
                process.send_signal(signal.SIGCONT)
                try:
                    process.wait(max(0.0, min(_SIGNAL_AGAIN, deadline - time.monotonic())))
                    return
                except subprocess.TimeoutExpired:
                    # A signal that comes just before a wait begins may not end it: once more.
                    if time.monotonic() < deadline:
                        continue
                state = _state_of(process.pid)
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self._stop_timeout)
                raise BrokerFailed(
                    f"{self.title} (process {process.pid}, {state}) did not end within"
                    f" {self._stop_timeout:g} s of {how.name} and was killed; its log:\n{self.log}"
                )
        finally:
            self._end_watchdog()

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog = None


class PortClaims:
    """Claims of free ports of 127.0.0.1, which keep them free for whoever claimed them.

    A broker binds its ports seconds after they were chosen, and binds them again after a restart;
    other processes with tests, also of other checkouts, must not choose the same ones meanwhile. A
    claim is a lock on one byte of a file that all of them share; it ends with the process.
    """

    _file: ClassVar[IO[bytes] | None] = None
    _of_this_process: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        self._ports: list[int] = []

    def take(self, count: int) -> list[int]:
        """Claim unused ports, until `release`.

        They are below those that the system uses for outgoing connections.
        """
        # Not a seeded source: tests that run in parallel would all try the same ports.
        numbers = random.SystemRandom()
        first, last = _range_for_servers()
        taken: list[int] = []
        while len(taken) < count:
            port = numbers.randrange(first, last)
            if not self._lock(port):
                continue
            with socket.socket() as probe:
                try:
                    probe.bind((BrokerProcess.host, port))
                except OSError:
                    self._unlock(port)
                    continue
            taken.append(port)
        self._ports += taken
        return taken

    def release(self) -> None:
        """Give the ports back."""
        for port in self._ports:
            self._unlock(port)
        self._ports.clear()

    @classmethod
    def _lock(cls, port: int) -> bool:
        # Such a lock does not exclude the process that holds it.
        if port in cls._of_this_process:
            return False
        if cls._file is None:
            # One file for each user: those of others are not writable.
            path = Path(tempfile.gettempdir(), f"spa-dat-ports-{os.getuid()}")
            cls._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            fcntl.lockf(cls._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        cls._of_this_process.add(port)
        return True

    @classmethod
    def _unlock(cls, port: int) -> None:
        cls._of_this_process.discard(port)
        if cls._file is not None:
            fcntl.lockf(cls._file, fcntl.LOCK_UN, 1, port)


def _state_of(pid: int) -> str:
    """Say what a process is doing, as far as the system tells: its state, and where it waits."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        state = next(line.split(":", 1)[1].strip() for line in status if line.startswith("State:"))
        waits = Path(f"/proc/{pid}/wchan").read_text().strip("0 \n")
    except (OSError, StopIteration):
        return "in an unknown state"
    return f"{state} in {waits}" if waits else state


def _range_for_servers() -> tuple[int, int]:
    """Return the range of ports that the system does not use for outgoing connections."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = _LAST_PORT
    # Brokers that tests start side by side would soon use up fewer than these.
    return _FIRST_PORT, max(_FIRST_PORT + 2_000, min(_LAST_PORT, lowest))
