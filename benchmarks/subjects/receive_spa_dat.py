"""Receives with an application: payloads as bytes, or as what their JSON says; or with metrics."""

from __future__ import annotations

import asyncio
import os

from spa_dat import DistributedApplication

from ._child import JSON_TOPIC, RECEIVE_TOPIC, Meter, Reading, arguments, metrics_for, report


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    # A name of its own: on Kafka a group that has read nothing yet.
    name = f"benchmark-{os.getpid()}"
    app = DistributedApplication(order.url, name=name, **metrics_for(order.what))

    if order.what == "json":

        @app.application(JSON_TOPIC, qos=order.qos)
        async def receive_json(payload: Reading) -> None:
            meter.count()

    else:

        @app.application(RECEIVE_TOPIC, qos=order.qos)
        async def receive(payload: bytes) -> None:
            meter.count()

    async with app:
        report("ready")
        report("result", **await meter.finish())


if __name__ == "__main__":
    asyncio.run(_main())
