"""The application of this deployment: it writes down the readings of machines.

The same file runs in one process, in several, and on several hosts::

    python ledger.py
    spa-dat run ledger.py --workers 2
    spa-dat run ledger.py --workers 2 --instance west     # on a second host

Environment variables: ``SPA_DAT_URL`` is the address of the broker, ``SPA_DAT_INSTANCE`` tells this
copy from others, ``LEDGER_FILE`` is what it writes to.
"""

import asyncio
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from spa_dat import Context, DistributedApplication, RetryPolicy

app = DistributedApplication(
    os.environ.get("SPA_DAT_URL", "mqtt://127.0.0.1"), name="ledger", stop_timeout=10
)


@dataclass
class Reading:
    machine: str
    number: int
    celsius: float


@dataclass
class Receipt:
    machine: str
    number: int
    instance: str


@contextmanager
def open_ledger() -> Generator[int]:
    path = os.environ.get("LEDGER_FILE", "ledger")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


app.resource("ledger", open_ledger)


# Each reading goes to one of all the processes that run this file. A disk that is full for some
# minutes makes no dead letters.
@app.application(
    "plant/readings", deliver="share", retry=RetryPolicy(attempts=20, first=0.5, factor=2, hold=300)
)
async def readings(reading: Reading, ledger: int, context: Context) -> Receipt:
    await asyncio.sleep(0.002)  # stands for the work
    # One write call: a process that is killed has written the whole line or nothing.
    os.write(ledger, f"{reading.machine} {reading.number} {context.instance}\n".encode())
    # Who sent it as a request gets this back; who published it needs none.
    return Receipt(reading.machine, reading.number, context.instance)


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    app.run()
