"""Request-reply of FastStream; both roles."""

from __future__ import annotations

import asyncio

from faststream.mqtt import MQTTBroker, QoS
from faststream.mqtt.response import MQTTResponse

from ._child import ASK_TOPIC, arguments, measure_requests, report


async def _main() -> None:
    order = arguments()
    # Its default logger writes two lines for each message.
    broker = MQTTBroker(f"mqtt://127.0.0.1:{order.port}", logger=None)

    async def answer(body: bytes) -> MQTTResponse:
        return MQTTResponse(body, qos=QoS.AT_LEAST_ONCE)

    async def ask(payload: bytes) -> bytes:
        reply = await broker.request(payload, ASK_TOPIC, timeout=30.0, qos=QoS.AT_LEAST_ONCE)
        return bytes(reply.body)

    if order.what == "responder":
        # As many at once as there are requests: it can, and one at a time is slower.
        subscriber = broker.subscriber(ASK_TOPIC, qos=QoS.AT_LEAST_ONCE, max_workers=order.at_once)
        subscriber(answer)
    await broker.start()
    report("ready")
    if order.what == "responder":
        await asyncio.Event().wait()
    else:
        await measure_requests(ask, order)
        await broker.stop()


if __name__ == "__main__":
    asyncio.run(_main())
