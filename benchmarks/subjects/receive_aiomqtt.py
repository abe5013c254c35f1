"""Receives with plain aiomqtt.

`queue` hands messages over in the queue's place, `iterate` uses ``async for``. Both acknowledge
when the message is queued, before it is handled.
"""

from __future__ import annotations

import asyncio

import aiomqtt

from ._child import RECEIVE_TOPIC, Meter, arguments, report

_order = arguments()
_meter = Meter(_order)


class _Handover(asyncio.Queue[aiomqtt.Message]):
    """Counts where others would queue."""

    def put_nowait(self, item: aiomqtt.Message) -> None:
        _meter.count()


async def _iterate(client: aiomqtt.Client) -> None:
    async for _ in client.messages:
        _meter.count()


async def _main() -> None:
    handed_over = _order.what == "queue"
    async with aiomqtt.Client(
        "127.0.0.1",
        _order.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        queue_type=_Handover if handed_over else None,
    ) as client:
        await client.subscribe(RECEIVE_TOPIC, qos=_order.qos)
        report("ready")
        reader = None if handed_over else asyncio.create_task(_iterate(client))
        report("result", **await _meter.finish())
        if reader is not None:
            reader.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
