"""Receives with an application."""

from __future__ import annotations

import asyncio

from spa_dat import DistributedApplication

from ._child import RECEIVE_TOPIC, Meter, arguments, report


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    app = DistributedApplication(f"mqtt://127.0.0.1:{order.port}", name="benchmark")

    @app.application(RECEIVE_TOPIC, qos=order.qos)
    async def receive(payload: bytes) -> None:
        meter.count()

    async with app:
        report("ready")
        report("result", **await meter.finish())


if __name__ == "__main__":
    asyncio.run(_main())
