"""Telling a broker that only speaks an older version of MQTT from one that is not there."""

from __future__ import annotations

import asyncio

from ._config import MqttConfig
from ._dial import dial
from ._stream import FrameStream

__all__ = ["answers_older_version"]

_LONGEST = 2.0
# MQTT 3.1.1, clean session, a client identifier of the broker's choice.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
_DISCONNECT = b"\xe0\x00"
_CONNACK = 0x20
_LENGTH_OF_AN_OLD_CONNACK = 2


async def answers_older_version(config: MqttConfig) -> bool:
    """Whether the broker answers a CONNECT of MQTT 3.1.1, be it with a refusal; never raises."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def on_packet(first: int, data: bytes, start: int, stop: int) -> None:
        if not answer.done():
            is_old = first == _CONNACK and stop - start == _LENGTH_OF_AN_OLD_CONNACK
            answer.set_result(is_old)

    def on_end(error: Exception | None) -> None:
        if not answer.done():
            answer.set_result(False)

    stream: FrameStream | None = None
    try:
        async with asyncio.timeout(_LONGEST):
            stream = FrameStream(await dial(config), on_packet, on_end)
            stream.write(_CONNECT)
            found = await answer
        stream.write(_DISCONNECT)
        await stream.finish(_LONGEST)
    except Exception:  # noqa: BLE001 (whatever it is, the next attempt to connect meets it, too)
        return False
    finally:
        if stream is not None:
            stream.abort()
    return found
