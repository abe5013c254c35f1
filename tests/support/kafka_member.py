"""A member of a consumer group, in a process of its own, that writes down what it has handled.

Usage: python kafka_member.py URL LEDGER INSTANCE MESSAGES_PER_SECOND CONCURRENCY

All members write to one file, so its lines are in the order in which things have happened.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys

from spa_dat import DistributedApplication

# Messages after each of which it rests.
STEP = 10

url, ledger, instance, rate, concurrency = sys.argv[1:]
seconds = STEP / float(rate)
handled = 0
app = DistributedApplication(url, name="ledger", instance=instance)
# For a test that finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=True)
written = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.application("numbers", concurrency=int(concurrency))
async def write_down(payload: bytes) -> None:
    global handled
    handled += 1
    if handled % STEP == 0:
        await asyncio.sleep(seconds)
    # One write call: a killed process has written the whole line or nothing.
    os.write(written, payload)


@app.producer()
async def announce() -> None:
    os.write(written, b"ready %s\n" % instance.encode())


if __name__ == "__main__":
    app.run()
