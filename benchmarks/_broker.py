"""A Mosquitto of our own on the loopback interface."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Broker", "broker_version"]

_START_TIMEOUT = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


def _find() -> str:
    # Debian keeps it out of ordinary users' PATH.
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    binary = shutil.which("mosquitto", path=path)
    if binary is None:
        raise FileNotFoundError("mosquitto is not installed: apt-get install mosquitto")
    return binary


def broker_version() -> str:
    """Return what the broker says of itself, or that there is none."""
    try:
        told = subprocess.run([_find(), "-h"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError as error:
        return str(error)
    return told.splitlines()[0] if told else "mosquitto of an unknown version"


class Broker:
    """A Mosquitto process with a port of its own, as a context manager.

    Args:
        settings: lines of its configuration besides the listener.

    Raises:
        FileNotFoundError: it is not installed.
        TimeoutError: it does not accept connections.
    """

    def __init__(self, settings: Sequence[str] = ()) -> None:
        binary = _find()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._folder = tempfile.mkdtemp(prefix="benchmark-")
        lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", *settings]
        configuration = Path(self._folder, "mosquitto.conf")
        configuration.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen(
            [binary, "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def cpu_seconds(self) -> float:
        """Return the CPU time that the broker has used so far; 0 if the system does not tell."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._end()
                    raise TimeoutError("mosquitto does not accept connections") from None
                time.sleep(0.02)
            else:
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
