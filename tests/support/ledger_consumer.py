"""A consumer in a process of its own that writes down every message it has handled.

Usage: python ledger_consumer.py URL LEDGER [SECONDS PER MESSAGE]
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys

from spa_dat import DistributedApplication

url, ledger, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
app = DistributedApplication(url, name="ledger")
# For a test that finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=True)
written = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.application("ledger/{number}")
async def write_down(number: int, payload: bytes) -> None:
    await asyncio.sleep(seconds)
    # One write call: a killed process has written the whole line or nothing.
    os.write(written, b"%d\n" % number)


@app.producer()
async def announce() -> None:
    os.write(written, b"ready\n")


if __name__ == "__main__":
    app.run()
