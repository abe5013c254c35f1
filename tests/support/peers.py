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
from types import TracebackType
from typing import Any, Self

import pytest

from spa_dat.testing import Kafka, Mosquitto
from support.waiting import eventually

__all__ = ["BUSES", "PeerProgram", "address_of_bus", "faststream"]

BUSES = [
    pytest.param("mqtt", marks=pytest.mark.mosquitto),
    pytest.param("kafka", marks=pytest.mark.kafka),
]
"""Parameters of a fixture that calls `address_of_bus`."""

_ROOT = Path(__file__).parent.parent.parent
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


def address_of_bus(request: pytest.FixtureRequest) -> tuple[str, str, int]:
    """Return the bus that is the fixture's parameter, and host and port of a broker for it."""
    if request.param == "mqtt":
        mosquitto: Mosquitto = request.getfixturevalue("mosquitto")
        return "mqtt", mosquitto.host, mosquitto.port or 1883
    kafka: Kafka = request.getfixturevalue("kafka")
    return "kafka", kafka.host, kafka.port or 9092


def _interpreter(folder: str, variable: str) -> str:
    given = os.environ.get(variable)
    found = Path(given) if given else _ROOT / folder / "bin" / "python"
    if found.exists():
        return str(found)
    reason = f"there is no {found}: run scripts/test, which makes it, or name one in {variable}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class PeerProgram:
    """A program in a process of its own that says something: JSON, a line each.

    Args:
        folder: the virtual environment in the repository that it runs in.
        variable: the environment variable that may name another interpreter.
        code: of the program.
        arguments: of the program.

    Attributes:
        lines: what it has said so far.
    """

    def __init__(self, folder: str, variable: str, code: str, *arguments: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [_interpreter(folder, variable), "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    async def says(self, count: int = 1, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until it has said so much; return the latest of it."""
        await eventually(lambda: len(self.lines) >= count or not self.alive, timeout)
        assert len(self.lines) >= count, self.end()
        return self.lines[count - 1]

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def end(self) -> str:
        """End it if it has not ended; return what it has written to standard error."""
        if self.alive:
            self._process.terminate()
        assert self._process.stderr is not None
        with self._process:
            # Closing its output while that is read would fail there.
            errors = self._process.stderr.read()
            self._reader.join(10)
            return errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # To be seen if the test fails.
        print(self.lines, self.end())


@contextlib.asynccontextmanager
async def faststream(
    bus: str, place: tuple[str, int], topic: str, text: str
) -> AsyncIterator[PeerProgram]:
    """Run a program that has ``broker``, ``options`` of subscribers, ``topic`` and ``say``.

    The first thing that it says is that it is ready.

    Args:
        bus: ``mqtt`` or ``kafka``.
        place: host and port of the broker.
        topic: for the program.
        text: its handlers, and ``async def work()``, which is awaited once it has started.
    """
    code = _BEGINNING + textwrap.dedent(text) + _END
    arguments = (bus, place[0], str(place[1]), topic)
    program = PeerProgram(".venv-peers", "SPA_DAT_PEERS_PYTHON", code, *arguments)
    try:
        await program.says()
        yield program
    finally:
        errors = program.end()
    assert "Traceback" not in errors, errors
