"""SUBSCRIBE and UNSUBSCRIBE, and the properties of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from ....errors import ConnectionLost
from .._connection_events import Loss
from ._packets import MalformedPacket, read_text, read_variable
from ._reason_codes import BrokerReason, translate

__all__ = ["SubscribeRequests", "make_properties", "read_properties"]

# Answers to pings are no sign that an answer is on its way behind large messages.
_LEAST_RECEIVED = 1_024
_MOST_QOS = 2
# Also for an answer that grants nothing known.
_REFUSED = 0x80
_RETAIN_HANDLING = {"new": 1, "always": 0, "never": 2}
_WHOLE_NUMBERS = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), 1),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), 2),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), 4),
}
_TEXTS = frozenset({0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F})
# Authentication data is bytes, length-prefixed like a text.
_SKIPPED = {0x09: 1, 0x16: 1, 0x26: 2}


class SubscribeRequests:
    """Changes subscriptions on one connection.

    Args:
        client: paho's client.
        lost: completes when the connection ends.
        received: how many bytes have been received so far.
        on_busy: called with True when the first answer is awaited, with False after the last.

    Attributes:
        busy: whether an answer is being awaited.
    """

    def __init__(
        self,
        client: paho.Client,
        lost: asyncio.Future[Loss],
        received: Callable[[], int],
        on_busy: Callable[[bool], None],
    ) -> None:
        self._client = client
        self._lost = lost
        self._received = received
        self._on_busy = on_busy
        self._waiting = 0
        self._pending: dict[int, asyncio.Future[list[int]]] = {}

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    async def subscribe(
        self,
        patterns: Sequence[str],
        *,
        qos: int,
        timeout: float,
        identifier: int,
        retained: Literal["new", "always", "never"],
    ) -> list[int]:
        """See `MqttClient.subscribe`."""
        options = SubscribeOptions(qos=qos, retainHandling=_RETAIN_HANDLING[retained])
        properties = make_properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=identifier)
        codes = await self._answered(
            lambda: self._client.subscribe(
                [(pattern, options) for pattern in patterns], properties=properties
            ),
            timeout,
            f"subscription to {', '.join(map(repr, patterns))}",
        )
        return [code if code <= _MOST_QOS or code >= _REFUSED else _REFUSED for code in codes]

    async def unsubscribe(self, patterns: Sequence[str], *, timeout: float) -> list[int]:
        """See `MqttClient.unsubscribe`."""
        return await self._answered(
            lambda: self._client.unsubscribe(list(patterns)),
            timeout,
            f"end of {len(patterns)} subscriptions",
        )

    def answered(self, data: bytes, start: int, stop: int) -> None:
        """Take a SUBACK or UNSUBACK; the arguments are those of `FrameStream`'s ``on_packet``.

        Raises:
            MalformedPacket: it has no packet id.
        """
        if stop - start < 2:
            raise MalformedPacket("the answer to a subscription ends too early")
        answer = self._pending.get(data[start] << 8 | data[start + 1])
        if answer is not None and not answer.done():
            properties, position = read_properties(data, start + 2, stop)
            answer.set_result([BrokerReason.of(code, properties) for code in data[position:stop]])

    async def _answered(
        self, send: Callable[[], tuple[Any, int | None]], timeout: float, what: str
    ) -> list[int]:
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting += 1
        if self._waiting == 1:
            self._on_busy(True)
        packet_id: int | None = None
        try:
            result, packet_id = send()
            if self._lost.done():
                raise ConnectionLost(f"{what}: {self._lost.result().text}")
            if result != paho.MQTT_ERR_SUCCESS or packet_id is None:
                raise ConnectionLost(f"{what}: {paho.error_string(result)}")
            self._pending[packet_id] = answer
            await self._wait(answer, timeout)
            if answer.done():
                return answer.result()
            if self._lost.done():
                raise ConnectionLost(f"{what}: {self._lost.result().text}")
            raise ConnectionLost(f"{what}: the broker did not answer within {timeout:g} s")
        except (MQTTException, OSError) as error:
            raise translate(error, what) from error
        finally:
            if packet_id is not None:
                self._pending.pop(packet_id, None)
            self._waiting -= 1
            if not self._waiting:
                self._on_busy(False)

    async def _wait(self, answer: asyncio.Future[list[int]], timeout: float) -> None:
        """Wait for an answer, or until nothing more has arrived for ``timeout`` seconds.

        The answer comes after the messages that the session has kept, which may be large.
        """
        while True:
            received = self._received()
            done, _ = await asyncio.wait(
                (answer, self._lost), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if done or self._received() - received < _LEAST_RECEIVED:
                return


def make_properties(packet: int, **values: int) -> Properties:
    """Return properties for a packet of this type; those with the value 0 are left out."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value:
            setattr(properties, name, value)
    return properties


def read_properties(data: bytes, start: int, stop: int) -> tuple[dict[int, int | str], int]:
    """Return the properties of a packet by their identifiers, and the position of their end.

    Malformed ones are left out, with everything after them: the essential part of a packet is
    elsewhere, and ending the connection over them would bring the same answer again on the next
    one. The first value of a repeated property counts. Bytes and user properties are skipped.

    Args:
        data: a buffer with the packet.
        start: where in ``data`` the length of the properties is; they may be left out.
        stop: where the packet ends.
    """
    found: dict[int, int | str] = {}
    data = data[:stop]
    end = stop
    try:
        length, position = read_variable(data, start)
        end = min(position + length, stop)
        data = data[:end]
        while position < end:
            kind = data[position]
            position += 1
            value: int | str
            if (size := _WHOLE_NUMBERS.get(kind)) is not None:
                value = int.from_bytes(data[position : position + size], "big")
                position += size
                if position > end:
                    break
            elif kind in _TEXTS:
                value, position = read_text(data, position)
            elif kind in _SKIPPED:
                for _ in range(_SKIPPED[kind]):
                    _, position = read_text(data, position)
                continue
            else:
                break
            found.setdefault(kind, value)
    except (IndexError, MalformedPacket):
        pass
    return found, end
