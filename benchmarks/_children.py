"""Child processes: each measurement runs in one, which reports in lines of JSON."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Child", "MeasurementFailed"]

_ROOT = Path(__file__).resolve().parent.parent
_TAIL = 600


class MeasurementFailed(Exception):
    """A child ended early, said something unexpected, or took too long."""


class Child:
    """A run of ``python -m benchmarks.subjects.{module}`` with a JSON argument; a context manager.

    Leaving the context ends the process.

    Args:
        interpreter: which Python.
        module: the name below `benchmarks.subjects`.
        arguments: what the child is told.
        seconds: how long it may take from start to end.
    """

    def __init__(
        self, interpreter: str, module: str, arguments: Mapping[str, Any], *, seconds: float
    ) -> None:
        self._name = f"{module} {arguments.get('what', '')}".strip()
        self._deadline = time.monotonic() + seconds
        self._unread = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            [interpreter, "-m", f"benchmarks.subjects.{module}", json.dumps(dict(arguments))],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def expect(self, event: str) -> dict[str, float]:
        """Wait for the child's next line.

        Raises:
            MeasurementFailed: it is not this event, or does not come in time.
        """
        line = self._line()
        try:
            message = json.loads(line)
            came = message.pop("event")
        except (ValueError, KeyError, AttributeError):
            came, message = line.decode(errors="replace"), {}
        if came != event:
            raise MeasurementFailed(f"{self._name} said {came!r} instead of {event!r}")
        return {key: float(value) for key, value in message.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, self._deadline - time.monotonic())):
                    raise MeasurementFailed(f"{self._name} took too long{self._complaint()}")
                data = os.read(descriptor, 65_536)
                if not data:
                    raise MeasurementFailed(f"{self._name} ended early{self._complaint()}")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _complaint(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL))
        text = self._errors.read().decode(errors="replace").strip()
        return f": {text}" if text else ""
