"""Programs on libraries of others, in processes of their own with an environment of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import textwrap
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.waiting import eventually

__all__ = ["FastStreamProgram", "faststream"]

_ROOT = Path(__file__).parent.parent.parent
_PYTHON = "SPA_DAT_PEERS_PYTHON"
_BEGINNING = """
import asyncio, json, sys

bus, host, port, topic = sys.argv[1:]
if bus == "kafka":
    from faststream.kafka import KafkaBroker
    broker = KafkaBroker(f"{host}:{port}", logger=None)
    options = {"auto_offset_reset": "earliest"}
else:
    from faststream.mqtt import MQTTBroker
    broker = MQTTBroker(f"mqtt://{host}:{port}", logger=None)
    options = {}

def say(**what):
    print(json.dumps(what), flush=True)

"""
_END = """
async def main():
    await broker.start()
    say(ready=True)
    await work()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _interpreter() -> str:
    given = os.environ.get(_PYTHON)
    found = Path(given) if given else _ROOT / ".venv-peers" / "bin" / "python"
    if found.exists():
        return str(found)
    reason = f"there is no {found}: run scripts/test, which makes it, or name one in {_PYTHON}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class FastStreamProgram:
    """A program on FastStream that runs.

    Attributes:
        said: what it has said so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.said: list[dict[str, Any]] = []
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(json.loads(line))

    async def says(self, count: int = 1, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until it has said so much, not counting that it is ready; return the latest."""
        await eventually(
            lambda: len(self.said) > count or self._process.poll() is not None, timeout
        )
        assert len(self.said) > count, self.end()
        return self.said[count]

    def end(self) -> str:
        """End it; return what it wrote to standard error."""
        self._process.kill()
        self._reader.join()
        assert self._process.stderr is not None
        errors = self._process.stderr.read()
        self._process.wait()
        self._process.stderr.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return errors


@contextlib.asynccontextmanager
async def faststream(
    bus: str, place: tuple[str, int], topic: str, text: str
) -> AsyncIterator[FastStreamProgram]:
    """Run a program that has ``broker``, ``options`` of subscribers, ``topic`` and ``say``.

    Args:
        bus: ``mqtt`` or ``kafka``.
        place: host and port of the broker.
        topic: for the program.
        text: its handlers, and ``async def work()``, which is awaited once it has started.
    """
    arguments = (bus, place[0], str(place[1]), topic)
    program = FastStreamProgram(
        subprocess.Popen(
            [_interpreter(), "-c", _BEGINNING + textwrap.dedent(text) + _END, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
    )
    errors = ""
    try:
        await program.says(0)
        yield program
    finally:
        errors = program.end()
    assert "Traceback" not in errors, errors
