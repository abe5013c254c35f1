"""Arrivals on a real bus: messages that were published and are not settled yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ...transports import (
    Delivery,
    DeliveryState,
    Envelope,
    Identity,
    Receiver,
    Subscription,
    TopicFilter,
    is_reserved,
)

__all__ = ["Arrivals", "TrackedSubscription", "WatchedReceiver"]

# Messages that the broker may drop are not waited for longer than they take on one machine.
_LONGEST_WITHOUT_PROMISE = 1.0


class _Awaited(NamedTuple):
    topic: str
    until: float | None


class TrackedSubscription:
    """What is to arrive for one subscription, or for all instances that share it.

    Attributes:
        name: the name of the subscription, with that of its application.
        active: how many of its consumers are started.
        away: how many others share it and were stopped, for which a broker may keep messages.
    """

    def __init__(self, name: str, *, durable: bool, qos: int) -> None:
        self.name = name
        self.durable = durable
        self.active = 0
        self.away = 0
        self._qos = qos
        self._filters: dict[str, TopicFilter] = {}
        self._awaited: dict[str, list[_Awaited]] = {}
        self._arrived: dict[str, Delivery] = {}

    def add(self, pattern: str) -> None:
        """Add a filter that is in force now."""
        self._filters[pattern] = TopicFilter.parse(pattern)

    def discard(self, pattern: str) -> None:
        """Remove a filter that is no longer in force."""
        self._filters.pop(pattern, None)

    def forget(self) -> None:
        """Forget what is to arrive: the bus keeps nothing for it any more."""
        self._awaited.clear()
        self._arrived.clear()

    def expect(self, envelope: Envelope, now: float) -> None:
        """Expect a message that is on its way to the broker, if a filter matches."""
        if (not self.active and not self.durable) or envelope.id is None:
            return
        if not any(filter_.matches(envelope.topic) for filter_ in self._filters.values()):
            return
        until = None if envelope.expiry is None else now + envelope.expiry
        if min(self._qos, envelope.qos) == 0:
            until = min(now + _LONGEST_WITHOUT_PROMISE, until or float("inf"))
        self._awaited.setdefault(envelope.id, []).append(_Awaited(envelope.topic, until))

    def not_published(self, envelope: Envelope) -> None:
        """Expect a message no longer: the broker has not accepted it."""
        if envelope.id is not None:
            self._less(envelope.id)

    def arrived(self, delivery: Delivery) -> None:
        """Note that a message has arrived."""
        envelope = delivery.envelope.original or delivery.envelope
        identifier = envelope.id or f"delivery {id(delivery)}"
        self._less(identifier)
        self._arrived[identifier] = delivery

    def _less(self, identifier: str) -> None:
        awaited = self._awaited.get(identifier)
        if awaited is not None:
            awaited.pop()
            if not awaited:
                del self._awaited[identifier]

    @property
    def _perhaps(self) -> str:
        if not self.away:
            return ""
        return (
            f": the broker may keep it for one of the instances that are stopped ({self.away}) and"
            " share its messages; restart() them first"
        )

    def under_way(self, now: float) -> str | None:
        """Describe what has not arrived, or is not settled; None if everything is."""
        if not self.active:
            return None
        for identifier, delivery in list(self._arrived.items()):
            topic = delivery.envelope.topic
            if delivery.state is DeliveryState.SETTLED:
                del self._arrived[identifier]
            elif delivery.state is DeliveryState.WITHDRAWN:
                return f"{self.name}: a message on {topic!r} is to come again"
            else:
                return f"{self.name}: a message on {topic!r} is not settled"
        for identifier, awaited in list(self._awaited.items()):
            left = [one for one in awaited if one.until is None or one.until > now]
            if left:
                return f"{self.name}: a message on {left[0].topic!r} has not arrived{self._perhaps}"
            del self._awaited[identifier]
        return None


class Arrivals:
    """The subscriptions of one bus, and what is to arrive for them."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, TrackedSubscription] = {}

    def tracked(self, identity: Identity, subscription: Subscription) -> TrackedSubscription:
        """Return the tracked form of a subscription, one for all instances that share it."""
        parts = [identity.application, identity.instance, subscription.name]
        if subscription.share:
            del parts[1]
        name = "/".join(parts)
        found = self._subscriptions.get(name)
        if found is None:
            found = self._subscriptions[name] = TrackedSubscription(
                name, durable=subscription.durable, qos=subscription.qos
            )
        return found

    def expect(self, envelope: Envelope) -> None:
        """Expect a message that is being published."""
        if not is_reserved(envelope.topic):
            now = asyncio.get_running_loop().time()
            for subscription in self._subscriptions.values():
                subscription.expect(envelope, now)

    def not_published(self, envelope: Envelope) -> None:
        """Expect a message no longer: it was refused, or given up."""
        for subscription in self._subscriptions.values():
            subscription.not_published(envelope)

    def under_way(self) -> str | None:
        """Describe what has not arrived, or is not settled; None if everything is."""
        now = asyncio.get_running_loop().time()
        for subscription in self._subscriptions.values():
            what = subscription.under_way(now)
            if what is not None:
                return what
        return None


class WatchedReceiver:
    """Notes what arrives, and passes it on.

    Args:
        receiver: where to pass it on.
        subscription: what it arrives for.
    """

    def __init__(self, receiver: Receiver, subscription: TrackedSubscription) -> None:
        self._receiver = receiver
        self._subscription = subscription
        self.hold = receiver.hold
        self.resume = receiver.resume

    def deliver(self, delivery: Delivery, /) -> None:
        self._subscription.arrived(delivery)
        self._receiver.deliver(delivery)

    def deliver_all(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            self._subscription.arrived(delivery)
        self._receiver.deliver_all(deliveries)
