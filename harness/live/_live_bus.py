"""Real buses in a test, and what is under way on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ...errors import TransportError
from ...transports import (
    Bus,
    Consumer,
    Envelope,
    Receiver,
    SocketProvider,
    Subscription,
    Surroundings,
    Tracker,
)
from ...transports._delegating_bus import DelegatingBus
from ...transports._units import Outcome
from ..simulated._harness_bus import HarnessBus
from ..simulated._stand_ins import StandInProvider
from ._arrivals import Arrivals, TrackedSubscription, WatchedReceiver
from ._real_brokers import Redirect

__all__ = ["LiveBus", "LiveProvider", "PublishedMessage"]


class PublishedMessage:
    """A message that was published.

    Attributes:
        envelope: the message.
        taken: whether the broker has confirmed it.
    """

    __slots__ = ("envelope", "taken")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.taken = False


class PublishObserver(Protocol):
    """What a bus tells about publishes."""

    def publishing(self, envelope: Envelope) -> PublishedMessage:
        """Note a message that is on its way."""

    def note(self, envelope: Envelope) -> None:
        """Note a message that the broker has accepted."""

    def refused(self, envelope: Envelope, error: BaseException) -> None:
        """Note a message from outside that could not be published."""


class LiveBus(HarnessBus):
    """A real bus in place of one of the applications' buses.

    Args:
        real: makes providers that lead to the real bus.
        observing: told what is published.
    """

    def __init__(self, real: Redirect, observing: PublishObserver) -> None:
        self.real = real
        self.observing = observing
        self.arrivals = Arrivals()
        self.parked: dict[str, Envelope] = {}
        self._buses: list[_WatchedBus] = []
        self._first: _WatchedBus | None = None

    def open(self, original: SocketProvider, surroundings: Surroundings) -> Bus:
        """See `HarnessBus.open`."""
        bus = _WatchedBus(self, self.real(original).open(surroundings), surroundings)
        # The test's own bus, which is opened before those of the applications.
        self._first = self._first or bus
        self._buses.append(bus)
        return bus

    def inject(self, envelope: Envelope) -> None:
        """See `HarnessBus.inject`."""
        assert self._first is not None
        try:
            posted = self._first.post(envelope)
        except TransportError as error:
            self.observing.refused(envelope, error)
            return
        posted.add_done_callback(lambda done: self._injected(envelope, done))

    def _injected(self, envelope: Envelope, posted: asyncio.Future[None]) -> None:
        error = None if posted.cancelled() else posted.exception()
        if error is not None:
            self.observing.refused(envelope, error)

    def under_way(self) -> str | None:
        """See `HarnessBus.under_way`."""
        self._buses = [bus for bus in self._buses if not bus.closed]
        for bus in self._buses:
            what = bus.under_way()
            if what is not None:
                return what
        return self.arrivals.under_way()

    def letters(self) -> list[Envelope]:
        """See `HarnessBus.letters`."""
        return list(self.parked.values())

    def kill(self, owner: object) -> None:
        """See `HarnessBus.kill`; connections of a real bus end when they are closed."""


class LiveProvider(StandInProvider):
    """Stands in for a provider: its address and rules, with the defaults of the real bus.

    Args:
        original: the provider that it stands in for.
        bus: where it leads.
    """

    def __init__(self, original: SocketProvider, bus: LiveBus) -> None:
        super().__init__(original, bus)
        self._real = bus.real(original)
        self.default_deliver = self._real.default_deliver
        self.keeps_history = original.keeps_history and self._real.keeps_history
        self.has_transactions = original.has_transactions and self._real.has_transactions
        self.default_qos = self._real.default_qos
        self.default_window = self._real.default_window
        self.default_window_bytes = self._real.default_window_bytes

    def check_topic(self, topic: str) -> None:
        super().check_topic(topic)
        self._real.check_topic(topic)

    def check_filter(self, pattern: str) -> None:
        super().check_filter(pattern)
        self._real.check_filter(pattern)

    def check_message(self, envelope: Envelope) -> None:
        super().check_message(envelope)
        self._real.check_message(envelope)


class _WatchedBus(DelegatingBus):
    """The bus of one application, and what it has under way there."""

    def __init__(self, live: LiveBus, bus: Bus, surroundings: Surroundings) -> None:
        super().__init__(bus)
        identity = surroundings.identity
        self._name = f"{identity.application}.{identity.instance}"
        self._live = live
        self._surroundings = surroundings
        self._pending = 0
        self._started = False
        self.closed = False

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        await self._bus.start(on_reply)
        self._started = True

    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        tracked = self._live.arrivals.tracked(self._surroundings.identity, subscription)
        watched = WatchedReceiver(receiver, tracked)
        return _WatchedConsumer(self._bus.consumer(subscription, watched), subscription, tracked)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        posted = self._bus.post(envelope)
        published = self._begin(envelope)
        posted.add_done_callback(lambda done: self._end(published, _is_confirmed(done)))
        return posted

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        published, confirmed = self._begin(envelope), False
        try:
            await self._bus.publish(envelope, timeout=timeout)
            confirmed = True
        finally:
            self._end(published, confirmed)

    def add_removal(self, outcome: Outcome, letter: Envelope) -> None:
        self._bus.add_removal(outcome, letter)

    def add_output(self, outcome: Outcome, envelope: Envelope, *, letter: bool = False) -> None:
        self._bus.add_output(outcome, envelope, letter=letter)
        if letter:
            self._pending += 1
            outcome.committed += (partial(self._parked, envelope),)
            return
        published = self._begin(envelope)
        outcome.committed += (partial(self._end, published, True),)
        outcome.dropped += (partial(self._end, published, False),)

    def _parked(self, envelope: Envelope) -> None:
        self._pending -= 1
        self._live.parked[envelope.id or f"letter {len(self._live.parked)}"] = envelope

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        self._pending += 1
        try:
            await self._bus.park(envelope, timeout=timeout)
        finally:
            self._pending -= 1
        self._live.parked[envelope.id or f"letter {len(self._live.parked)}"] = envelope

    async def unpark(self, letter: Envelope, *, timeout: float) -> None:
        await self._bus.unpark(letter, timeout=timeout)
        self._live.parked.pop(letter.id or "", None)

    def _begin(self, envelope: Envelope) -> PublishedMessage:
        self._pending += 1
        self._live.arrivals.expect(envelope)
        return self._live.observing.publishing(envelope)

    def _end(self, published: PublishedMessage, confirmed: bool) -> None:
        self._pending -= 1
        if confirmed:
            published.taken = True
            self._live.observing.note(published.envelope)
        else:
            self._live.arrivals.not_published(published.envelope)

    async def close(self) -> None:
        self.closed = True
        await self._bus.close()

    def under_way(self) -> str | None:
        """Describe what is unfinished; None if nothing is."""
        if self._pending:
            return f"{self._name}: {self._pending} publishes are not confirmed"
        if self._started and not self._bus.connected:
            return f"{self._name}: it is to reconnect"
        return None


class _WatchedConsumer(Consumer):
    """The consumer of a subscription, and what is to arrive for it."""

    def __init__(
        self, consumer: Consumer, subscription: Subscription, tracked: TrackedSubscription
    ) -> None:
        self._consumer = consumer
        self._filters = subscription.filters
        self._shared = subscription.share
        self._tracked = tracked
        self._active = False

    @property
    def trouble(self) -> str | None:
        return self._consumer.trouble

    @property
    def trackers(self) -> Sequence[Tracker]:
        return self._consumer.trackers

    @property
    def lag(self) -> int | None:
        return self._consumer.lag

    async def start(self) -> None:
        await self._consumer.start()
        self._active = True
        self._tracked.active += 1
        self._tracked.away = max(self._tracked.away - 1, 0)
        for pattern in self._filters:
            self._tracked.add(pattern)

    async def add_filter(self, pattern: str) -> None:
        await self._consumer.add_filter(pattern)
        self._tracked.add(pattern)

    async def remove_filter(self, pattern: str) -> None:
        self._tracked.discard(pattern)
        await self._consumer.remove_filter(pattern)

    def discard_stale(self, topic: str) -> None:
        self._consumer.discard_stale(topic)

    def stop_intake(self) -> None:
        self._consumer.stop_intake()

    async def close(self) -> None:
        self._end()
        await self._consumer.close()

    async def close_within(self, seconds: float) -> None:
        self._end()
        await self._consumer.close_within(seconds)

    def _end(self) -> None:
        if self._active:
            self._active = False
            self._tracked.active -= 1
            if self._shared and self._tracked.durable:
                self._tracked.away += 1
            if not self._tracked.active and not self._tracked.durable:
                self._tracked.forget()


def _is_confirmed(posted: asyncio.Future[None]) -> bool:
    return not posted.cancelled() and posted.exception() is None
