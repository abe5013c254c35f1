"""SUBSCRIBE and UNSUBSCRIBE, and the wait for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from ...errors import ConnectionLost
from ._packets import MalformedPacket
from ._properties import read_properties
from ._reasons import Reason, translate
from ._session import Loss

__all__ = ["Control", "make_properties"]

# Answers to pings are no sign that an answer is under way behind large messages.
_LEAST_RECEIVED = 1_024
_MOST_QOS = 2
# Also for what grants nothing that there is.
_REFUSED = 0x80


class Control:
    """Changes subscriptions on one connection.

    Args:
        client: paho's client.
        lost: ends when the connection does.
        received: how many bytes have been received so far.
        on_busy: called with True when the first answer is waited for, with False after the last.

    Attributes:
        busy: an answer is being waited for.
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
        self, patterns: Sequence[str], *, qos: int, timeout: float, identifier: int, retained: bool
    ) -> list[int]:
        """See `MqttClient.subscribe`."""
        # 1: only where the subscription is new. 2: never.
        options = SubscribeOptions(qos=qos, retainHandling=1 if retained else 2)
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
        """A SUBACK or UNSUBACK came; arguments as for `FrameStream`'s ``on_packet``.

        Raises:
            MalformedPacket: it has no packet id.
        """
        if stop - start < 2:
            raise MalformedPacket("the answer to a subscription ends too early")
        answer = self._pending.get(data[start] << 8 | data[start + 1])
        if answer is not None and not answer.done():
            properties, position = read_properties(data, start + 2, stop)
            answer.set_result([Reason.of(code, properties) for code in data[position:stop]])

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
        """Until there is an answer, or nothing more has come for ``timeout`` seconds.

        The answer stands behind the messages that the session has kept, and they may be large.
        """
        while True:
            received = self._received()
            done, _ = await asyncio.wait(
                (answer, self._lost), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if done or self._received() - received < _LEAST_RECEIVED:
                return


def make_properties(packet: int, **values: int) -> Properties:
    """Properties of a packet of this type; those with the value 0 are left out."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value:
            setattr(properties, name, value)
    return properties
