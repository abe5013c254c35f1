"""A producer with an outbox in a file, in a process of its own, that writes down what is recorded.

Usage: python durable_publisher.py URL LEDGER FOLDER

It numbers its messages on from the last one in the ledger, publishes and posts them by turns, and
writes each number down when the call has returned.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from spa_dat import DistributedApplication, OutboxFile, Socket

url, ledger, folder = sys.argv[1:]
app = DistributedApplication(url, name="durable", outbox=OutboxFile(folder=folder))
written = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.producer()
async def publish(socket: Socket) -> None:
    lives, number = (int(text) for text in Path(f"{ledger}.begin").read_text().split())
    os.write(written, b"ready\n")
    while True:
        # One write call: a killed process has written the whole line or nothing.
        payload = f"{lives} {number}"
        if number % 3:
            socket.post("numbers", payload, key="k")
        else:
            await socket.publish("numbers", payload, key="k")
        os.write(written, b"%d\n" % number)
        number += 1
        if number % 10 == 0:
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    app.run()
