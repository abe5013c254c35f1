"""What a broker sends again after a reconnect, and what had become of it before."""

from __future__ import annotations

from .._delivery import Delivery, DeliveryState
from .._envelope import Envelope

__all__ = ["Redelivery", "same_message"]


def same_message(one: Envelope, other: Envelope) -> bool:
    """Whether two receipts carry the same content; what changes from receipt to receipt aside."""
    return (
        one.topic == other.topic
        and one.payload == other.payload
        and one.left_out == other.left_out
        and one.id == other.id
        and one.source == other.source
        and one.type == other.type
        and one.time == other.time
        and one.key == other.key
        and one.content_type == other.content_type
        and one.response_topic == other.response_topic
        and one.correlation == other.correlation
        and dict(one.headers) == dict(other.headers)
    )


class Redelivery:
    """Recognises the messages of the last connection when they come again on the next one.

    A broker sends what was not acknowledged again with the same packet id, marked as a duplicate,
    before anything new. Only what matches in all of that and in its content is taken for the same
    message: packet ids are used again, and a message must not be lost over it.

    Args:
        window: how many acknowledgements are remembered, which may not have arrived.
    """

    def __init__(self, window: int) -> None:
        self.active = False
        """Whether something may still come again."""
        self._left: dict[int, Delivery] = {}
        self._running: dict[Delivery, Delivery] = {}
        self._window = window
        self._written: dict[int, tuple[str, str]] = {}
        self._acknowledged: dict[int, tuple[str, str]] = {}

    def connection_lost(self, left: list[Delivery]) -> None:
        """The connection ended; ``left`` was not acknowledged, oldest first."""
        if not self.active:
            self._left = {}
        for delivery in left:
            self._left[delivery.token] = self._running.get(delivery, delivery)
        self._running = {}
        self._acknowledged = dict(self._written)
        self.active = True

    def acknowledged(self, deliveries: list[Delivery]) -> None:
        """Acknowledgements for these were written."""
        for delivery in deliveries:
            envelope = delivery.envelope
            # One for each packet id: what is acknowledged anew must not push out others.
            self._written.pop(delivery.token, None)
            if envelope.id is not None:
                self._written[delivery.token] = (envelope.id, envelope.topic)
        while len(self._written) > self._window:
            del self._written[next(iter(self._written))]

    def over(self) -> None:
        """Nothing comes again any more: something new came, or the session is lost."""
        self.active = False
        self._left = {}
        self._acknowledged = {}

    def session_lost(self) -> None:
        """Packet ids start anew."""
        self.over()
        self._written.clear()

    def resolve(self, delivery: Delivery) -> bool:
        """Whether a message that came again is dealt with and must not be delivered.

        If its handler still runs, the handler's result also counts for it. If it was handled and
        only the acknowledgement did not get through, it is settled. If no handler had it yet, it
        is to be delivered, with the attempts counted so far, in place of the older receipt.
        """
        old = self._left.pop(delivery.token, None)
        if old is None:
            envelope = delivery.envelope
            # Without an id two equal messages can not be told apart, so the message is delivered.
            if envelope.id is not None and self._acknowledged.get(delivery.token) == (
                envelope.id,
                envelope.topic,
            ):
                delivery.settle()
                return True
            return False
        if not same_message(old.envelope, delivery.envelope):
            return False
        if old.state is DeliveryState.SETTLED:
            delivery.settle()
            return True
        if old.state is DeliveryState.RUNNING:
            old.replaced_by(delivery)
            self._running[delivery] = old
            return True
        delivery.attempts = old.attempts
        old.withdraw()
        return False
