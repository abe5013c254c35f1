"""Buses and consumers on an MQTT broker, closed at the end of a test."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from spa_dat.transports import (
    Bus,
    Consumer,
    Delivery,
    DeliveryState,
    Envelope,
    Identity,
    Subscription,
    Surroundings,
)
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.waiting import eventually

__all__ = ["Broker", "Client", "Recorder", "client"]

_QUICK = {
    "backoff_min": 0.02,
    "backoff_max": 0.2,
    "start_timeout": 2.0,
    "connect_timeout": 1.0,
    # A machine that stands still for a while is not a broker that has gone silent.
    "keepalive": 120,
}


class Broker(Protocol):
    """Anything with an address."""

    host: str

    @property
    def port(self) -> int | None: ...


class Recorder:
    """A receiver that keeps what it gets.

    Args:
        settle: start and settle each delivery at once.

    Attributes:
        settles: as given; may be changed.
    """

    def __init__(self, *, settle: bool = True) -> None:
        self.deliveries: list[Delivery] = []
        self.events: list[str] = []
        self.settles = settle

    def deliver(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self.settles and delivery.start():
            delivery.settle()

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.deliver(delivery)

    def hold(self) -> None:
        self.events.append("hold")

    def resume(self, *, redelivered: bool) -> None:
        self.events.append("redelivered" if redelivered else "last copies")
        if redelivered:
            for delivery in self.deliveries:
                if delivery.state is DeliveryState.QUEUED:
                    delivery.withdraw()

    @property
    def payloads(self) -> list[bytes]:
        """Payloads of all that came."""
        return [delivery.envelope.payload for delivery in self.deliveries]

    async def get(self, count: int, timeout: float = 15.0) -> list[Delivery]:
        """Wait until so many have come in all."""
        await eventually(lambda: len(self.deliveries) >= count, timeout)
        return list(self.deliveries)


class Client:
    """One application on a broker."""

    def __init__(self, config: MqttConfig, identity: Identity) -> None:
        self.config = config
        self.stats: Counter[str] = Counter()
        self.fatal: list[BaseException] = []
        self.replies: list[tuple[str, Envelope]] = []
        self.surroundings = Surroundings(identity, stats=self.stats, fatal=self.fatal.append)
        self.bus: Bus = MqttProvider(config).open(self.surroundings)
        self._consumers: list[Consumer] = []

    async def start(self) -> None:
        """Connect the bus."""
        await self.bus.start(lambda correlation, reply: self.replies.append((correlation, reply)))

    async def consume(
        self,
        *filters: str,
        recorder: Recorder | None = None,
        name: str = "actor",
        **fields: Any,
    ) -> tuple[Consumer, Recorder]:
        """Make and start a consumer."""
        recorder = recorder or Recorder()
        consumer = self.bus.consumer(Subscription(name, filters, **fields), recorder)
        self._consumers.append(consumer)
        await consumer.start()
        return consumer, recorder

    async def close(self) -> None:
        """Close everything."""
        for consumer in self._consumers:
            await consumer.close()
        await self.bus.close()


@contextlib.asynccontextmanager
async def client(
    broker: Broker,
    *,
    name: str = "app",
    instance: str = "0",
    ephemeral: bool = False,
    start: bool = True,
    **options: Any,
) -> AsyncIterator[Client]:
    """Make an application on the broker; with ``start`` its bus is connected."""
    made: Callable[..., MqttConfig] = MqttConfig
    config = made(broker.host, **{"port": broker.port, **_QUICK, **options})
    one = Client(config, Identity(name, instance, ephemeral))
    try:
        if start:
            await one.start()
        yield one
    finally:
        await one.close()
