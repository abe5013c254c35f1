"""A broker as a process of this one's."""

from __future__ import annotations

import abc
import contextlib
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
from typing import Self

from ._errors import BrokerFailed, BrokerUnavailable

__all__ = ["BrokerProcess", "free_ports"]

_FIRST_PORT, _LAST_PORT = 15_000, 32_000
_PAUSE = 0.005
_WATCHDOG = 'read _; kill -9 "$1"; sleep 1; rm -rf "$2"'


class BrokerProcess(abc.ABC):
    """A broker on 127.0.0.1 that is started for tests, with ports and a data folder of its own.

    Used as a context manager, ``with`` or ``async with``, or by `start` and `close`. It keeps its
    ports and data over `restart`, and ends with the process that started it, however that ends.

    Attributes:
        host: where it listens.
        folder: its configuration, log and data; removed by `close`.
    """

    host = "127.0.0.1"
    title = "the broker"
    _start_timeout = 15.0
    _stop_timeout = 10.0

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"spa-dat-{type(self).__name__.lower()}-"))
        self._log_file = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._paused = False

    @classmethod
    @abc.abstractmethod
    def missing(cls) -> str | None:
        """What the broker needs and this machine does not have, and how to get it.

        None when it can be started.
        """

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Address of the plain listener, for an application or a provider."""

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """What starts it; may prepare its data."""

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether clients can use it; may raise OSError instead of saying no."""

    @property
    def pid(self) -> int:
        """Process id of the running broker.

        Raises:
            BrokerFailed: it does not run.
        """
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the process runs (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the broker has logged, over all restarts."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            BrokerUnavailable: this machine does not have it; says how to get it.
            BrokerFailed: it runs already, or does not answer in time.
        """
        text = self.missing()
        if text is not None:
            raise BrokerUnavailable(text)
        if self.alive:
            raise BrokerFailed(f"{self.title} runs already; use restart() or another one")
        self._end_watchdog()
        command = self._command()
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (a command of ours)
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A ^C at the terminal is for the tests, which then end the broker.
                start_new_session=True,
            )
        self._watch()
        self._wait_until_answering()

    def stop(self) -> None:
        """SIGTERM, and wait until it has saved its data and ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing is saved, and nothing said to anybody any more."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) it and start it again: same ports, same data."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT: end of `pause`."""
        self._running().send_signal(signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """End it if it runs and remove its folder. Calling it again does nothing."""
        if self.alive:
            # What it would save on SIGTERM is removed anyway.
            self._end(signal.SIGKILL)
        self._end_watchdog()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """`start`."""
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
        """`close`."""
        self.close()

    async def __aenter__(self) -> Self:
        """`start`, which blocks the event loop."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`close`."""
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise BrokerFailed(f"{self.title} does not run; its log:\n{self.log}")
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
                    f"{self.title} does not answer within {self._start_timeout:g} s; its log:\n"
                    f"{self.log}"
                )
            time.sleep(_PAUSE)

    def _watch(self) -> None:
        """A shell that waits for the end of its input, which comes with the end of this process."""
        self._watchdog = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._running().pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        if self._paused:
            self._paused = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        try:
            process.wait(self._stop_timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BrokerFailed(
                f"{self.title} did not end within {self._stop_timeout:g} s of {how.name} and was"
                f" killed; its log:\n{self.log}"
            ) from None
        finally:
            self._end_watchdog()

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog = None


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses.

    They are below those that the system gives to outgoing connections: a port must still be free
    when a broker or a proxy comes back to it.
    """
    # Not the seeded source that tests share: parallel runs would all try the same ports.
    numbers = random.SystemRandom()
    ports: list[int] = []
    while len(ports) < count:
        port = numbers.randrange(_FIRST_PORT, _LAST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind((BrokerProcess.host, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports
