"""The consumer of the memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..._logs import get_logger
from ...errors import ConnectionLost
from .._contract import Consumer, Receiver, Subscription, Surroundings
from .._delivery import Delivery, DeliveryState, Tracker
from .._envelope import Envelope
from .._topics import TopicFilter
from .._wire_formats import CLOUDEVENTS, WireFormat
from ..mqtt import as_taken
from ._broker import Broker
from ._connection import MemoryConnection
from ._queue import ClientLink, Queue

__all__ = ["MemoryConsumer"]

_log = get_logger(__name__)


class MemoryConsumer(Consumer):
    """One subscription's connection to the memory broker."""

    __slots__ = (
        "_broker",
        "_closed",
        "_connection",
        "_durable",
        "_earlier",
        "_filters",
        "_group",
        "_intake",
        "_max_received",
        "_queue",
        "_receiver",
        "_start_timeout",
        "_subscription",
        "_tracker",
        "_unwanted",
        "_waiters",
        "_window",
        "_window_bytes",
        "_wire",
    )

    def __init__(
        self,
        broker: Broker,
        subscription: Subscription,
        receiver: Receiver,
        surroundings: Surroundings,
        *,
        start_timeout: float,
        max_received: int,
        wire: WireFormat = CLOUDEVENTS,
    ) -> None:
        identity = surroundings.identity
        self._broker = broker
        self._subscription = subscription
        self._receiver = receiver
        self._start_timeout = start_timeout
        self._max_received = max_received
        self._wire = wire
        self._window = subscription.window
        self._window_bytes = subscription.window_bytes
        self._durable = subscription.durable and not identity.ephemeral
        self._group = identity.group_of(subscription.name) if subscription.share else None
        self._filters = dict.fromkeys(subscription.filters)
        self._unwanted: dict[str, None] = {}
        self._tracker = Tracker(self._release)
        # Deliveries of earlier connections that were not acknowledged, by token.
        self._earlier: dict[int, Delivery] = {}
        self._queue: Queue | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._intake = True
        self._closed = False
        self._connection = MemoryConnection(
            broker,
            identity.client_id_of(subscription.name),
            surroundings,
            connect=self._connect,
            lost=self._lost,
        )

    async def start(self) -> None:
        await self._connection.start(self._start_timeout)

    async def add_filter(self, pattern: str) -> None:
        self._filters[pattern] = None
        self._unwanted.pop(pattern, None)
        if self._connection.link is None:
            await self._connected()
        else:
            self._broker.subscribe(self._connection.link, (pattern,), self._subscription.retained)

    async def remove_filter(self, pattern: str) -> None:
        self._filters.pop(pattern, None)
        if self._connection.link is None:
            self._unwanted[pattern] = None
            await self._connected()
        else:
            self._broker.unsubscribe(self._connection.link, pattern)

    def discard_stale(self, topic: str) -> None:
        link = self._connection.link
        if link is None:
            return
        for pattern in list(link.queue.filters):
            if pattern not in self._filters and TopicFilter.parse(pattern).matches(topic):
                self._broker.unsubscribe(link, pattern)
                _log.warning(
                    "%s: removed the filter %r of %r, left by an earlier program",
                    self._broker.address,
                    pattern,
                    self._connection.client_id,
                )

    @property
    def away(self) -> bool:
        """Whether it has lost its connection and will reconnect."""
        return self._connection.away

    @property
    def trouble(self) -> str | None:
        if self._connection.link is not None:
            return None
        return f"there is no connection to {self._broker.address}"

    @property
    def trackers(self) -> Sequence[Tracker]:
        return (self._tracker,)

    def stop_intake(self) -> None:
        self._intake = False

    async def close(self) -> None:
        self._intake = False
        self._closed = True
        self._connection.close()
        self._wake(
            ConnectionLost(f"the consumer {self._connection.client_id!r} was closed meanwhile")
        )

    async def _connected(self) -> None:
        if self._closed:
            raise ConnectionLost(f"the consumer {self._connection.client_id!r} is closed")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self, error: Exception | None = None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def _connect(self) -> ClientLink:
        link = self._broker.connect(
            self._connection.client_id,
            durable=self._durable,
            window=self._subscription.window,
            window_bytes=self._subscription.window_bytes,
            on_message=self._received,
            on_lost=self._connection.lost,
            group=self._group,
            qos=self._subscription.qos,
        )
        for pattern in self._unwanted:
            self._broker.unsubscribe(link, pattern)
        self._unwanted.clear()
        self._broker.subscribe(link, self._filters, self._subscription.retained)
        before, self._queue = self._queue, link.queue
        if before is not None:
            self._resume(kept=before is link.queue)
        self._wake()
        return link

    def _resume(self, *, kept: bool) -> None:
        left = self._tracker.begin()
        if kept:
            self._remember(left)
        else:
            self._earlier.clear()
        self._receiver.resume(redelivered=kept)

    def _remember(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._earlier[delivery.token] = delivery
        # Messages that another member of a shared group took over never come back here.
        while len(self._earlier) > 2 * self._subscription.window:
            del self._earlier[next(iter(self._earlier))]

    def _lost(self) -> None:
        self._receiver.hold()

    def _received(self, envelope: Envelope, token: int) -> None:
        envelope = as_taken(envelope, self._max_received, self._wire)
        if token < 0:
            if self._intake:
                self._receiver.deliver(Delivery(envelope))
            return
        earlier = self._earlier.pop(token, None) if self._earlier else None
        running = earlier is not None and earlier.state in (
            DeliveryState.RUNNING,
            DeliveryState.SETTLED,
        )
        if not running and not self._intake:
            return
        delivery = self._tracker.register(envelope, token, len(envelope.payload))
        self._look_for_room()
        if earlier is None:
            self._receiver.deliver(delivery)
        elif running:
            earlier.replaced_by(delivery)
        else:
            delivery.attempts = earlier.attempts
            self._receiver.deliver(delivery)

    def _look_for_room(self) -> None:
        tracker = self._tracker
        if len(tracker) >= self._window or tracker.size >= self._window_bytes:
            tracker.fill()
        else:
            tracker.full = False

    def _release(self, free: list[Delivery]) -> None:
        link = self._connection.link
        if link is None:
            self._remember(free)
            return
        for delivery in free:
            link.acknowledge(delivery.token)
        self._look_for_room()
