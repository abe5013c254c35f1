"""Programs of spa-dat 0.4.0, in processes of their own with an environment of their own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import textwrap
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from support.waiting import eventually

__all__ = ["OldProgram"]

_ROOT = Path(__file__).parent.parent.parent
_PYTHON = "SPA_DAT_0_4_0_PYTHON"
_BEGINNING = """
import asyncio, json, logging, sys

from spa_dat.application.application import DistributedApplication
from spa_dat.config import PayloadFormat, SocketConfig
from spa_dat.provider import SocketProviderFactory
from spa_dat.socket.kafka import KafkaConfig
from spa_dat.socket.mqtt import MqttConfig

bus, host, port, topic = sys.argv[1:]
if bus == "kafka":
    config = KafkaConfig(bootstrap_servers=f"{host}:{port}")
else:
    config = MqttConfig(host=host, port=int(port))
app = DistributedApplication(
    SocketProviderFactory.from_config(
        SocketConfig(payload_format=PayloadFormat.JSON, socket_config=config)
    )
)

def say(**what):
    print(json.dumps(what), flush=True)

def said(message):
    say(
        payload=message.payload.decode(),
        topic=message.topic,
        content_type=message.content_type,
        client_name=message.client_name,
        response_topic=message.response_topic,
    )

"""


def _interpreter() -> str:
    given = os.environ.get(_PYTHON)
    found = Path(given) if given else _ROOT / ".venv-0.4.0" / "bin" / "python"
    if found.exists():
        return str(found)
    reason = f"there is no {found}: run scripts/test, which makes it, or name one in {_PYTHON}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class OldProgram:
    """A program of 0.4.0, which has ``app``, ``topic``, ``say`` and ``said``.

    Args:
        bus: ``mqtt`` or ``kafka``.
        place: host and port of the broker.
        topic: for the program.
        text: what it does before ``app.start()``.
    """

    def __init__(self, bus: str, place: tuple[str, int], topic: str, text: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._came: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [
                _interpreter(),
                "-c",
                _BEGINNING + textwrap.dedent(text) + "\napp.start()\n",
                bus,
                place[0],
                str(place[1]),
                topic,
            ],
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
            self._came.put(line)

    def said(self) -> list[dict[str, Any]]:
        """Return what it has said so far."""
        while not self._came.empty():
            self.lines.append(json.loads(self._came.get()))
        return self.lines

    async def says(self, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until it has said something; return the first of it."""
        await eventually(lambda: bool(self.said()) or not self.alive, timeout)
        assert self.said(), self.end()
        return self.lines[0]

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
            return self._process.stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        self._reader.join(10)
