"""An application with durable keys on Kafka, in a process of its own.

Usage: python kafka_counter.py PREFIX SERVER LEDGER INSTANCE OPTIONS

It writes down each message that it handles, numbers the messages of each key, publishes the
numbers, and sometimes fails after that. OPTIONS are those of the actor, as JSON.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
from dataclasses import dataclass

from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic, RetryPolicy, Socket

prefix, server, ledger, instance, options = sys.argv[1:]
config = KafkaConfig(
    server,
    prefix=prefix,
    topics={
        "numbers/{key}": KafkaTopic("numbers", key="key"),
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
    "numbers/{key}",
    per="key",
    state=Count,
    durable=True,
    retry=RetryPolicy(attempts=100, first=0.01),
    **json.loads(options),
)
async def count(payload: bytes, key: str, state: Count, socket: Socket) -> None:
    # One write call: a killed process has written the whole line or nothing.
    os.write(written, payload)
    state.n += 1
    number = int(payload.split()[1])
    await socket.publish(f"counts/{key}", [number, state.n])
    if random.random() < 0.01:
        raise ValueError("a bad day")


@app.producer()
async def announce() -> None:
    os.write(written, b"ready %s\n" % instance.encode())


if __name__ == "__main__":
    app.run()
