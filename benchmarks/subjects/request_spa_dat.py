"""Request-reply between two applications; both roles."""

from __future__ import annotations

import asyncio
import os

from spa_dat import DistributedApplication, Socket

from ._child import arguments, measure_requests, report


async def _main() -> None:
    order = arguments()
    app = DistributedApplication(order.url, name=f"{order.what}-{os.getpid()}")

    if order.what == "responder":

        @app.application(order.topic)
        async def answer(payload: bytes) -> bytes:
            return payload

    else:

        @app.producer()
        async def ask(socket: Socket) -> None:
            await measure_requests(lambda payload: socket.request(order.topic, payload), order)

    async with app:
        report("ready")
        await app.wait()


if __name__ == "__main__":
    asyncio.run(_main())
