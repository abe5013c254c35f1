"""A broker to test against, its faults, and a receiver that remembers what it got.

A further transport joins the suite with a subclass of `Harness` and an entry in ``HARNESSES``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from spa_dat._environment import Environment
from spa_dat.transports import (
    Bus,
    Consumer,
    Delivery,
    DeliveryState,
    Envelope,
    Identity,
    MemoryConfig,
    MemoryProvider,
    SocketProvider,
    Subscription,
    Surroundings,
)
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.mosquitto import Mosquitto, require_mosquitto
from support.proxy import Proxy
from support.waiting import eventually

__all__ = ["HARNESSES", "Harness", "Inbox", "numbered"]


def numbered(topic: str, count: int, **fields: Any) -> list[Envelope]:
    """Messages on one topic whose payloads and ids are their numbers."""
    return [
        Envelope(topic=topic, payload=str(number).encode(), id=f"id-{number}", **fields)
        for number in range(count)
    ]


class Inbox:
    """A receiver that keeps what arrives, and does with it what the runtime would.

    Args:
        settle: start and settle each delivery at once.

    Attributes:
        deliveries: all that has arrived, in order.
        events: ``hold`` and ``resume``, in order.
        consumer: what it belongs to.
    """

    consumer: Consumer

    def __init__(self, *, settle: bool = True) -> None:
        self.deliveries: list[Delivery] = []
        self.events: list[str] = []
        self.on_delivery: Callable[[Delivery], None] | None = None
        self._settle = settle

    def deliver(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self.on_delivery is not None:
            self.on_delivery(delivery)
        if self._settle and delivery.start():
            delivery.settle()

    def hold(self) -> None:
        self.events.append("hold")

    def resume(self, *, redelivered: bool) -> None:
        self.events.append("resume, redelivered" if redelivered else "resume, last copies")
        if redelivered:
            for delivery in self.deliveries:
                if delivery.state is DeliveryState.QUEUED:
                    delivery.withdraw()

    @property
    def payloads(self) -> list[str]:
        """Payloads of all that has arrived."""
        return [delivery.envelope.payload.decode() for delivery in self.deliveries]

    async def get(self, count: int, timeout: float = 15.0) -> list[Delivery]:
        """Wait until so many have arrived in all."""
        await eventually(lambda: len(self.deliveries) >= count, timeout)
        return self.deliveries

    async def has(self, payload: str, timeout: float = 15.0) -> None:
        """Wait until a message with this payload has arrived."""
        await eventually(lambda: payload in self.payloads, timeout)

    async def back(self, times: int = 1) -> None:
        """Wait until the connection came back for the so-many-th time."""
        await eventually(lambda: len(self.events) >= 2 * times, 20.0)


class Harness(abc.ABC):
    """A broker for one test, and applications connected to it, closed at the end.

    Attributes:
        tells_no_responder: a request that nobody is subscribed for fails at once.
        overrun: how many windows may be unsettled at the most. More than 1 for brokers that do
            not keep to the window they are told.
    """

    tells_no_responder: bool
    overrun: int = 1

    def __init__(self) -> None:
        self._consumers: list[Consumer] = []
        self._buses: list[Bus] = []

    @abc.abstractmethod
    async def start_broker(self) -> None:
        """Start it, empty."""

    @abc.abstractmethod
    async def stop_broker(self) -> None:
        """End it and forget everything."""

    @abc.abstractmethod
    def provider(self, **options: Any) -> SocketProvider:
        """An address of the broker, with options that all transports have."""

    @abc.abstractmethod
    async def cut(self) -> None:
        """Cut all connections; they can come back at once."""

    @abc.abstractmethod
    async def go_away(self) -> None:
        """Cut all connections and refuse new ones."""

    @abc.abstractmethod
    async def come_back(self) -> None:
        """Accept connections again."""

    async def bus(
        self,
        name: str = "plant",
        instance: str = "0",
        *,
        ephemeral: bool = False,
        on_reply: Callable[[str, Envelope], None] = lambda correlation, reply: None,
        fatal: Callable[[BaseException], None] = lambda error: None,
        **options: Any,
    ) -> Bus:
        """A bus that is started."""
        surroundings = Surroundings(
            Identity(name, instance, ephemeral), environment=Environment(), fatal=fatal
        )
        bus = self.provider(**options).open(surroundings)
        self._buses.append(bus)
        await bus.start(on_reply)
        return bus

    async def inbox(
        self,
        bus: Bus,
        *filters: str,
        settle: bool = True,
        name: str = "actor",
        **fields: Any,
    ) -> Inbox:
        """A receiver whose consumer is started."""
        inbox = Inbox(settle=settle)
        inbox.consumer = bus.consumer(Subscription(name, filters, **fields), inbox)
        self._consumers.append(inbox.consumer)
        await inbox.consumer.start()
        return inbox

    async def __aenter__(self) -> Self:
        await self.start_broker()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for consumer in self._consumers:
            await consumer.close()
        for bus in self._buses:
            await bus.close()
        await self.stop_broker()


class MemoryHarness(Harness):
    """The broker in the process."""

    tells_no_responder = True

    async def start_broker(self) -> None:
        self._faults = MemoryProvider(MemoryConfig(name="conformance")).broker.faults

    async def stop_broker(self) -> None:
        """It goes with the event loop."""

    def provider(self, **options: Any) -> SocketProvider:
        return MemoryProvider(MemoryConfig(name="conformance", **options))

    async def cut(self) -> None:
        self._faults.disconnect()

    async def go_away(self) -> None:
        self._faults.refuse_connections()
        self._faults.disconnect()

    async def come_back(self) -> None:
        self._faults.allow()


class MqttHarness(Harness):
    """A Mosquitto behind a proxy."""

    tells_no_responder = True
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


HARNESSES: dict[str, type[Harness]] = {"memory": MemoryHarness, "mqtt": MqttHarness}
