"""A broker to test against, its faults, and a receiver that remembers what it got.

A further transport joins the suite with a subclass of `Harness`, made in conftest.py.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
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

__all__ = ["Harness", "Inbox", "MemoryHarness", "MqttHarness", "numbered"]


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
        subscription: what that subscribes to.
        identity: for whom.
    """

    consumer: Consumer
    subscription: Subscription
    identity: Identity

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

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.deliver(delivery)

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

    async def back(self, times: int = 1, since: int = 0) -> None:
        """Wait until it was resumed for the so-many-th time after so many events."""
        await eventually(lambda: len(self.events) - since >= 2 * times, 20.0)


class Harness(abc.ABC):
    """A broker for one test, and applications connected to it, closed at the end.

    The attributes are all in which transports may differ; the documentation names each.

    Attributes:
        any_topic: topics carry any text. Otherwise their levels are letters, digits, ``_``, ``-``.
        has_qos_0: a message can be published with QoS 0, to be delivered at most once. Otherwise
            it is a message like any other.
        has_retained: the last retained message of a topic is sent to new subscriptions. Otherwise
            a retained message is one like any other.
        keeps_all: messages stay when they are consumed: a new durable subscription gets all that
            there are. Otherwise it gets what is published from then on.
        keeps_filters: the broker knows the filters of a durable subscription. Otherwise those of
            an earlier program are gone with it.
        knows_redelivery: the broker tells what it has sent before. Otherwise a program knows it
            of what itself has received.
        orders_topics: messages of one publisher arrive in order, also on different topics.
            Otherwise only those of one topic do.
        stamps_time: a message whose sender gives no time gets one.
        tells_no_responder: a request that nobody is subscribed for fails at once.
        tells_correlation: a reply tells the correlation of its address, not one of its own.
        overrun: how many windows may be unsettled at the most. More than 1 for brokers that do
            not keep to the window they are told.
        quick: seconds in which a start certainly succeeds while the broker is there.
        spread: options with which instances of one application share the messages of a topic.
    """

    any_topic = True
    has_qos_0 = True
    has_retained = True
    keeps_all = False
    keeps_filters = True
    knows_redelivery = True
    orders_topics = True
    stamps_time = False
    tells_no_responder = True
    tells_correlation = False
    overrun = 1
    quick = 0.3
    spread: Mapping[str, Any] = MappingProxyType({})

    def __init__(self) -> None:
        self._inboxes: list[Inbox] = []
        self._buses: list[Bus] = []
        self._identities: dict[Bus, Identity] = {}

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
        identity = Identity(name, instance, ephemeral)
        surroundings = Surroundings(identity, environment=Environment(), fatal=fatal)
        bus = self.provider(**options).open(surroundings)
        self._buses.append(bus)
        self._identities[bus] = identity
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
        inbox.identity = self._identities[bus]
        inbox.subscription = Subscription(name, filters, **fields)
        inbox.consumer = bus.consumer(inbox.subscription, inbox)
        self._inboxes.append(inbox)
        await inbox.consumer.start()
        return inbox

    def is_held(self, inbox: Inbox) -> bool:
        """Whether a cut interrupts the inbox: it is told to hold, and later to resume."""
        return True

    async def lost(self, inbox: Inbox) -> None:
        """After `go_away`: wait until the inbox was told, where it is told that."""
        await eventually(lambda: inbox.events == ["hold"])

    async def back(self, inbox: Inbox, times: int = 1) -> None:
        """After the so-many-th `cut`, or after `go_away` and `come_back`: wait until the inbox
        was told to resume, where it was told to hold."""
        await inbox.back(times)

    def in_order(self, items: Sequence[str]) -> list[str]:
        """What came on several topics: as it came if that says something, otherwise sorted."""
        return list(items) if self.orders_topics else sorted(items)

    async def __aenter__(self) -> Self:
        await self.start_broker()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for inbox in self._inboxes:
            await inbox.consumer.close()
        for bus in self._buses:
            await bus.close()
        await self.stop_broker()


class MemoryHarness(Harness):
    """The broker in the process."""

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
