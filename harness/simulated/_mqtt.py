"""A bus that behaves as an MQTT broker does."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

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
from ...transports.memory import (
    Broker,
    BrokerFaults,
    ClientLink,
    MemoryBus,
    MemoryConsumer,
    Queue,
)
from ...transports.mqtt import check_message
from ..loop._tasks import OWNER
from ._profiles import SimulatedBus, Surround

__all__ = ["SimulatedMqtt"]

_FOR_EVER = 4_294_967_295
_MOST_RECEIVED = 268_435_455
_LETTERS = f"{RESERVED}/dead-letter/"
_SHARED = (
    "max_payload", "max_received", "outbox", "outbox_bytes", "start_timeout", "window",
    "window_bytes", "qos",
)  # fmt: skip


class SimulatedMqtt(SimulatedBus):
    """Sessions, retained messages, shared groups, redelivery: a memory broker with faulty wires.

    Args:
        surround: the world it is in.
    """

    def __init__(self, surround: Surround) -> None:
        self._surround = surround
        self.broker = _Broker(surround)
        self._buses: list[_Bus] = []

    def open(self, original: SocketProvider, surroundings: Surroundings) -> Bus:
        """See `SimulatedBus.open`."""
        options = {
            name: getattr(original.config, name)
            for name in _SHARED
            if hasattr(original.config, name)
        }
        # By default it depends on other options, and on each bus on others.
        largest = getattr(original.config, "largest_received", None)
        if largest is not None:
            options["max_received"] = min(largest, _MOST_RECEIVED)
        expiry = getattr(original.config, "session_expiry", _FOR_EVER)
        if expiry != _FOR_EVER:
            identity = surroundings.identity
            self.broker.expiries[f"{identity.application}.{identity.instance}"] = expiry
        bus = _Bus(self.broker, surroundings, MemoryConfig(**options))
        self._buses.append(bus)
        return bus

    def check(self, envelope: Envelope) -> None:
        """See `SimulatedBus.check`; brokers take payloads of any size."""
        check_message(envelope)

    def inject(self, envelope: Envelope) -> None:
        """See `SimulatedBus.inject`."""
        self.broker.publish(envelope)

    def under_way(self) -> str | None:
        """See `SimulatedBus.under_way`."""
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
        """See `SimulatedBus.letters`."""
        retained = self.broker.kept(self._surround.loop.time())
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
        """See `SimulatedBus.kill`."""
        for bus in self._buses:
            if bus.owner is owner:
                bus.gone = True
        self._buses = [bus for bus in self._buses if not bus.gone]
        for link in list(self.broker.links.values()):
            if isinstance(link.wire, _Wire) and link.wire.owner is owner:
                self.broker.close(link)


class _Bus(MemoryBus):
    """A memory bus that knows whose it is, and its consumers."""

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
        """What keeps it from being at rest."""
        if self.pending:
            return f"{self._name}: {self.pending} publishes are not confirmed"
        if self._started and self.away:
            return f"{self._name}: it is to connect again"
        for name, consumer in self._consumers.items():
            if consumer.away:
                return f"{self._name}.{name}: it is to connect again"
        return None


class _Broker(Broker):
    """A broker that tells what happens, and whose connections have faults.

    Attributes:
        expiries: seconds for which sessions of an ``application.instance`` are kept while nobody
            is connected; for ever without.
    """

    def __init__(self, surround: Surround) -> None:
        super().__init__("the simulated broker")
        self._surround = surround
        self.expiries: dict[str, float] = {}
        self._expiring: dict[Queue, asyncio.TimerHandle] = {}
        self.faults = _Faults(self, surround)

    def kept(self, now: float) -> Mapping[str, Envelope]:
        """The retained messages that have not expired."""
        return {
            topic: envelope
            for topic, (envelope, deadline) in self._retained.items()
            if deadline is None or deadline > now
        }

    def make_wire(self, link: ClientLink) -> _Wire:
        wire = _Wire(self, link, self._surround)
        on_lost = link.on_lost
        # What the client does about it belongs to the client, whoever cut the connection.
        link.on_lost = lambda taken_over: wire.context.copy().run(on_lost, taken_over)
        link.on_message = wire.delivering(link.on_message)
        self._surround.trace.add(link.client_id, "connect")
        expiring = self._expiring.pop(link.queue, None)
        if expiring is not None:
            expiring.cancel()
        return wire

    def publish(self, envelope: Envelope) -> None:
        super().publish(envelope)
        self._surround.note(envelope)

    def drop(
        self, link: ClientLink, *, taken_over: bool = False, lose_session: bool = False
    ) -> None:
        if link.open:
            what = "session-lost" if lose_session else "lost"
            self._surround.trace.add(link.client_id, what)
        super().drop(link, taken_over=taken_over, lose_session=lose_session)

    def close(self, link: ClientLink, *, lose_session: bool = False) -> None:
        if link.open:
            self._surround.trace.add(link.client_id, "disconnect")
        super().close(link, lose_session=lose_session)
        queue, whose = link.queue, ".".join(link.client_id.split(".")[:2])
        if whose in self.expiries and not queue.members and self._queues.get(queue.name) is queue:
            earlier = self._expiring.pop(queue, None)
            if earlier is not None:
                earlier.cancel()
            self._expiring[queue] = self._surround.loop.call_later(
                self.expiries[whose], self._expire, queue, context=self._surround.outside
            )

    def _expire(self, queue: Queue) -> None:
        del self._expiring[queue]
        if not queue.members and self._queues.get(queue.name) is queue:
            self._surround.trace.add(queue.name, "session-expired")
            self._end(queue)


class _Faults(BrokerFaults):
    """The broker's own faults, decided by dice."""

    def __init__(self, broker: Broker, surround: Surround) -> None:
        super().__init__(broker)
        self._surround = surround

    def duplicates(self, topic: str) -> bool:
        dice = self._surround.dice
        return dice.active and dice.strikes(dice.faults.duplicate)


class _Wire:
    """One connection's packets, each of which may be late, or be the last one.

    Attributes:
        context: whatever arrives at the client runs in it.
        owner: the life of the application that made the connection.
    """

    def __init__(self, broker: Broker, link: ClientLink, surround: Surround) -> None:
        self.context = contextvars.copy_context()
        self.owner = self.context.get(OWNER)
        self._broker = broker
        self._link = link
        self._surround = surround
        self._dice = surround.dice
        self._loop = surround.loop
        self._broken = False
        self._soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._up = _Lane(self, surround.outside)
        self._down = _Lane(self, self.context)

    @property
    def alive(self) -> bool:
        """Whether packets arrive."""
        return self._link.open and not self._broken

    def up(self, function: Callable[..., None], *args: Any) -> None:
        """See `Wire.up`."""
        if not self._dice.active or self.owner is None:
            if len(self._up):
                self._up.add(0.0, function, args)
            elif self.alive:
                function(*args)
        elif not self._breaks():
            latency = self._dice.latency()
            if latency or len(self._up):
                self._up.add(latency, function, args)
            elif self.alive:
                function(*args)

    def acknowledge(self, token: int) -> None:
        """See `Wire.acknowledge`."""
        link = self._link
        stored = link.in_flight.get(token)
        if stored is not None:
            envelope = stored.envelope
            self._surround.trace.add(link.client_id, "acknowledge", envelope.topic, envelope.id)
        self.up(link.queue.acknowledge, link, token)

    def delivering(
        self, on_message: Callable[[Envelope, int], None]
    ) -> Callable[[Envelope, int], None]:
        """The client's callback, so that each message is noted."""
        add, client = self._surround.trace.add, self._link.client_id

        def deliver(envelope: Envelope, token: int) -> None:
            what = "redeliver" if envelope.redelivered else "deliver"
            add(client, what, envelope.topic, envelope.id)
            on_message(envelope, token)

        return deliver

    def down(self, function: Callable[..., None], *args: Any) -> None:
        """See `Wire.down`."""
        latency = 0.0
        if self._dice.active and self.owner is not None:
            if self._breaks():
                return
            latency = self._dice.latency()
        if latency or len(self._down):
            self._down.add(latency, function, args)
            return
        if not self._soon:
            self._loop.call_soon(self._arrive, context=self.context)
        self._soon.append((function, args))

    def _arrive(self) -> None:
        arriving, self._soon = self._soon, []
        for function, args in arriving:
            if not self.alive:
                return
            function(*args)

    def _breaks(self) -> bool:
        if self._broken:
            return True
        if not self._dice.strikes(self._dice.faults.drop):
            return False
        self._broken = True
        self._surround.trace.add(self._link.client_id, "drop")
        noticed = self._dice.seconds()
        self._loop.call_later(noticed, self._end, context=self._surround.outside)
        return True

    def _end(self) -> None:
        if self._link.open:
            self._broker.drop(self._link)


class _Lane:
    """Packets in one direction, some late; they stay in order."""

    def __init__(self, wire: _Wire, context: contextvars.Context) -> None:
        self._wire = wire
        self._context = context
        self._loop: asyncio.AbstractEventLoop = wire._loop
        self._packets: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._last = 0.0

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, latency: float, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        """A packet is under way."""
        self._last = max(self._last, self._loop.time() + latency)
        self._packets.append((function, args))
        self._loop.call_at(self._last, self._arrive, context=self._context)

    def _arrive(self) -> None:
        function, args = self._packets.popleft()
        if self._wire.alive:
            function(*args)
