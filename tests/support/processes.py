"""Applications whose actors run in child processes, and what these send back."""

from __future__ import annotations

import os
from typing import Any

from spa_dat import DistributedApplication, Socket
from support.waiting import eventually

__all__ = ["add_worker", "collect", "make", "pid_told"]


def make(bus: Any = "memory://", **options: Any) -> DistributedApplication:
    """Return an application that has a name and enough time to stop."""
    options = {"name": "plant", "stop_timeout": 10, **options}
    return DistributedApplication(bus, **options)


def collect(app: DistributedApplication, topic: str) -> list[Any]:
    """Have an actor gather the payloads that arrive on a topic; return what it has."""
    got: list[Any] = []

    @app.application(topic, name="collector")
    async def take(payload: Any) -> None:
        got.append(payload)

    return got


def add_worker(app: DistributedApplication) -> list[int]:
    """Add an actor that tells, in a process of its own, the number of that process.

    Returns:
        What it has told, a number for each message to ``in``.
    """

    @app.application("in", placement="process")
    async def work(payload: int, socket: Socket) -> None:
        await socket.publish("out", os.getpid())

    return collect(app, "out")


async def pid_told(app: DistributedApplication, told: list[int]) -> int:
    """Send a message to ``in``, and return the number of the process that has handled it."""
    before = len(told)
    await app.socket().publish("in", 1)
    await eventually(lambda: len(told) > before)
    return told[-1]
