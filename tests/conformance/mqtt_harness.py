"""The MQTT transport."""

from __future__ import annotations

from typing import Any

from spa_dat.testing.conformance import TransportHarness
from spa_dat.transports import SocketProvider
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.mosquitto import Mosquitto, require_mosquitto
from support.proxy import Proxy

__all__ = ["MqttHarness"]


class MqttHarness(TransportHarness):
    """A Mosquitto behind a proxy."""

    overrun = 2

    async def start_broker(self) -> None:
        require_mosquitto()
        self._broker = Mosquitto(durable=True)
        self._broker.start()
        self._proxy = Proxy(self._broker.host, self._broker.port)
        await self._proxy.start()

    async def stop_broker(self) -> None:
        await self._proxy.close()
        self._broker.close()

    def provider(self, **options: Any) -> SocketProvider:
        defaults = {"backoff_min": 0.02, "backoff_max": 0.2, "start_timeout": 5.0}
        return MqttProvider(
            MqttConfig(self._proxy.host, port=self._proxy.port, **{**defaults, **options})
        )

    async def cut(self) -> None:
        self._proxy.cut()

    async def go_away(self) -> None:
        await self._proxy.refuse()
        self._proxy.cut()

    async def come_back(self) -> None:
        await self._proxy.allow()
