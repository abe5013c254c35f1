"""Request-reply between two applications; both roles."""

from __future__ import annotations

import asyncio

from spa_dat import DistributedApplication, Socket

from ._child import ASK_TOPIC, arguments, measure_requests, report


async def _main() -> None:
    order = arguments()
    app = DistributedApplication(f"mqtt://127.0.0.1:{order.port}", name=order.what)

    if order.what == "responder":

        @app.application(ASK_TOPIC)
        async def answer(payload: bytes) -> bytes:
            return payload

    else:

        @app.producer()
        async def ask(socket: Socket) -> None:
            await measure_requests(lambda payload: socket.request(ASK_TOPIC, payload), order)

    async with app:
        report("ready")
        await app.wait()


if __name__ == "__main__":
    asyncio.run(_main())
