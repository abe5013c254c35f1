"""Publishing to the memory broker, and its reply inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from ...errors import (
    ConfigurationError,
    MessageTooLarge,
    OutboxFull,
    RequestError,
    TransportError,
)
from .._connect_failures import not_outage
from .._contract import Bus, Receiver, Subscription, Surroundings
from .._dead_letter_topics import parked
from .._envelope import Envelope
from .._outbox import Outbox, OutboxEntry
from .._topics import reply_prefix
from .._wire_formats import WireFormats
from ..mqtt import as_taken, check_message
from ._broker import Broker
from ._config import MemoryConfig
from ._connection import MemoryConnection
from ._consumer import MemoryConsumer
from ._queue import ClientLink, Queue, Wire

__all__ = ["MemoryBus"]

_WINDOW = 1_000
_UNLIMITED = 2**31


class MemoryBus(Bus):
    """One application's presence on a memory broker."""

    def __init__(self, broker: Broker, surroundings: Surroundings, config: MemoryConfig) -> None:
        identity = surroundings.identity
        self.max_payload: int = config.max_payload
        self.max_received: int = config.largest_received
        self.connected: bool = False
        self._wires = WireFormats(config.wire)
        self._packs = self._wires.own.packs
        self._broker = broker
        self._surroundings = surroundings
        self._start_timeout = config.start_timeout
        self._application = identity.application
        self._inbox = reply_prefix(identity.application, surroundings.environment.token())
        self._on_reply: Callable[[str, Envelope], None] | None = None
        self._outbox = Outbox(
            self._write,
            capacity=config.outbox,
            capacity_bytes=config.outbox_bytes,
            window=_WINDOW,
            stats=surroundings.stats,
        )
        # Of publishes that are not in the outbox yet.
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._answers: list[tuple[OutboxEntry, Exception | None]] = []
        self._connection = MemoryConnection(
            broker,
            identity.client_id,
            surroundings,
            connect=self._connect,
            lost=self._lost,
        )

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        self._on_reply = on_reply
        await self._connection.start(self._start_timeout)

    def reply_address(self, correlation: str) -> str:
        return self._inbox + correlation

    @property
    def away(self) -> bool:
        """Whether it has lost its connection and will reconnect."""
        return self._connection.away

    @property
    def pending(self) -> int:
        """The number of publishes without an outcome."""
        return len(self._outbox)

    def consumer(self, subscription: Subscription, receiver: Receiver) -> MemoryConsumer:
        return MemoryConsumer(
            self._broker,
            subscription,
            receiver,
            self._surroundings,
            start_timeout=self._start_timeout,
            max_received=self.max_received,
            wire=self._wires.of(subscription.wire),
        )

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        if self._packs or envelope.wire is not None:
            envelope = self._wires.packed(envelope)
        self._check(envelope)
        if self._broker.full and envelope.qos:
            for full in self._broker.full_queues(envelope.topic):
                raise _refused(full, envelope)
        return self._outbox.submit(envelope)

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        if self._packs or envelope.wire is not None:
            envelope = self._wires.packed(envelope)
        self._check(envelope)
        if self._broker.full and envelope.qos:
            full = self._broker.full_queues(envelope.topic)
            timeout = await self._wait_for_room(full, envelope, timeout)
        await self._outbox.publish(envelope, timeout)

    async def _wait_for_room(self, full: list[Queue], envelope: Envelope, timeout: float) -> float:
        """Wait until the queues are not full any more; return how much of the time is left.

        This is not done in the outbox, where it would be in the way of dead letters and replies,
        which a subscriber may have to send before it can take more.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for queue in full:
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters[waiter] = None
            try:
                async with asyncio.timeout_at(deadline):
                    await queue.room(waiter)
            except TimeoutError:
                raise _refused(queue, envelope, waited=timeout) from None
            finally:
                self._waiters.pop(waiter, None)
        return max(deadline - loop.time(), 0.0)

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        new_id = self._surroundings.environment.new_id
        letter = parked(self._application, envelope, new_id)
        self._check(letter)
        await self._outbox.publish(letter, timeout)

    def opened(self, envelope: Envelope, wire: str | None = None) -> Envelope:
        return self._wires.of(wire).opened(envelope)

    async def drain(self) -> None:
        await self._outbox.drain()

    async def room(self) -> None:
        await self._outbox.room()

    async def close(self) -> None:
        self.connected = False
        self._outbox.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._answers.clear()
        self._connection.close()

    def _check(self, envelope: Envelope) -> None:
        size = len(envelope.payload)
        if size > self.max_payload:
            raise MessageTooLarge(
                f"the payload for {envelope.topic!r} has {size} bytes, {self._broker.address}"
                f" accepts {self.max_payload}; send less, or raise the option 'max_payload'"
            )
        # It stands in for MQTT in tests, which should see what MQTT would refuse.
        check_message(envelope)
        if envelope.qos not in (0, 1):
            raise ConfigurationError(f"qos={envelope.qos} of a publish: give 0 or 1")

    def _connect(self) -> ClientLink:
        link = self._broker.connect(
            self._connection.client_id,
            durable=False,
            window=_UNLIMITED,
            on_message=self._received,
            on_lost=self._connection.lost,
        )
        self._broker.subscribe(link, (f"{self._inbox}+",))
        self.connected = True
        self.connected_at: float = asyncio.get_running_loop().time()
        # The outbox writes at once, and the connection must be set when answers arrive.
        self._connection.link = link
        self._outbox.connected()
        return link

    def _lost(self) -> None:
        self.connected = False
        self._answers.clear()
        self._outbox.disconnected()

    def _received(self, envelope: Envelope, token: int) -> None:
        link = self._connection.link
        if link is not None:
            link.acknowledge(token)
        if self._on_reply is not None:
            envelope = as_taken(envelope, self.max_received, self._wires.of_replies)
            self._on_reply(envelope.topic[len(self._inbox) :], envelope)

    def _write(self, entry: OutboxEntry) -> None:
        link = self._connection.link
        if link is not None and link.wire is not None:
            link.wire.up(self._taken, link.wire, entry)
            return
        error = self._refusal(entry)
        if error is None and self._broker.faults.loses_confirmation():
            return
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._answer)
        self._answers.append((entry, error))

    def _taken(self, wire: Wire, entry: OutboxEntry) -> None:
        wire.down(self._answered, entry, self._refusal(entry))

    def _refusal(self, entry: OutboxEntry) -> Exception | None:
        envelope = entry.envelope
        if entry.deadline is not None:
            envelope = msgspec.structs.replace(envelope, expiry=entry.left)
        try:
            self._broker.publish(envelope)
        except (TransportError, RequestError) as refusal:
            # The error's frames refer to the entry, which will refer to the error.
            return refusal.with_traceback(None)
        return None

    def _answer(self) -> None:
        answers, self._answers = self._answers, []
        for entry, error in answers:
            self._answered(entry, error)

    def _answered(self, entry: OutboxEntry, error: Exception | None) -> None:
        if error is None:
            self._outbox.confirm(entry)
        else:
            self._outbox.fail(entry, error)


def _refused(queue: Queue, envelope: Envelope, waited: float | None = None) -> OutboxFull:
    """Return the error of a message for which a queue has no room.

    Args:
        queue: it.
        envelope: the message.
        waited: for how many seconds a publish has waited; None for a post.
    """
    if queue.members:
        whose, remedy = "which is slow to take them", "let its actor do less for each message"
    else:
        whose, remedy = "which is away", "start its application"
    within, first = "", "'await socket.publish(...)' waits for room"
    if waited is not None:
        within, first = f" within {waited:g} s", "wait longer with timeout="
    return not_outage(
        OutboxFull(
            f"{len(queue)} messages of {queue.size} bytes are waiting for {queue.name!r}, {whose},"
            f" and the one to {envelope.topic!r} was not accepted{within}: {first}; {remedy}, or"
            " raise the option 'queue' or 'queue_bytes'"
        )
    )
