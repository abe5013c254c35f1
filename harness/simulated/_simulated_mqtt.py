"""A bus that behaves like an MQTT broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ...transports import (
    RESERVED,
    Bus,
    Envelope,
    LastWill,
    MemoryConfig,
    MqttConfig,
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
from ._harness_bus import BusWorld, SimulatedBus
from ._mqtt_connections import SimulatedConnection

__all__ = ["SimulatedMqttBus"]

_FOR_EVER = 4_294_967_295
_MOST_RECEIVED = 268_435_455
# Virtual seconds that a client which stops waits for the broker to take its will.
_LAST_WORD = 1.0
_LETTERS = f"{RESERVED}/dead-letter/"
# What comes from outside is as it is, unless the test names a format.
_WIRES = WireFormats("cloudevents")
_SHARED = (
    "max_payload", "max_received", "outbox", "outbox_bytes", "start_timeout", "window",
    "window_bytes", "qos", "wire",
)  # fmt: skip


class SimulatedMqttBus(SimulatedBus):
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
        will = original.config.will if isinstance(original.config, MqttConfig) else None
        bus = _ObservedMemoryBus(self.broker, surroundings, MemoryConfig(**options), will)
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
        """See `SimulatedBus.clients`."""
        return list(self.broker.links)

    def cut(self, client: str, *, lose_session: bool = False) -> None:
        """See `SimulatedBus.cut`."""
        self.broker.drop(self.broker.links[client], lose_session=lose_session)

    def go_away(self) -> None:
        """See `SimulatedBus.go_away`."""
        self.broker.faults.refuse_connections()
        for link in list(self.broker.links.values()):
            self.broker.drop(link)

    def come_back(self) -> None:
        """See `SimulatedBus.come_back`."""
        self.broker.faults.allow()

    def kill(self, owner: object) -> None:
        """See `HarnessBus.kill`."""
        for bus in self._buses:
            if bus.owner is owner:
                bus.gone = True
        self._buses = [bus for bus in self._buses if not bus.gone]
        for link in list(self.broker.links.values()):
            if isinstance(link.wire, SimulatedConnection) and link.wire.owner is owner:
                self.broker.lose(link)


class _ObservedMemoryBus(MemoryBus):
    """A memory bus that knows its owner and its consumers."""

    def __init__(
        self,
        broker: _SimulatedBroker,
        surroundings: Surroundings,
        config: MemoryConfig,
        will: LastWill | None,
    ) -> None:
        super().__init__(broker, surroundings, config)
        identity = surroundings.identity
        self._name = f"{identity.application}.{identity.instance}"
        self._will = will
        broker.leave_will(self._name, will)
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
        await self._say_that_it_stops()
        await super().close()

    async def _say_that_it_stops(self) -> None:
        link, will = self._connection.link, self._will
        if link is None or link.wire is None or will is None or not will.on_stop:
            return
        said: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.wire.up(self._say, will.message, said)
        await asyncio.wait((said,), timeout=_LAST_WORD)

    def _say(self, message: Envelope, said: asyncio.Future[None]) -> None:
        self._broker.publish(message)
        if not said.done():
            said.set_result(None)

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
        # By client id: the will of each connection that it makes, and what waits for its delay.
        self._left: dict[str, LastWill] = {}
        self._delayed: dict[str, asyncio.TimerHandle] = {}
        self._wills: dict[ClientLink, LastWill] = {}
        self.faults = _RandomBrokerFaults(self, world)

    def kept(self, now: float) -> Mapping[str, Envelope]:
        """Return the retained messages that have not expired."""
        return {
            topic: envelope
            for topic, (envelope, deadline) in self._retained.items()
            if deadline is None or deadline > now
        }

    def leave_will(self, client_id: str, will: LastWill | None) -> None:
        """Have a will for all connections of a client from now on; None for none."""
        self._left.pop(client_id, None)
        if will is not None:
            self._left[client_id] = will

    def connect(self, client_id: str, **options: Any) -> ClientLink:
        link = super().connect(client_id, **options)
        delayed = self._delayed.pop(client_id, None)
        if delayed is not None:
            # As Mosquitto does it, which asks no more of who comes back than its client id.
            delayed.cancel()
        will = self._left.get(client_id)
        if will is not None:
            self._wills[link] = will
            if will.birth is not None and link.wire is not None:
                # Before everything else on this connection.
                link.wire.up(self.publish, will.birth_message)
        return link

    def _execute(self, client_id: str, will: LastWill) -> None:
        self._delayed.pop(client_id, None)
        self._world.trace.add(client_id, "will", will.topic)
        self.publish(will.message)

    def _lost_will(self, link: ClientLink, will: LastWill | None, *, session: bool) -> None:
        """Publish the will of a connection that has ended without a word, after its delay.

        Args:
            link: the connection.
            will: its will.
            session: whether the session is still there; its end is also that of the delay.
        """
        if will is None:
            return
        if not will.delay or not session:
            self._execute(link.client_id, will)
            return
        self._delayed[link.client_id] = self._world.loop.call_later(
            will.delay, self._execute, link.client_id, will, context=self._world.outside
        )

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
        will = self._wills.pop(link, None)
        super().drop(link, taken_over=taken_over, lose_session=lose_session)
        self._lost_will(link, will, session=not lose_session)

    def lose(self, link: ClientLink) -> None:
        """End a connection whose client exists no more, without a goodbye."""
        will = self._wills.pop(link, None)
        self.close(link)
        self._lost_will(link, will, session=True)

    def close(self, link: ClientLink, *, lose_session: bool = False) -> None:
        if link.open:
            self._world.trace.add(link.client_id, "disconnect")
        self._wills.pop(link, None)
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
