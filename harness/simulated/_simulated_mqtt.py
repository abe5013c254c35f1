"""A bus that behaves like an MQTT broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ...transports import (
    RESERVED,
    Bus,
    Envelope,
    MemoryConfig,
    Receiver,
    SocketProvider,
    Subscription,
    Surroundings,
)
from ...transports._wire_formats import WireFormats
from ...transports.memory import (
    Broker,
    BrokerFaults,
    ClientLink,
    MemoryBus,
    MemoryConsumer,
    Queue,
)
from ...transports.mqtt import check_message
from ..loop._tasks_and_timers import OWNER
from ._mqtt_connections import SimulatedConnection
from ._stand_ins import BusWorld, HarnessBus

__all__ = ["SimulatedMqttBus"]

_FOR_EVER = 4_294_967_295
_MOST_RECEIVED = 268_435_455
_LETTERS = f"{RESERVED}/dead-letter/"
# What comes from outside is as it is, unless the test names a format.
_WIRES = WireFormats("cloudevents")
_SHARED = (
    "max_payload", "max_received", "outbox", "outbox_bytes", "start_timeout", "window",
    "window_bytes", "qos", "wire",
)  # fmt: skip


class SimulatedMqttBus(HarnessBus):
    """Sessions, retained messages, shared groups, redelivery: a broker with faulty connections.

    Args:
        world: the world it is in.
    """

    def __init__(self, world: BusWorld) -> None:
        self._world = world
        self.broker = _SimulatedBroker(world)
        self._buses: list[_ObservedMemoryBus] = []

    def open(self, original: SocketProvider, surroundings: Surroundings) -> Bus:
        """See `HarnessBus.open`."""
        options = {
            name: getattr(original.config, name)
            for name in _SHARED
            if hasattr(original.config, name)
        }
        # Its default depends on other options, and on different ones for each kind of bus.
        largest = getattr(original.config, "largest_received", None)
        if largest is not None:
            options["max_received"] = min(largest, _MOST_RECEIVED)
        expiry = getattr(original.config, "session_expiry", _FOR_EVER)
        if expiry != _FOR_EVER:
            identity = surroundings.identity
            self.broker.expiries[f"{identity.application}.{identity.instance}"] = expiry
        bus = _ObservedMemoryBus(self.broker, surroundings, MemoryConfig(**options))
        self._buses.append(bus)
        return bus

    def check(self, envelope: Envelope) -> None:
        """See `HarnessBus.check`; the broker accepts payloads of any size."""
        check_message(_WIRES.packed(envelope))

    def inject(self, envelope: Envelope) -> None:
        """See `HarnessBus.inject`."""
        self.broker.publish(_WIRES.packed(envelope))

    def under_way(self) -> str | None:
        """See `HarnessBus.under_way`."""
        for bus in self._buses:
            problem = None if bus.gone else bus.under_way()
            if problem is not None:
                return problem
        for queue in self.broker.queues.values():
            count = sum(len(link.in_flight) for link in queue.members)
            if queue.members and (count or len(queue)):
                return f"{queue.name}: {count + len(queue)} messages are not acknowledged"
        return None

    def letters(self) -> list[Envelope]:
        """See `HarnessBus.letters`."""
        retained = self.broker.kept(self._world.loop.time())
        return [envelope for topic, envelope in retained.items() if topic.startswith(_LETTERS)]

    def clients(self) -> list[str]:
        """See `HarnessBus.clients`."""
        return list(self.broker.links)

    def cut(self, client: str, *, lose_session: bool = False) -> None:
        """See `HarnessBus.cut`."""
        self.broker.drop(self.broker.links[client], lose_session=lose_session)

    def go_away(self) -> None:
        """See `HarnessBus.go_away`."""
        self.broker.faults.refuse_connections()
        for link in list(self.broker.links.values()):
            self.broker.drop(link)

    def come_back(self) -> None:
        """See `HarnessBus.come_back`."""
        self.broker.faults.allow()

    def kill(self, owner: object) -> None:
        """See `HarnessBus.kill`."""
        for bus in self._buses:
            if bus.owner is owner:
                bus.gone = True
        self._buses = [bus for bus in self._buses if not bus.gone]
        for link in list(self.broker.links.values()):
            if isinstance(link.wire, SimulatedConnection) and link.wire.owner is owner:
                self.broker.close(link)


class _ObservedMemoryBus(MemoryBus):
    """A memory bus that knows its owner and its consumers."""

    def __init__(self, broker: Broker, surroundings: Surroundings, config: MemoryConfig) -> None:
        super().__init__(broker, surroundings, config)
        identity = surroundings.identity
        self._name = f"{identity.application}.{identity.instance}"
        self.owner = OWNER.get()
        self.gone = False
        self._consumers: dict[str, MemoryConsumer] = {}
        self._started = False

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        self._started = True
        await super().start(on_reply)

    def consumer(self, subscription: Subscription, receiver: Receiver) -> MemoryConsumer:
        consumer = super().consumer(subscription, receiver)
        self._consumers[subscription.name] = consumer
        return consumer

    async def close(self) -> None:
        self.gone = True
        await super().close()

    def under_way(self) -> str | None:
        """Describe what is unfinished; None if nothing is."""
        if self.pending:
            return f"{self._name}: {self.pending} publishes are not confirmed"
        if self._started and self.away:
            return f"{self._name}: it is to reconnect"
        for name, consumer in self._consumers.items():
            if consumer.away:
                return f"{self._name}.{name}: it is to reconnect"
        return None


class _SimulatedBroker(Broker):
    """A memory broker that traces what happens, and whose connections have faults.

    Attributes:
        expiries: seconds for which the sessions of an ``application.instance`` are kept while
            nobody is connected; others are kept forever.
    """

    def __init__(self, world: BusWorld) -> None:
        super().__init__("the simulated broker")
        self._world = world
        self.expiries: dict[str, float] = {}
        self._expiring: dict[Queue, asyncio.TimerHandle] = {}
        self.faults = _RandomBrokerFaults(self, world)

    def kept(self, now: float) -> Mapping[str, Envelope]:
        """Return the retained messages that have not expired."""
        return {
            topic: envelope
            for topic, (envelope, deadline) in self._retained.items()
            if deadline is None or deadline > now
        }

    def make_wire(self, link: ClientLink) -> SimulatedConnection:
        wire = SimulatedConnection(self, link, self._world)
        on_lost = link.on_lost
        # The client reacts in its own context, whoever cut the connection.
        link.on_lost = lambda taken_over: wire.context.copy().run(on_lost, taken_over)
        link.on_message = wire.delivering(link.on_message)
        self._world.trace.add(link.client_id, "connect")
        expiring = self._expiring.pop(link.queue, None)
        if expiring is not None:
            expiring.cancel()
        return wire

    def publish(self, envelope: Envelope) -> None:
        super().publish(envelope)
        self._world.note(envelope)

    def drop(
        self, link: ClientLink, *, taken_over: bool = False, lose_session: bool = False
    ) -> None:
        if link.open:
            what = "session-lost" if lose_session else "lost"
            self._world.trace.add(link.client_id, what)
        super().drop(link, taken_over=taken_over, lose_session=lose_session)

    def close(self, link: ClientLink, *, lose_session: bool = False) -> None:
        if link.open:
            self._world.trace.add(link.client_id, "disconnect")
        super().close(link, lose_session=lose_session)
        queue, whose = link.queue, ".".join(link.client_id.split(".")[:2])
        if whose in self.expiries and not queue.members and self._queues.get(queue.name) is queue:
            earlier = self._expiring.pop(queue, None)
            if earlier is not None:
                earlier.cancel()
            self._expiring[queue] = self._world.loop.call_later(
                self.expiries[whose], self._expire, queue, context=self._world.outside
            )

    def _expire(self, queue: Queue) -> None:
        del self._expiring[queue]
        if not queue.members and self._queues.get(queue.name) is queue:
            self._world.trace.add(queue.name, "session-expired")
            self._end(queue)


class _RandomBrokerFaults(BrokerFaults):
    """The broker's own faults, decided by the dice."""

    def __init__(self, broker: Broker, world: BusWorld) -> None:
        super().__init__(broker)
        self._world = world

    def duplicates(self, topic: str) -> bool:
        dice = self._world.dice
        return dice.active and dice.strikes(dice.faults.duplicate)
