"""An application with durable keys in a process of its own.

Usage: python durable_counter.py URL FOLDER

It numbers the messages of each key, publishes the numbers, and sometimes fails.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

from spa_dat import DistributedApplication, RetryPolicy, Socket

url, folder = sys.argv[1:]
app = DistributedApplication(url, name="counter", state_folder=folder)


@dataclass
class Count:
    n: int = 0


@app.application(
    "work/{key}", per="key", state=Count, durable=True, retry=RetryPolicy(attempts=100, first=0.01)
)
async def work(number: int, key: str, state: Count, socket: Socket) -> None:
    state.n += 1
    await socket.publish(f"done/{key}", [number, state.n])
    if random.random() < 0.05:
        raise ValueError("a bad day")


if __name__ == "__main__":
    app.run()
