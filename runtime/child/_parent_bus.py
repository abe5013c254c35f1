"""The parent as a bus: the one bus of the actor in a child process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from ...errors import (
    ConnectionLost,
    MessageTooLarge,
    OutboxFull,
    PublishNotSent,
    PublishUnknown,
    SpaDatError,
)
from ...transports import (
    Bus,
    Consumer,
    Delivery,
    DeliveryState,
    Envelope,
    Receiver,
    SocketProvider,
    Subscription,
    Surroundings,
    check_encodable,
    check_topic,
    size_of,
)
from ..processes._channel import Channel
from ..processes._delivery_progress import DONE, SENT, STARTED, Progress
from ..processes._frames import (
    Cancel,
    Confirmed,
    Connected,
    Deliver,
    Finished,
    Park,
    Post,
    Publish,
    Replied,
    Returned,
    Settled,
    Subscribe,
    error_of,
    tag_of,
)

__all__ = ["ParentBus", "ParentConsumer", "ParentDelivery", "ParentProvider"]

_SETTLED, _RETURNED = tag_of(Settled), tag_of(Returned)
_POST, _PUBLISH, _PARK, _CANCEL = tag_of(Post), tag_of(Publish), tag_of(Park), tag_of(Cancel)
_LONGEST_HELD = 0.002
_COUNT_AFTER = 0.02
# Members of an Enum are slow to look up.
_QUEUED, _RUNNING = DeliveryState.QUEUED, DeliveryState.RUNNING


class ParentDelivery(Delivery):
    """A delivery of the parent's. What becomes of it is written where the parent can read it."""

    def start(self) -> bool:
        """See `Delivery.start`."""
        # As in `Delivery`, without the cost of a call.
        if self.state is not _QUEUED:
            return False
        self.state = _RUNNING
        book: Any = self.tracker
        slot = self.token
        book.since[slot] = monotonic()
        book.states[slot] = STARTED
        return True

    def requeue(self) -> None:
        """See `Delivery.requeue`."""
        super().requeue()
        if self.state is DeliveryState.QUEUED:
            book: Any = self.tracker
            book.states[self.token] = SENT

    def withdraw(self) -> None:
        """Return it to the parent."""
        before = self.state
        super().withdraw()
        if self.state is not before:
            book: Any = self.tracker
            book.returned(self)


class Book:
    """What the child has of its parent's deliveries; stands for a `Tracker`.

    Args:
        channel: the way to the parent.
        progress: where the parent reads how far each has come.

    Attributes:
        known: what is neither settled nor returned, by slot.
        on_settled: called a moment after something was settled.
    """

    # No delivery is waited for by a broker that sends nothing more: the parent knows.
    full = False
    next = None

    def __init__(self, channel: Channel, progress: Progress) -> None:
        self._channel = channel
        self.states = progress.states
        self.since = progress.since
        self._settled: list[int] = []
        self._returned: list[tuple[int, int]] = []
        self._first = 0.0
        self._loop = asyncio.get_running_loop()
        self.known: dict[int, Delivery] = {}
        self.on_settled: Callable[[], None] = lambda: None
        self._counting = False

    def settled(self, delivery: Delivery) -> None:
        """See `Tracker.settled`."""
        slot = delivery.token
        self.states[slot] = DONE
        known = self.known
        known.pop(slot, None)
        self._settled.append(slot)
        if not self._counting:
            self._counting = True
            self._loop.call_later(_COUNT_AFTER, self._count)
        if not known:
            # There is nothing that more could be gathered from.
            self.tell(at_once=True)
        elif len(self._settled) == 1:
            self._first = monotonic()
            self._loop.call_soon(self.tell)
        elif monotonic() - self._first > _LONGEST_HELD:
            # A handler that computes gives the loop no turn.
            self.tell(at_once=True)

    def _count(self) -> None:
        self._counting = False
        self.on_settled()

    def returned(self, delivery: Delivery) -> None:
        """Note that the parent gets a delivery back."""
        self.states[delivery.token] = SENT
        self.known.pop(delivery.token, None)
        if not self._returned:
            self._loop.call_soon(self.tell)
        self._returned.append((delivery.token, delivery.attempts))

    def tell(self, *, at_once: bool = False) -> None:
        """Send what was settled and returned."""
        if self._settled:
            settled, self._settled = self._settled, []
            self._channel.send((_SETTLED, settled), at_once=at_once)
        if self._returned:
            returned, self._returned = self._returned, []
            self._channel.send((_RETURNED, returned), at_once=at_once)


class ParentConsumer(Consumer):
    """A subscription of the actor; the parent has the one to the broker.

    Args:
        bus: of which it is part.
        subscription: what the runtime asks for.
        receiver: the router.
    """

    def __init__(self, bus: ParentBus, subscription: Subscription, receiver: Receiver) -> None:
        self._bus = bus
        self.subscription = subscription
        self.receiver = receiver

    async def start(self) -> None:
        """Do nothing: the parent has subscribed."""

    async def add_filter(self, pattern: str) -> None:
        """Have the parent subscribe."""
        await self._bus.subscribe(pattern, undo=False)

    async def remove_filter(self, pattern: str) -> None:
        """Have the parent unsubscribe."""
        await self._bus.subscribe(pattern, undo=True)

    def discard_stale(self, topic: str) -> None:
        """Do nothing: what comes was wanted by the parent."""

    def stop_intake(self) -> None:
        """Do nothing: the parent sends nothing to a child that stops."""

    async def close(self) -> None:
        """Do nothing: what is settled is told as it happens."""


class ParentBus(Bus):
    """The bus of an actor in a child process.

    Args:
        channel: the way to the parent.
        about: what the parent's bus is like; see `Start.bus`.
    """

    def __init__(self, channel: Channel, about: dict[str, Any]) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self.max_payload = about["max_payload"]
        self.max_received = about["max_received"]
        self.connected = about["connected"]
        self._reply_prefix: str | None = about["reply_prefix"]
        self._reply_problem: str | None = about["reply_problem"]
        self._capacity: int = about["outbox"]
        self._capacity_bytes: int = about["outbox_bytes"]
        self._on_reply: Callable[[str, Envelope], None] | None = None
        self._number = 0
        self._pending: dict[int, tuple[asyncio.Future[None], int]] = {}
        self._bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False

    @property
    def trouble(self) -> str | None:
        """None: what is wrong with the bus is said by the parent."""
        return None

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """See `Bus.start`."""
        self._on_reply = on_reply

    def reply_address(self, correlation: str) -> str:
        """See `Bus.reply_address`."""
        if self._reply_prefix is None:
            raise ConnectionLost(self._reply_problem or "no request can be made")
        return self._reply_prefix + correlation

    def consumer(self, subscription: Subscription, receiver: Receiver) -> ParentConsumer:
        """See `Bus.consumer`."""
        return ParentConsumer(self, subscription, receiver)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """See `Bus.post`."""
        self._check(envelope)
        size = size_of(envelope)
        if self._pending and (
            len(self._pending) >= self._capacity or self._bytes + size > self._capacity_bytes
        ):
            raise OutboxFull(
                f"{len(self._pending)} publishes with {self._bytes} bytes are waiting for"
                " confirmation; wait with drain() between posts, or raise the option 'outbox'"
            )
        number = self._number_of_next()
        self._channel.send_envelope((_POST, number), envelope)
        future = self._asked(number, size)
        future.add_done_callback(lambda done: self._given_up(number, done))
        return future

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.publish`."""
        self._check(envelope)
        await self._answered(_PUBLISH, envelope, timeout)

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.park`."""
        await self._answered(_PARK, envelope, timeout)

    async def subscribe(self, pattern: str, *, undo: bool) -> None:
        """Add a filter to those of the actor, or remove it."""
        number = self._number_of_next()
        self._channel.send(Subscribe(number, pattern, undo))
        await self._asked(number, 0)

    async def drain(self) -> None:
        """See `Bus.drain`."""
        while self._pending:
            await self._change()

    async def room(self) -> None:
        """See `Bus.room`."""
        while len(self._pending) > self._capacity // 2 or self._bytes > self._capacity_bytes // 2:
            await self._change()

    async def close(self) -> None:
        """See `Bus.close`."""
        self._closed = True
        pending, self._pending = self._pending, {}
        for future, _ in pending.values():
            if not future.done():
                future.set_exception(PublishUnknown("the process of the actor has ended first"))
        self.tell()

    # What the parent says.

    def outcome(self, frame: Confirmed | Finished | Replied | Connected) -> None:
        """Take what the parent says about the bus."""
        if isinstance(frame, Confirmed):
            for number in frame.numbers:
                self._end(number, None)
            self.tell()
        elif isinstance(frame, Finished):
            error = None if frame.problem is None else error_of(frame.problem)
            self._end(frame.number, error)
            self.tell()
        elif isinstance(frame, Replied):
            if self._on_reply is not None:
                self._on_reply(frame.correlation, frame.envelope)
        else:
            self.connected = frame.connected

    def _check(self, envelope: Envelope) -> None:
        if self._closed:
            raise PublishNotSent("the actor has stopped, and its process with it")
        size = len(envelope.payload)
        if size > self.max_payload:
            raise MessageTooLarge(
                f"the payload for {envelope.topic!r} has {size} bytes, the bus accepts"
                f" {self.max_payload}; send less, or raise the option 'max_payload'"
            )
        check_encodable(envelope)

    def _number_of_next(self) -> int:
        self._number += 1
        return self._number

    def _asked(self, number: int, size: int) -> asyncio.Future[None]:
        """Return what ends with the parent's answer to what was sent under this number.

        Nobody answers what could not be sent, so nothing is pending before.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._pending[number] = future, size
        self._bytes += size
        return future

    async def _answered(self, tag: int, envelope: Envelope, timeout: float) -> None:
        number = self._number_of_next()
        self._channel.send_envelope((tag, number, timeout), envelope)
        future = self._asked(number, size_of(envelope))
        try:
            await future
        finally:
            self._given_up(number, future)

    def _given_up(self, number: int, future: asyncio.Future[None]) -> None:
        if future.cancelled() and number in self._pending:
            self._end(number, None)
            self._channel.send((_CANCEL, number))

    def _end(self, number: int, error: SpaDatError | None) -> None:
        future, size = self._pending.pop(number, (None, 0))
        self._bytes -= size
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def tell(self) -> None:
        """Wake those who wait for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter


class ParentProvider(SocketProvider):
    """Opens the parent's bus; made in the child.

    Args:
        channel: the way to the parent.
        about: what the parent's bus is like; see `Start.bus`.

    Attributes:
        bus: the bus, once it was opened.
    """

    def __init__(self, channel: Channel, about: dict[str, Any]) -> None:
        self._channel = channel
        self._about = about
        self.default_deliver = about["deliver"]
        self.null_headers = about["null_headers"]
        self.default_qos = about["qos"]
        self.default_window = about["window"]
        self.default_window_bytes = about["window_bytes"]
        self.wires = about["wires"]
        self.bus: ParentBus | None = None

    @property
    def address(self) -> str:
        """That of the parent's bus."""
        address: str = self._about["address"]
        return address

    def open(self, surroundings: Surroundings) -> ParentBus:
        """See `SocketProvider.open`."""
        self.bus = ParentBus(self._channel, self._about)
        return self.bus

    def check_topic(self, topic: str) -> None:
        """See `SocketProvider.check_topic`."""
        check_topic(topic)

    def check_message(self, envelope: Envelope) -> None:
        """See `SocketProvider.check_message`."""
        super().check_message(envelope)
        check_encodable(envelope)

    def check_filter(self, pattern: str) -> None:
        """Do nothing: the parent has checked it, or does."""


def delivery_in(frame: Deliver, book: Book) -> ParentDelivery:
    """Return what a frame delivers."""
    envelope = frame.envelope
    size = len(envelope.payload)
    epoch = -1 if frame.last else 0
    delivery = ParentDelivery(envelope, epoch, frame.slot, book, size)  # type: ignore[arg-type]
    delivery.attempts = frame.attempts
    book.known[frame.slot] = delivery
    return delivery
