"""Redelivery: what a broker sends again after a reconnect, and what happened to it before."""

from __future__ import annotations

from .._delivery import Delivery, DeliveryState
from .._envelope import Envelope

__all__ = ["Redelivery", "same_message"]

# Up to this size in bytes a message is remembered in full after it was acknowledged.
_SMALL = 1_024
# An acknowledged message; only a hash of a large one, which proves nothing.
_Trace = Envelope | int


def same_message(one: Envelope, other: Envelope) -> bool:
    """Return whether two receipts have the same content, apart from what differs by receipt."""
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
    """Recognises messages that come again, on the next connection and on the same one.

    After a reconnect a broker sends what was not acknowledged again with the same packet id,
    marked as a duplicate, before anything new. Only what matches in all of that and in its content
    is taken for the same message: packet ids are reused, and no message may be lost over that.
    What was acknowledged counts as done only if its id and its time are the same too, since
    senders may give all their messages the same id.

    Some brokers also send again on a live connection, which MQTT 5 forbids. A packet id is not free
    until it is acknowledged, so that is the same delivery. If the acknowledgement is in flight, the
    copy is skipped and not acknowledged: the packet id may already stand for another message.

    Args:
        window: how many acknowledgements, which may not have arrived, are remembered.
    """

    def __init__(self, window: int) -> None:
        self.active = False
        """Whether something may still come again."""
        self._left: dict[int, Delivery] = {}
        self._running: dict[Delivery, Delivery] = {}
        self._window = window
        # By packet id: what is not acknowledged and what is, on this connection, and what was
        # acknowledged on earlier ones.
        self._open: dict[int, Delivery] = {}
        self._written: dict[int, _Trace] = {}
        self._acknowledged: dict[int, _Trace] = {}

    def is_copy(self, envelope: Envelope, token: int, size: int) -> bool:
        """Return whether this has come on this connection before, and is to be skipped."""
        delivery = self._open.get(token)
        if delivery is not None:
            return same_message(delivery.envelope, envelope)
        if not envelope.redelivered:
            return False
        trace = self._written.get(token)
        if isinstance(trace, Envelope):
            return same_message(trace, envelope)
        return trace is not None and trace == _trace(envelope, size)

    def arrived(self, delivery: Delivery) -> None:
        """Remember a message that has arrived and is not a copy."""
        self._open[delivery.token] = delivery

    def connection_lost(self, left: list[Delivery]) -> None:
        """Note that the connection has ended; ``left`` was not acknowledged, oldest first."""
        if not self.active:
            self._left = {}
        for delivery in left:
            self._left[delivery.token] = self._running.get(delivery, delivery)
        self._running = {}
        for token, trace in self._written.items():
            self._remember(self._acknowledged, token, trace)
        self._written = {}
        self._open = {}
        self.active = True

    def acknowledged(self, deliveries: list[Delivery]) -> list[int]:
        """Return the packet ids to acknowledge now that these deliveries are released.

        If another message came under a packet id that had not been acknowledged, that id is
        acknowledged once, for the last one.
        """
        tokens = []
        for delivery in deliveries:
            token = delivery.token
            if self._open.get(token) is delivery:
                del self._open[token]
                tokens.append(token)
                self._remember(self._written, token, _trace(delivery.envelope, delivery.size))
        return tokens

    def _remember(self, memory: dict[int, _Trace], token: int, trace: _Trace) -> None:
        # One for each packet id: what is acknowledged again must not push out others.
        memory.pop(token, None)
        memory[token] = trace
        if len(memory) > self._window:
            del memory[next(iter(memory))]

    def over(self) -> None:
        """Forget what could come again: something new came, or the session is lost."""
        self.active = False
        self._left = {}
        self._acknowledged = {}

    def session_lost(self) -> None:
        """Forget the packet ids, which start over."""
        self.over()

    def resolve(self, delivery: Delivery) -> bool:
        """Return whether a message that came again is already dealt with, so must not be delivered.

        If its handler is still running, the handler's result also counts for it; so it does if the
        older receipt waits for a handler, where it has its place in the order. If it was handled
        and only the acknowledgement did not get through, it is settled. If the older receipt was
        taken back, it is to be delivered, with the attempts counted so far.
        """
        old = self._left.pop(delivery.token, None)
        if old is None:
            if self._is_done(delivery.envelope, self._acknowledged.get(delivery.token)):
                delivery.settle()
                return True
            return False
        if not same_message(old.envelope, delivery.envelope):
            return False
        if old.state is DeliveryState.SETTLED:
            delivery.settle()
            return True
        if old.state is not DeliveryState.WITHDRAWN:
            # The receiver kept those that are queued because they seemed to be the last copies.
            old.replaced_by(delivery)
            self._running[delivery] = old
            return True
        delivery.attempts = old.attempts
        return False

    @staticmethod
    def _is_done(envelope: Envelope, trace: _Trace | None) -> bool:
        # Otherwise two equal messages cannot be told apart, so it is delivered.
        is_unique = envelope.id is not None and envelope.time is not None
        return is_unique and isinstance(trace, Envelope) and same_message(trace, envelope)


def _trace(envelope: Envelope, size: int) -> _Trace:
    if size <= _SMALL:
        return envelope
    return hash((size, envelope.topic, envelope.id, envelope.time))
