"""An application of which one actor has more to do than its mailbox and its window hold."""

from __future__ import annotations

import asyncio

from spa_dat import DistributedApplication, Socket

from .waiting import eventually

__all__ = ["check_that_who_is_flooded_can_publish_and_request"]

COUNT = 301


async def check_that_who_is_flooded_can_publish_and_request(app: DistributedApplication) -> None:
    """Run it, and check that everything is handled, in order.

    Args:
        app: with a bus, and without actors.
    """
    handled: list[int] = []
    outputs: list[bytes] = []
    flooded = asyncio.Event()

    @app.application("work", window=10, mailbox=10)
    async def work(number: int, socket: Socket) -> None:
        await flooded.wait()
        await socket.publish("done", str(number).encode(), timeout=20.0)
        assert await socket.request("double", number, reply=int, timeout=20.0) == 2 * number
        handled.append(number)

    @app.application("done")
    async def done(payload: bytes) -> None:
        outputs.append(payload)

    @app.application("double")
    async def double(number: int) -> int:
        return 2 * number

    @app.producer()
    async def flood(socket: Socket) -> None:
        for number in range(COUNT - 1):
            socket.post("work", number)
        await socket.publish("work", COUNT - 1)
        flooded.set()

    async with app:
        await eventually(lambda: len(handled) == COUNT)
        await eventually(lambda: len(outputs) == COUNT)
    assert handled == list(range(COUNT))
