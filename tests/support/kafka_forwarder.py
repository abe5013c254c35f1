"""A member of a group that forwards what it gets exactly once, in a process of its own.

Usage: python kafka_forwarder.py URL LEDGER INSTANCE

It writes down each message that it handles, publishes each one, and sometimes fails after that.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys

from spa_dat import DistributedApplication, Message, RetryPolicy, Socket

url, ledger, instance = sys.argv[1:]
app = DistributedApplication(url, name="forwarder", instance=instance)
# For a test that finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=True)
written = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.application("numbers", exactly_once=True, retry=RetryPolicy(attempts=100, first=0.01))
async def forward(message: Message[bytes], socket: Socket) -> None:
    # One write call: a killed process has written the whole line or nothing.
    os.write(written, message.payload)
    await socket.publish("copies", message.payload, key=message.key)
    if random.random() < 0.01:
        raise ValueError("a bad day")


@app.producer()
async def announce() -> None:
    os.write(written, b"ready %s\n" % instance.encode())


if __name__ == "__main__":
    app.run()
