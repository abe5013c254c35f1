"""An application whose keys remind themselves, in a process of its own.

Usage: python reminder_counter.py URL FOLDER TICKS

A key numbers its reminders, publishes the numbers, sets the next one, and sometimes fails.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

from spa_dat import Context, DistributedApplication, RetryPolicy, Socket

url, folder, ticks = sys.argv[1:]
app = DistributedApplication(url, name="ticker", state_folder=folder)
retry = RetryPolicy(attempts=100, first=0.01)


@dataclass
class Count:
    n: int = 0


@app.application("start/{key}", per="key", state=Count, durable=True, retry=retry)
async def work(context: Context) -> None:
    context.remind("tick", 1, after=0.01)


@app.on_reminder("work", "tick")
async def tick(number: int, key: str, state: Count, context: Context, socket: Socket) -> None:
    state.n += 1
    await socket.publish(f"ticked/{key}", [number, state.n])
    if number < int(ticks):
        context.remind("tick", number + 1, after=0.005)
    if random.random() < 0.05:
        raise ValueError("a bad day")


if __name__ == "__main__":
    app.run()
