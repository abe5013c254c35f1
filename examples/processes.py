"""Handlers that compute, in processes of their own: with a key, in order for each key.

Run it and watch; without a broker it ends by itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass

from spa_dat import DistributedApplication, Socket, run

app = DistributedApplication(sys.argv[1] if sys.argv[1:] else "memory://", name="hashing")


@dataclass
class Work:
    text: str
    rounds: int


@dataclass
class Result:
    digest: str
    process: int


def digest(work: Work) -> str:
    value = work.text.encode()
    for _ in range(work.rounds):
        value = hashlib.sha256(value).digest()
    return value.hex()


@app.application("work/{customer}", placement="process", processes=2, key="customer")
async def compute(customer: str, work: Work) -> Result:
    return Result(digest(work), os.getpid())


@app.producer()
async def ask(socket: Socket) -> None:
    for customer in ("anna", "bert", "anna", "bert"):
        result = await socket.request(f"work/{customer}", Work(customer, 1000), reply=Result)
        place = "elsewhere" if result.process != os.getpid() else "here"
        print(f"{customer}: {result.digest[:8]}, computed {place}")
    app.stop()


if __name__ == "__main__":
    run(app)
