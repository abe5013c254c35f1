"""What is on both sides of a router, doing what a test says and when it says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from spa_dat.actors import Mailbox, Overflow
from spa_dat.runtime.routing._routed_deliveries import RoutedDelivery
from spa_dat.runtime.routing._router import Router
from spa_dat.transports import Delivery, DeliveryState, Envelope, Tracker

__all__ = ["Session", "Worker"]

CAPACITY = 3
_GOING_ON = (DeliveryState.RUNNING, DeliveryState.SETTLED)


class Worker:
    """An actor as its router sees it; the machine says when it does what."""

    def __init__(self, *topics: str) -> None:
        self.actor_name = f"of {' and '.join(topics)}"
        self.mailbox = Mailbox(CAPACITY)
        self.options: Any = SimpleNamespace(overflow=Overflow.REFUSE)
        self.topics = topics
        self.present = True
        self.running: RoutedDelivery | None = None
        self.interrupted = False
        self.finished: list[int] = []
        self.finished_qos0: list[int] = []
        self.dropped_qos0 = 0

    def interrupt(self, router: Router) -> None:
        self.interrupted = self.running is not None

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        return False

    def dropped(self, item: RoutedDelivery) -> None:
        self.dropped_qos0 += 1
        item.settle()

    def start_next(self) -> RoutedDelivery | None:
        """Claim what is next; what must not be started is passed over."""
        while self.running is None and len(self.mailbox):
            delivery: RoutedDelivery = self.mailbox.get_nowait()
            if delivery.start():
                self.running = delivery
        return self.running

    def done(self) -> None:
        assert self.running is not None
        delivery, self.running = self.running, None
        to = self.finished if delivery.token >= 0 else self.finished_qos0
        to.append(int(delivery.envelope.payload))
        delivery.settle()


class Session:
    """A broker's session and the consumer in front of it: numbers are tokens, too."""

    def __init__(self, receiver: Router) -> None:
        self.receiver = receiver
        self.tracker = Tracker(self.release)
        self.connected = True
        self.waiting: list[Envelope] = []
        self.in_flight: dict[int, Envelope] = {}
        self.acknowledged: list[int] = []
        self.lost: list[int] = []
        self.gone: list[int] = []
        self.sent: set[int] = set()
        self.earlier: dict[int, Delivery] = {}
        self.stopped = False

    @property
    def trackers(self) -> tuple[Tracker, ...]:
        return (self.tracker,)

    def send(self, count: int, *, together: bool) -> None:
        """Let the next messages arrive."""
        arriving, self.waiting = self.waiting[:count], self.waiting[count:]
        fresh: list[Delivery] = []
        for envelope in arriving:
            number = _number(envelope)
            self.sent.add(number)
            self.in_flight[number] = envelope
            earlier = self.earlier.pop(number, None)
            going_on = earlier is not None and earlier.state in _GOING_ON
            if self.stopped and not going_on:
                continue
            delivery = self.tracker.register(envelope, number)
            if earlier is not None and going_on:
                earlier.replaced_by(delivery)
                continue
            fresh.append(delivery)
        if together and fresh:
            self.receiver.deliver_all(fresh)
        else:
            for delivery in fresh:
                self.receiver.deliver(delivery)

    def release(self, free: list[Delivery]) -> None:
        for delivery in free:
            if self.connected:
                self.acknowledged.append(delivery.token)
                del self.in_flight[delivery.token]
            else:
                self.earlier[delivery.token] = delivery

    def cut(self) -> None:
        self.connected = False
        self.receiver.hold()

    def come_back(self, *, kept: bool) -> None:
        self.connected = True
        left = self.tracker.begin()
        if kept:
            self.waiting[:0] = self.in_flight.values()
            self.earlier.update({delivery.token: delivery for delivery in left})
        else:
            # The session is lost: what the consumer has is the last copy, but for what it had
            # given back to the bus when it stopped.
            if not self.stopped:
                self.lost += self.in_flight
            # What it was to send again is gone.
            self.gone += [number for number in map(_number, self.waiting) if number in self.sent]
            self.waiting = [e for e in self.waiting if _number(e) not in self.sent]
            self.earlier.clear()
        self.in_flight = {}
        self.receiver.resume(redelivered=kept)

    def stop_intake(self) -> None:
        self.stopped = True

    def discard_stale(self, topic: str) -> None:
        """No filter is left over here but those of workers that have left."""


def _number(envelope: Envelope) -> int:
    return int(envelope.payload)
