"""A receiver that remembers what it received."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..._environment import Environment
from ...transports import Consumer, Delivery, DeliveryState, Envelope, Identity, Subscription
from .._eventually import eventually

__all__ = ["Inbox", "numbered"]


def numbered(topic: str, count: int, **fields: Any) -> list[Envelope]:
    """Return messages on one topic whose payloads and ids are their numbers, with the time.

    To recognise what comes again, a transport may require that both id and time are equal.

    Args:
        topic: the topic of all of them.
        count: how many.
        fields: further fields of `Envelope`.
    """
    fields.setdefault("time", round(Environment().now(), 3))
    return [
        Envelope(topic=topic, payload=str(number).encode(), id=f"id-{number}", **fields)
        for number in range(count)
    ]


class Inbox:
    """A receiver that keeps what arrives, and treats it as the runtime would.

    Args:
        settle: start and settle each delivery at once.

    Attributes:
        deliveries: everything that has arrived, in order.
        events: ``hold``, and ``resume, redelivered`` or ``resume, last copies``, in order.
        on_delivery: called with each delivery, before it is settled.
        consumer: the consumer that it belongs to.
        subscription: the subscription of that consumer.
        identity: the identity of its application.
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
        """See `Receiver.deliver`."""
        self.deliveries.append(delivery)
        if self.on_delivery is not None:
            self.on_delivery(delivery)
        if self._settle and delivery.start():
            delivery.settle()

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        """See `Receiver.deliver_all`."""
        for delivery in deliveries:
            self.deliver(delivery)

    def hold(self) -> None:
        """See `Receiver.hold`."""
        self.events.append("hold")

    def resume(self, *, redelivered: bool) -> None:
        """See `Receiver.resume`."""
        self.events.append("resume, redelivered" if redelivered else "resume, last copies")
        if redelivered:
            for delivery in self.deliveries:
                if delivery.state is DeliveryState.QUEUED:
                    delivery.withdraw()

    @property
    def payloads(self) -> list[str]:
        """The payloads of everything that has arrived."""
        return [delivery.envelope.payload.decode() for delivery in self.deliveries]

    async def get(self, count: int, timeout: float = 60.0) -> list[Delivery]:
        """Wait until so many messages have arrived in total, for at most ``timeout`` seconds."""
        await eventually(lambda: len(self.deliveries) >= count, timeout)
        return self.deliveries

    async def has(self, payload: str, timeout: float = 60.0) -> None:
        """Wait until a message with this payload has arrived, for at most ``timeout`` seconds."""
        await eventually(lambda: payload in self.payloads, timeout)

    async def back(self, times: int = 1, since: int = 0) -> None:
        """Wait until it was resumed so many times, not counting the first ``since`` events."""
        await eventually(lambda: len(self.events) - since >= 2 * times, 60.0)
