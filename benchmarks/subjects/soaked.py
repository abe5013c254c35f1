"""The application that `benchmarks.soak` kills: it writes down each message and who has handled it.

``SPA_DAT_URL`` is the broker, ``SOAK_NAME`` the name of the application and of its topic,
``SOAK_LEDGER`` the file that it writes to. With ``SOAK_PROCESSES`` its handler runs in so many
child processes, and the messages of one key in one of them.
"""

from __future__ import annotations

import asyncio
import os

from spa_dat import Context, DistributedApplication

_PROCESSES = int(os.environ.get("SOAK_PROCESSES", "0"))
_NAME = os.environ["SOAK_NAME"]
_LEDGER = os.open(os.environ["SOAK_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

app = DistributedApplication(os.environ["SPA_DAT_URL"], name=_NAME)


async def note(payload: bytes, context: Context) -> None:
    await asyncio.sleep(0.001)
    # One write call: a process that is killed has written the whole line or nothing.
    os.write(_LEDGER, b"%s %s %d\n" % (payload, context.instance.encode(), os.getpid()))


if _PROCESSES:
    app.application(
        f"{_NAME}/numbers",
        deliver="share",
        placement="process",
        processes=_PROCESSES,
        key="header:part",
    )(note)
else:
    app.application(f"{_NAME}/numbers", deliver="share")(note)


@app.producer()
async def announce(context: Context) -> None:
    """Say that all subscriptions are in force."""
    os.write(_LEDGER, b"started %s\n" % context.instance.encode())
