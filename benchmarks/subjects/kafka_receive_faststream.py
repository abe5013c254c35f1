"""Receives with a subscriber of FastStream.

As it comes, it commits on a timer whatever became of the messages; with ``ack`` after the handler.
"""

from __future__ import annotations

import asyncio
import os

from faststream import AckPolicy
from faststream.kafka import KafkaBroker

from ._child import RECEIVE_TOPIC, Meter, arguments, on_kafka, report


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    # Its default logger writes two lines for each message.
    broker = KafkaBroker(order.server, logger=None)

    async def receive(body: bytes) -> None:
        meter.count()

    broker.subscriber(
        on_kafka(RECEIVE_TOPIC),
        group_id=f"benchmark-{os.getpid()}",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.ACK if order.what == "ack" else AckPolicy.ACK_FIRST,
    )(receive)
    await broker.start()
    report("ready")
    report("result", **await meter.finish())
    await broker.stop()


if __name__ == "__main__":
    asyncio.run(_main())
