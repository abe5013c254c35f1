"""Receives with a subscriber of FastStream; it acknowledges after the handler."""

from __future__ import annotations

import asyncio

from faststream.mqtt import MQTTBroker, QoS

from ._child import RECEIVE_TOPIC, Meter, arguments, report


async def _main() -> None:
    order = arguments()
    meter = Meter(order)
    # Its default logger writes two lines for each message.
    broker = MQTTBroker(f"mqtt://127.0.0.1:{order.port}", logger=None)

    async def receive(body: bytes) -> None:
        meter.count()

    broker.subscriber(RECEIVE_TOPIC, qos=QoS(order.qos))(receive)
    await broker.start()
    report("ready")
    report("result", **await meter.finish())
    await broker.stop()


if __name__ == "__main__":
    asyncio.run(_main())
