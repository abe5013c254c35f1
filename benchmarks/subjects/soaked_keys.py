"""The application that `benchmarks.soak_keys` kills: it numbers the messages of each key.

``SOAK_BUS`` is ``kafka`` or ``mqtt``, ``SOAK_SERVER`` the broker, ``SOAK_FOLDER`` where it keeps
states and says that it has started, ``SPA_DAT_INSTANCE`` which of several it is, and
``SOAK_BROKEN`` what it leaves out, as one of the mistakes that have to be found.

What a message asks for besides: ``look`` is answered without a change, ``reject`` and ``spoil``
cannot be handled until there is a file ``mended``, and ``ring0`` to ``ring9`` set a reminder of
that name. On Kafka there are also states that expire.
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
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    KafkaTopic,
    Reject,
    RetryPolicy,
    Socket,
)
from spa_dat.transports.kafka.consuming import _changelog, _units

_FAILS, _WAITS = 0.01, 0.02
_LONG = 0.05
_DEDUPE, _TTL = 100, 3.0
_TTLS = {"expiry": None, "early-expiry": _TTL / 3, "late-expiry": 10 * _TTL}
_RINGS = [f"ring{number}" for number in range(10)]
_RING_WITHIN = 4.0
# Brokers are away for long on a busy machine.
_PATIENCE, _START_PATIENCE = 60.0, 300.0

on_kafka = os.environ["SOAK_BUS"] == "kafka"
broken = os.environ["SOAK_BROKEN"]
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
        return f"{server}?backoff_max=0.5&start_timeout={_START_PATIENCE:g}"
    return KafkaConfig(
        server,
        topics={
            "numbers/{key}": KafkaTopic("numbers", key="key"),
            "counts/{key}": KafkaTopic("counts", key="key"),
            "looks/{key}": KafkaTopic("looks", key="key"),
            "rings/{key}": KafkaTopic("rings", key="key"),
            "briefs/{key}": KafkaTopic("briefs", key="key"),
            "seen/{key}": KafkaTopic("seen", key="key"),
        },
        heartbeat_interval=0.5,
        session_timeout=4.0,
        rebalance_timeout=10.0,
        backoff_max=0.5,
        start_timeout=_START_PATIENCE,
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
    rings: int = 0


@app.application(
    "numbers/{key}",
    per="key",
    state=Count,
    durable=Durable(dedupe=_DEDUPE if on_kafka and broken != "dedupe" else None),
    retry=RetryPolicy(attempts=100, first=0.01),
    exactly_once=on_kafka and broken != "exactly-once",
)
async def count(
    payload: Numbered, key: str, state: Count, socket: Socket, context: Context
) -> None:
    if payload.asks == "look":
        await socket.publish(f"looks/{key}", state.n)
        return
    state.n += 1
    state.text = f"{payload.number} was the last"
    await socket.publish(f"counts/{key}", [payload.number, state.n, os.getpid()])
    if dice.random() < _WAITS:
        await asyncio.sleep(_LONG)
    await socket.publish("copies", payload.number)
    if payload.asks in _RINGS:
        due = context.now() + dice.uniform(0.0, _RING_WITHIN)
        context.remind(payload.asks, [payload.number, due], at=due)
    mended = (folder / "mended").exists()
    if payload.asks == "reject" and not mended:
        raise Reject("it asks for it")
    if payload.asks == "spoil" and not mended:
        state.text = "x" * 1_000_000
    elif dice.random() < _FAILS:
        raise ValueError("a bad day")


@app.on_reminder("count", *_RINGS)
async def ring(
    payload: tuple[int, float], key: str, state: Count, socket: Socket, context: Context
) -> None:
    number, due = payload
    state.rings += 1
    await socket.publish(f"rings/{key}", [number, state.rings, context.now() - due])
    if dice.random() < _FAILS:
        raise ValueError("a bad day")


if on_kafka:

    @dataclass
    class Brief:
        n: int = 0
        at: float = 0.0

    @app.application(
        "briefs/{key}",
        per="key",
        state=Brief,
        durable=Durable(ttl=_TTLS.get(broken, _TTL)),
        retry=RetryPolicy(attempts=100, first=0.01),
        exactly_once=True,
    )
    async def brief(payload: int, key: str, state: Brief, socket: Socket, context: Context) -> None:
        found = state.n
        state.n, state.at = found + 1, context.now()
        await socket.publish(f"seen/{key}", [payload, found, state.at])
        if dice.random() < _FAILS:
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
