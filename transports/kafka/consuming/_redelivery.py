"""Redelivery: recognising what earlier assignments handed out of a partition."""

from __future__ import annotations

from ..._delivery import Delivery, DeliveryState
from ..._envelope import Envelope
from ._committable_offsets import PartitionTracker

__all__ = ["EarlierDeliveries"]


class EarlierDeliveries:
    """Recognises the records of one partition that were handed out before.

    Args:
        tracker: what the last assignment handed out.
        before: what is known from assignments before that one.

    Attributes:
        left: deliveries that were not committed, by offset.
        done: the offsets of records that were settled but not committed.
        done_until: the timestamp of the last of these.
    """

    def __init__(self, tracker: PartitionTracker, before: EarlierDeliveries | None) -> None:
        self.left: dict[int, Delivery] = {} if before is None else before.left
        for delivery in tracker.unreleased():
            # What the record is can no longer be told, only that it is dealt with.
            self.left[delivery.token] = delivery
        self.done, self.done_until = range(0), 0.0
        if before is not None:
            self.done, self.done_until = before.done, before.done_until
        if tracker.last is not None and tracker.commit_at > tracker.committed:
            self._add_done(range(tracker.first, tracker.commit_at), _time(tracker.last.envelope))
        self._end = max(self.done.stop, *(offset + 1 for offset in self.left), 0)

    def _add_done(self, done: range, until: float) -> None:
        earlier = self.done
        if earlier and done.start <= earlier.stop and earlier.start <= done.stop:
            until = max(until, self.done_until)
            done = range(min(done.start, earlier.start), max(done.stop, earlier.stop))
        self.done, self.done_until = done, until

    def keep_running(self) -> bool:
        """Forget everything except what still runs here: another member has the partition now."""
        running = DeliveryState.RUNNING
        self.left = {o: delivery for o, delivery in self.left.items() if delivery.state is running}
        self.done = range(0)
        return bool(self.left)

    def is_over(self, offset: int) -> bool:
        """Return whether nothing from this offset on was handed out before."""
        return offset >= self._end

    def resolve(self, delivery: Delivery) -> bool:
        """Return whether a record that came again is dealt with, so nobody else must get it.

        If a handler is still working on it, its result counts for this receipt too. If it has not
        been started, it is to be handed out, with the attempts counted so far.
        """
        earlier = self.left.pop(delivery.token, None)
        if earlier is None:
            # Not of a topic that was deleted and recreated: its records are younger.
            if delivery.token in self.done and _time(delivery.envelope) <= self.done_until:
                delivery.settle()
                return True
            return False
        if not _same(earlier.envelope, delivery.envelope):
            return False
        if earlier.state in (DeliveryState.RUNNING, DeliveryState.SETTLED):
            earlier.replaced_by(delivery)
            return True
        delivery.attempts = earlier.attempts
        earlier.withdraw()
        return False


def _time(envelope: Envelope) -> float:
    return envelope.time or 0.0


def _same(one: Envelope, other: Envelope) -> bool:
    return (
        one.time == other.time
        and one.id == other.id
        and (one.payload == other.payload or one.left_out is not None)
        and _size(one) == _size(other)
    )


def _size(envelope: Envelope) -> int:
    return len(envelope.payload) if envelope.left_out is None else envelope.left_out.size
