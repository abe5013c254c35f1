"""The command line in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from support.waiting import eventually

__all__ = ["Command"]

_TIMEOUT = 60.0


class Command:
    """``spa-dat`` with these arguments; killed at the end of the block if it still runs.

    Args:
        folder: where it runs.
        arguments: of the command.
        before: what comes in front of it, as another command.
        program: a file to run in place of ``spa-dat``.
        environment: variables that it gets besides.

    Attributes:
        lines: what it has written so far, on both streams.
        errors: those of standard error among them.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        before: tuple[str, ...] = (),
        program: Path | None = None,
        environment: Mapping[str, str] = {},
    ) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        what = ("-m", "spa_dat") if program is None else (str(program),)
        unset = ("SPA_DAT_INSTANCE", "SPA_DAT_LOG_FORMAT", "SPA_DAT_URL")
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        self._process = subprocess.Popen(
            [*before, sys.executable, "-W", "error", *what, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=folder,
            env={**inherited, **environment},
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=streams)
            for streams in (
                (self._process.stdout, self.lines),
                (self._process.stderr, self.lines, self.errors),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], *lists: list[str]) -> None:
        with stream:
            for line in stream:
                for into in lists:
                    into.append(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        return self._process.pid

    def found(self, pattern: str) -> list[re.Match[str]]:
        """The lines that match."""
        matches = (re.search(pattern, line) for line in tuple(self.lines))
        return [match for match in matches if match is not None]

    async def says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait for so many lines that match; returns the last one's match."""

        def looked() -> bool:
            if len(self.found(pattern)) >= times:
                return True
            assert self._process.poll() is None or self._is_read(), "it still writes"
            assert self._process.poll() is None, f"ended without {pattern!r}: {self.lines[-50:]}"
            return False

        try:
            await eventually(looked, _TIMEOUT)
        except AssertionError:
            raise AssertionError(f"{pattern!r} does not come: {self.lines[-50:]}") from None
        return self.found(pattern)[times - 1]

    def _is_read(self) -> bool:
        for reader in self._readers:
            reader.join(1.0)
        return True

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> int:
        """Wait for its end; returns the exit code."""
        await eventually(lambda: self._process.poll() is not None, _TIMEOUT)
        await eventually(lambda: not any(reader.is_alive() for reader in self._readers), _TIMEOUT)
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
