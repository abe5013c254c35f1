"""The application that `benchmarks.soak_keys` kills: it numbers the messages of each key.

``SOAK_BUS`` is ``kafka`` or ``mqtt``, ``SOAK_SERVER`` the broker, ``SOAK_FOLDER`` where it keeps
states and says that it has started, ``SPA_DAT_INSTANCE`` which of several it is.

What a message asks for besides: ``look`` is answered without a change, ``reject`` and ``spoil``
cannot be handled.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa_dat import (
    DistributedApplication,
    KafkaConfig,
    KafkaTopic,
    Reject,
    RetryPolicy,
    Socket,
)
from spa_dat.transports.kafka.consuming import _changelog, _units

_FAILS, _WAITS = 0.01, 0.02
_LONG = 0.05
# Brokers are away for long on a busy machine.
_PATIENCE = 60.0

on_kafka = os.environ["SOAK_BUS"] == "kafka"
server, folder = os.environ["SOAK_SERVER"], Path(os.environ["SOAK_FOLDER"])
# For whoever finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=False)
told = os.open(folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
logging.basicConfig(
    level="INFO", format="%(asctime)s %(process)d %(name)s %(message)s", stream=sys.stderr
)
# Not seeded: which attempt fails has to differ from life to life.
dice = random.SystemRandom()


def tell(text: str) -> None:
    """Write a line in one call, so that it is there as a whole or not at all."""
    os.write(told, f"{os.getpid()} {text}\n".encode())


def bus() -> Any:
    """Return the configuration, or the address."""
    if not on_kafka:
        return f"{server}?backoff_max=0.5&start_timeout={_PATIENCE:g}"
    return KafkaConfig(
        server,
        topics={
            "numbers/{key}": KafkaTopic("numbers", key="key"),
            "counts/{key}": KafkaTopic("counts", key="key"),
            "looks/{key}": KafkaTopic("looks", key="key"),
        },
        heartbeat_interval=0.5,
        session_timeout=4.0,
        rebalance_timeout=10.0,
        backoff_max=0.5,
        start_timeout=_PATIENCE,
    )


app = DistributedApplication(
    bus(), name="soak", state_folder=str(folder / "states"), stop_timeout=_PATIENCE
)


@dataclass
class Numbered:
    number: int
    asks: str = ""


@dataclass
class Count:
    n: int = 0
    text: str = ""


@app.application(
    "numbers/{key}",
    per="key",
    state=Count,
    durable=True,
    retry=RetryPolicy(attempts=100, first=0.01),
    exactly_once=on_kafka,
)
async def count(payload: Numbered, key: str, state: Count, socket: Socket) -> None:
    if payload.asks == "look":
        await socket.publish(f"looks/{key}", state.n)
        return
    state.n += 1
    state.text = f"{payload.number} was the last"
    await socket.publish(f"counts/{key}", [payload.number, state.n, os.getpid()])
    if dice.random() < _WAITS:
        await asyncio.sleep(_LONG)
    await socket.publish("copies", payload.number)
    if payload.asks == "reject":
        raise Reject("it asks for it")
    if payload.asks == "spoil":
        state.text = "x" * 1_000_000
    elif dice.random() < _FAILS:
        raise ValueError("a bad day")


@app.producer()
async def announce() -> None:
    """Say that all subscriptions are in force."""
    tell("started")


if on_kafka:

    async def measured(*arguments: Any) -> None:
        """Restore states, and tell how long it has taken."""
        began = time.monotonic()
        await _changelog.restore(*arguments)
        tell(f"restored {time.monotonic() - began:.4f}")

    vars(_units)["restore"] = measured

if __name__ == "__main__":
    app.run()
