"""An application whose keys on Kafka remind themselves, and expire, in a process of its own.

Usage: python kafka_ticker.py PREFIX SERVER FOLDER INSTANCE TICKS

A key numbers its reminders, publishes the numbers, sets the next one, and sometimes fails. What is
known of another actor's keys expires after three seconds.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
from dataclasses import dataclass

from spa_dat import (
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    KafkaTopic,
    RetryPolicy,
    Socket,
)

prefix, server, folder, instance, ticks = sys.argv[1:]
names = ("started", "ticked", "brief")
config = KafkaConfig(
    server,
    prefix=prefix,
    topics={f"{name}/{{key}}": KafkaTopic(name, key="key") for name in names},
    heartbeat_interval=0.3,
    rebalance_timeout=10.0,
    session_timeout=2.0,
    backoff_max=0.5,
)
app = DistributedApplication(config, name="ticker", instance=instance, state_folder=folder)
retry = RetryPolicy(attempts=100, first=0.01)
# For a test that finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=True)


@dataclass
class Count:
    n: int = 0


@app.application(
    "started/{key}", per="key", state=Count, durable=True, exactly_once=True, retry=retry
)
async def work(context: Context) -> None:
    context.remind("tick", 0, after=0.05)


@app.on_reminder("work", "tick")
async def tick(number: int, key: str, state: Count, context: Context, socket: Socket) -> None:
    await socket.publish(f"ticked/{key}", [number, state.n])
    state.n += 1
    if state.n < int(ticks):
        context.remind("tick", number + 1, after=0.05)
    if random.random() < 0.02:
        raise ValueError("a bad day")


@app.application("brief/{key}", per="key", state=Count, durable=Durable(ttl=3.0))
async def brief(state: Count) -> None:
    state.n += 1


if __name__ == "__main__":
    app.run()
