"""An application with durable keys on Kafka, in a process of its own.

Usage: python kafka_counter.py PREFIX SERVER LEDGER INSTANCE OPTIONS

It writes down each message that it handles, numbers the messages of each key, publishes the
numbers, and sometimes fails after that. OPTIONS are those of the actor, as JSON, ``topics`` if
these are not only ``numbers``, and ``store`` for a file that has its states.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from spa_dat import DistributedApplication, Durable, KafkaConfig, KafkaTopic, RetryPolicy, Socket
from spa_dat.transports._sqlite_states import SqliteStates

prefix, server, ledger, instance, given = sys.argv[1:]
options = json.loads(given)
topics = options.pop("topics", ["numbers"])
file = options.pop("store", None)
config = KafkaConfig(
    server,
    prefix=prefix,
    topics={
        **{f"{topic}/{{key}}": KafkaTopic(topic, key="key") for topic in topics},
        "counts/{key}": KafkaTopic("counts", key="key"),
    },
    heartbeat_interval=0.3,
    rebalance_timeout=10.0,
    session_timeout=2.0,
    backoff_max=0.5,
)
folder = os.path.dirname(ledger)
app = DistributedApplication(config, name="counter", instance=instance, state_folder=folder)
# For a test that finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=True)
written = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@dataclass
class Count:
    n: int = 0


@app.application(
    [f"{topic}/{{key}}" for topic in topics],
    per="key",
    state=Count,
    durable=Durable(store=lambda _: SqliteStates(Path(file))) if file else True,
    retry=RetryPolicy(attempts=100, first=0.01),
    **options,
)
async def count(payload: bytes, key: str, state: Count, socket: Socket) -> None:
    # One write call: a killed process has written the whole line or nothing.
    os.write(written, payload)
    state.n += 1
    name, number = payload.decode().split()
    await socket.publish(f"counts/{key}", [name, int(number), state.n])
    if random.random() < 0.01:
        raise ValueError("a bad day")


@app.producer()
async def announce() -> None:
    os.write(written, b"ready %s\n" % instance.encode())


if __name__ == "__main__":
    app.run()
