"""Forwards records with an application: exactly once, or at least once."""

from __future__ import annotations

import asyncio
import os

from spa_dat import DistributedApplication, Socket

from ._child import COPIES_TOPIC, RECEIVE_TOPIC, Meter, arguments, report


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    # A name of its own: a group that has read nothing yet.
    app = DistributedApplication(order.url, name=f"benchmark-{os.getpid()}")

    @app.application(RECEIVE_TOPIC, exactly_once=order.what == "once")
    async def forward(payload: bytes, socket: Socket) -> None:
        socket.post(COPIES_TOPIC, payload)
        meter.count()

    async with app:
        report("ready")
        report("result", **await meter.finish())


if __name__ == "__main__":
    asyncio.run(_main())
