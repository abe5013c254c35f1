"""The MQTT transport on Mosquitto and on other brokers."""

from __future__ import annotations

from typing import Any

from spa_dat._pytest import require
from spa_dat.testing import Mosquitto, Proxy
from spa_dat.testing.conformance import TransportHarness
from spa_dat.transports import SocketProvider
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.other_brokers import Aedes, HiveMq

__all__ = ["AedesHarness", "HiveMqHarness", "MqttHarness", "WebsocketHarness"]


class MqttHarness(TransportHarness):
    """A Mosquitto behind a proxy."""

    overrun = 2

    async def start_broker(self) -> None:
        broker = self.ready_broker()
        self._proxy = Proxy(broker.host, self.port_of(broker))
        await self._proxy.start()

    async def stop_broker(self) -> None:
        await self._proxy.close()
        self.done_with_broker()

    def ready_broker(self) -> Mosquitto | HiveMq | Aedes:
        """Return a broker that has nothing stored."""
        require(Mosquitto)
        self._broker: Mosquitto | HiveMq | Aedes = Mosquitto(durable=True)
        self._broker.start()
        return self._broker

    def port_of(self, broker: Mosquitto | HiveMq | Aedes) -> int:
        """Return the port to connect to."""
        return broker.port

    def done_with_broker(self) -> None:
        """End the broker, if it is for one test only."""
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


class WebsocketHarness(MqttHarness):
    """A Mosquitto that is reached over websockets, behind a proxy."""

    def ready_broker(self) -> Mosquitto:
        require(Mosquitto)
        broker = self._broker = Mosquitto(durable=True, websockets=True)
        broker.start()
        return broker

    def port_of(self, broker: Mosquitto | HiveMq | Aedes) -> int:
        assert isinstance(broker, Mosquitto)
        return broker.websocket_port

    def provider(self, **options: Any) -> SocketProvider:
        return super().provider(websocket_path="/mqtt", **options)


class HiveMqHarness(MqttHarness):
    """A HiveMQ CE behind a proxy, one for all tests, since it takes seconds to start.

    Args:
        broker: it.
    """

    sends_on = False

    def __init__(self, broker: HiveMq) -> None:
        super().__init__()
        self._broker = broker

    def ready_broker(self) -> HiveMq:
        assert isinstance(self._broker, HiveMq)
        self._broker.forget()
        return self._broker

    def done_with_broker(self) -> None:
        """Do nothing: the broker stays for the next test."""


class AedesHarness(MqttHarness):
    """An aedes behind a proxy."""

    has_groups = False
    keeps_window = False
    knows_redelivery = False
    one_copy = False
    recognises = False
    tells_no_responder = False

    def ready_broker(self) -> Aedes:
        broker = self._broker = Aedes()
        broker.start()
        return broker
