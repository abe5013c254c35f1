"""Programs in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

__all__ = ["Program", "Start"]

_TIMEOUT = 30.0

_BEGINNING = """
import asyncio, contextlib, logging, sys, time
from spa_dat import *

def say(*words):
    print(*words, flush=True)

@contextlib.asynccontextmanager
async def resource():
    say("open")
    try:
        yield
    finally:
        say("close")

"""


Start = Callable[[str], "Program"]


class Program:
    """A program in a process of its own."""

    def __init__(self, folder: Path, text: str) -> None:
        path = folder / "program.py"
        path.write_text(_BEGINNING + textwrap.dedent(text))
        environment = {k: v for k, v in os.environ.items() if k != "SPA_DAT_INSTANCE"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read_until(self, line: str) -> None:
        assert self._process.stdout is not None
        seen = []
        for text in self._process.stdout:
            seen.append(text.strip())
            if seen[-1] == line:
                return
        raise AssertionError(f"the program ended without {line!r}; it said {seen}: {self.end()}")

    def write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Exit code, what else it said, standard error."""
        out, err = self._process.communicate(timeout=_TIMEOUT)
        return self._process.returncode, out.split("\n")[:-1], err

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
