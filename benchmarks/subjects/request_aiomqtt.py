"""Request-reply written by hand on aiomqtt; both roles.

One subscription for all replies, and futures by correlation data. Messages are taken where others
would be queued, which is the fastest way that aiomqtt offers; both sides use QoS 1, wait for each
confirmation, and let 100 publishes be in flight.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ._child import ASK_TOPIC, arguments, measure_requests, report

_REPLY_TOPIC = "benchmark/reply"
_order = arguments()
_on_message: Callable[[aiomqtt.Message], None]


class _Handover(asyncio.Queue[aiomqtt.Message]):
    """Hands over where others would queue."""

    def put_nowait(self, item: aiomqtt.Message) -> None:
        _on_message(item)


def _client() -> aiomqtt.Client:
    client = aiomqtt.Client(
        "127.0.0.1",
        _order.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        queue_type=_Handover,
        max_inflight_messages=100,
        # Helps with many at once; one at a time the kernel soon goes back to slow acknowledgements.
        socket_options=[
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1),
        ],
    )
    client.pending_calls_threshold = 10_000
    return client


def _properties(correlation: bytes, response_topic: str | None = None) -> Properties:
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = correlation
    if response_topic is not None:
        properties.ResponseTopic = response_topic
    made: Properties = properties
    return made


def _told(message: aiomqtt.Message) -> Any:
    """Return the message's properties, which have no types."""
    return message.properties


async def _respond() -> None:
    global _on_message
    replies: set[asyncio.Task[None]] = set()

    def on_request(message: aiomqtt.Message) -> None:
        asked = _told(message)
        reply = client.publish(
            asked.ResponseTopic,
            message.payload,
            qos=1,
            properties=_properties(asked.CorrelationData),
        )
        task = asyncio.get_running_loop().create_task(reply)
        replies.add(task)
        task.add_done_callback(replies.discard)

    _on_message = on_request
    client = _client()
    async with client:
        await client.subscribe(ASK_TOPIC, qos=1)
        report("ready")
        await asyncio.Event().wait()


async def _request() -> None:
    global _on_message
    numbers = itertools.count()
    waiting: dict[bytes, asyncio.Future[bytes]] = {}

    def on_reply(message: aiomqtt.Message) -> None:
        future = waiting.pop(_told(message).CorrelationData, None)
        if future is not None and not future.done():
            assert isinstance(message.payload, bytes)
            future.set_result(message.payload)

    async def ask(payload: bytes) -> bytes:
        correlation = b"%d" % next(numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting[correlation] = future
        properties = _properties(correlation, _REPLY_TOPIC)
        await client.publish(ASK_TOPIC, payload, qos=1, properties=properties)
        async with asyncio.timeout(30.0):
            return await future

    _on_message = on_reply
    client = _client()
    async with client:
        await client.subscribe(_REPLY_TOPIC, qos=1)
        report("ready")
        await measure_requests(ask, _order)


if __name__ == "__main__":
    asyncio.run(_respond() if _order.what == "responder" else _request())
