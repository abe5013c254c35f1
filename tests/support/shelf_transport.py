"""A transport to a `Shelf`, as somebody else would write one.

Everything in it comes from `spa_dat.transports` and `spa_dat.errors`.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from spa_dat.errors import ConfigurationError, ConnectFailed, ConnectionLost, MessageTooLarge
from spa_dat.transports import (
    Backoff,
    Bus,
    Consumer,
    Delivery,
    DeliveryState,
    Envelope,
    Outbox,
    OutboxEntry,
    Receiver,
    SocketProvider,
    Subscription,
    Surroundings,
    Tracker,
    check_filter,
    check_topic,
    opened,
    parked,
    reply_prefix,
)
from support.shelf import Box, Line, Shelf

__all__ = ["ShelfBus", "ShelfConsumer", "ShelfProvider"]

_BEGUN = (DeliveryState.RUNNING, DeliveryState.SETTLED)
_KICKS = 5
_UNLIMITED = 2**31


class _Client(abc.ABC):
    """Something that stays connected."""

    def __init__(self, name: str, around: Surroundings, shelf: Shelf) -> None:
        self.name = name
        self.around = around
        self.shelf = shelf
        self.line: Line | None = None
        self.closed = False
        self._backoff = Backoff(around.environment, maximum=1.0)
        self._timer: asyncio.TimerHandle | None = None
        self._kicks = 0

    @abc.abstractmethod
    def connect(self) -> None:
        """Connect once and set ``line``; raises ConnectFailed."""

    @abc.abstractmethod
    def lost(self) -> None:
        """Note that the connection is gone."""

    async def open(self, timeout: float) -> None:
        """Connect, and try for so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._connects():
            left = deadline - loop.time()
            if left <= 0 or self.closed:
                raise ConnectFailed(f"{self.name!r} got no connection within {timeout:g} s")
            await asyncio.sleep(min(left, self._backoff.next_delay()))

    def shut(self) -> None:
        """Disconnect, or stop trying."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self.line is not None:
            self.shelf.disconnect(self.line)
            self.line = None

    def on_lost(self, taken_over: bool) -> None:
        """Reconnect; called by the broker."""
        self.line = None
        self.lost()
        self._kicks = self._kicks + 1 if taken_over else 0
        if self._kicks < _KICKS:
            self._retry()
            return
        problem = f"{self.name!r} is taken over again and again; give each its own instance"
        self.around.fatal(ConfigurationError(problem))

    def _retry(self) -> None:
        delay = self._backoff.next_delay()
        self._timer = asyncio.get_running_loop().call_later(delay, self._again)

    def _again(self) -> None:
        if not self._connects():
            self._retry()

    def _connects(self) -> bool:
        try:
            self.connect()
        except ConnectFailed:
            return False
        return True


class ShelfConsumer(_Client, Consumer):
    """A subscription."""

    def __init__(self, bus: ShelfBus, subscription: Subscription, receiver: Receiver) -> None:
        super().__init__(f"{bus.name}.{subscription.name}", bus.around, bus.shelf)
        identity = bus.around.identity
        group = f"group {identity.application}.{subscription.name}"
        self.box_name = group if subscription.share else self.name
        self.durable = subscription.durable and not identity.ephemeral
        self.filters = dict.fromkeys(subscription.filters)
        self.subscription = subscription
        self.receiver = receiver
        self.tracker = Tracker(self.release)
        # What earlier connections brought and nobody has acknowledged, by number.
        self.earlier: dict[int, Delivery] = {}
        self._start_timeout = bus.start_timeout
        self._box: Box | None = None
        self._intake = True
        self._connected = asyncio.Event()

    async def start(self) -> None:
        await self.open(self._start_timeout)

    async def add_filter(self, pattern: str) -> None:
        self.filters[pattern] = None
        await self._in_force()

    async def remove_filter(self, pattern: str) -> None:
        self.filters.pop(pattern, None)
        await self._in_force()

    def discard_stale(self, topic: str) -> None:
        """There are no stale filters: those of an earlier program go with it."""

    @property
    def trouble(self) -> str | None:
        return None if self._connected.is_set() else f"{self.name!r} has no connection"

    def stop_intake(self) -> None:
        self._intake = False

    async def close(self) -> None:
        self.shut()
        self._connected.set()

    async def _in_force(self) -> None:
        await self._connected.wait()
        if self.line is None:
            raise ConnectionLost(f"{self.name!r} was closed meanwhile")
        self.line.changed()

    def connect(self) -> None:
        window = self.subscription.window
        line = Line(self.name, self.filters, window, self.arrived, self.on_lost)
        self.shelf.connect(line, self.box_name, self.durable)
        self.line = line
        before, self._box = self._box, line.box
        if before is not None:
            self.resume(kept=before is line.box)
        self._connected.set()

    def lost(self) -> None:
        self._connected.clear()
        self.receiver.hold()

    def resume(self, *, kept: bool) -> None:
        """Resume after a reconnect; the broker still has what was not acknowledged, or has not."""
        left = {delivery.token: delivery for delivery in self.tracker.begin()}
        self.earlier = {**self.earlier, **left} if kept else {}
        self.receiver.resume(redelivered=kept)

    def arrived(self, envelope: Envelope, number: int) -> None:
        """Take a message: a new one, or one that a handler has begun with."""
        envelope = opened(envelope)
        if self.subscription.qos == 0:
            self.acknowledge(number)
            if self._intake:
                self.receiver.deliver(Delivery(envelope))
            return
        earlier = self.earlier.pop(number, None)
        begun = earlier is not None and earlier.state in _BEGUN
        if not begun and not self._intake:
            return
        delivery = self.tracker.register(envelope, number)
        if earlier is not None:
            if begun:
                earlier.replaced_by(delivery)
                return
            delivery.attempts = earlier.attempts
        self.receiver.deliver(delivery)

    def release(self, free: list[Delivery]) -> None:
        """Acknowledge; what cannot be acknowledged now is when it comes again."""
        for delivery in free:
            if self.line is None:
                self.earlier[delivery.token] = delivery
            self.acknowledge(delivery.token)

    def acknowledge(self, number: int) -> None:
        """Tell the broker."""
        if self.line is not None:
            self.line.acknowledge(number)


class ShelfBus(_Client, Bus):
    """An application's presence: publishes, and the inbox for replies."""

    consumer_type = ShelfConsumer

    def __init__(
        self,
        shelf: Shelf,
        around: Surroundings,
        *,
        max_payload: int = 1_000_000,
        outbox: int = 10_000,
        start_timeout: float = 10.0,
    ) -> None:
        identity = around.identity
        super().__init__(f"{identity.application}.{identity.instance}", around, shelf)
        self.max_payload = max_payload
        self.start_timeout = start_timeout
        self.connected = False
        self.inbox = reply_prefix(identity.application, around.environment.token())
        self.outbox = Outbox(self.write, capacity=outbox)
        self._on_reply: Callable[[str, Envelope], None] | None = None

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        self._on_reply = on_reply
        await self.open(self.start_timeout)

    def reply_address(self, correlation: str) -> str:
        return self.inbox + correlation

    def consumer(self, subscription: Subscription, receiver: Receiver) -> ShelfConsumer:
        return self.consumer_type(self, subscription, receiver)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        self._check(envelope)
        return self.outbox.submit(envelope)

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        self._check(envelope)
        await self.outbox.publish(envelope, timeout)

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        application, new_id = self.around.identity.application, self.around.environment.new_id
        await self.publish(parked(application, envelope, new_id), timeout=timeout)

    async def drain(self) -> None:
        await self.outbox.drain()

    async def close(self) -> None:
        self.connected = False
        self.outbox.close()
        self.shut()

    def _check(self, envelope: Envelope) -> None:
        check_topic(envelope.topic)
        if envelope.qos not in (0, 1):
            raise ConfigurationError(f"qos={envelope.qos} of a publish: give 0 or 1")
        size = len(envelope.payload)
        if size > self.max_payload:
            raise MessageTooLarge(
                f"the payload for {envelope.topic!r} has {size} bytes, over {self.max_payload}"
            )

    def connect(self) -> None:
        line = Line(self.name, {f"{self.inbox}+": None}, _UNLIMITED, self.arrived, self.on_lost)
        self.shelf.connect(line, self.name, durable=False)
        self.line = line
        self.connected = True
        self.outbox.connected()

    def lost(self) -> None:
        self.connected = False
        self.outbox.disconnected()

    def write(self, entry: OutboxEntry) -> None:
        """Publish, which the broker confirms at once."""
        # An expiry counts from when it was posted, and not from now.
        self.shelf.publish(msgspec.structs.replace(entry.envelope, expiry=entry.left))
        self.outbox.confirm(entry)

    def arrived(self, envelope: Envelope, number: int) -> None:
        """Pass on a reply."""
        if self.line is not None:
            self.line.acknowledge(number)
        if self._on_reply is not None:
            self._on_reply(envelope.topic.removeprefix(self.inbox), opened(envelope))


class ShelfProvider(SocketProvider):
    """The address of a shelf; ``options`` are those of `ShelfBus`."""

    def __init__(self, shelf: Shelf, bus: type[ShelfBus] = ShelfBus, **options: Any) -> None:
        self.shelf = shelf
        self._bus = bus
        self.config = tuple(sorted(options.items()))
        self._options = options

    @property
    def address(self) -> str:
        return "shelf://"

    def open(self, surroundings: Surroundings) -> Bus:
        return self._bus(self.shelf, surroundings, **self._options)

    def check_topic(self, topic: str) -> None:
        check_topic(topic)

    def check_filter(self, pattern: str) -> None:
        check_filter(pattern)
