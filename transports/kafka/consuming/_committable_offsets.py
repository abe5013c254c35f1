"""Committable offsets: up to where each partition is settled, whatever the order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiokafka.structs import TopicPartition

from ..._delivery import Delivery, DeliveryState, Tracker
from ..._envelope import Envelope, LeftOut

if TYPE_CHECKING:
    from ._assignment import Assignment

__all__ = ["CountingTracker", "PartitionTracker", "SizeTracker"]

_NOTHING = Envelope(topic="-")
_SETTLED = DeliveryState.SETTLED
# Deliveries of up to this size in bytes, including headers, are not worth trimming.
_SMALL = 256


class PartitionTracker(Tracker):
    """The deliveries of one partition in one assignment, in order.

    Attributes:
        first: the offset of the first record; -1 before there is one.
        commit_at: the offset to commit: everything before it is settled; -1 if nothing is.
        committed: the one that the cluster has confirmed; -1 if none.
        last: the last delivery before ``commit_at``.
        paused: whether it is full.
    """

    def __init__(
        self,
        assignment: Assignment,
        partition: TopicPartition,
        on_room: Callable[[TopicPartition], None] = lambda partition: None,
    ) -> None:
        super().__init__(lambda free: None)
        self.epoch = assignment.epoch
        self.partition = partition
        self.first = -1
        self.commit_at = -1
        self.committed = -1
        self.last: Delivery | None = None
        self.paused = False
        self.resume_at = 0
        self._assignment = assignment
        self._on_room = on_room

    @property
    def slots(self) -> deque[Delivery]:
        """The slots that are not released yet, oldest first; to be appended to."""
        return self._slots

    def arrived(self, until: int) -> None:
        """Note that everything before an offset is being handed out."""

    def holds(self, records: int) -> bool:
        """Return whether more than so many records are here that cannot be committed yet."""
        return len(self._slots) > records

    @property
    def waits(self) -> bool:
        """Whether nothing of it may be handed out yet."""
        return False

    @property
    def oldest(self) -> int:
        """The offset that keeps everything after it from being committed."""
        return self._slots[0].token

    def skip(self, offset: int) -> None:
        """Skip a record that is not handed out; call `advance` when the batch is complete."""
        delivery = Delivery(_NOTHING, epoch=self.epoch, token=offset)
        delivery.settle()
        self._slots.append(delivery)

    def pass_to(self, position: int) -> bool:
        """Note that nothing before this offset is left to settle; return whether that is news.

        The partition has been read up to there: control records and aborted records are read but
        never handed out.
        """
        if self._slots or position <= max(self.commit_at, self.committed, 0):
            return False
        self.commit_at = position
        return True

    def advance(self) -> None:
        """Release what is settled at the front."""
        slots = self._slots
        count = 0
        while slots and slots[0].state is _SETTLED:
            self.last = slots.popleft()
            count += 1
        if count:
            self._released(count)

    def acknowledges(self, delivery: Delivery) -> bool:
        """As in `Tracker`: once an offset behind it is committed."""
        return delivery.token < self.committed

    def settled(self, delivery: Delivery) -> None:
        assignment = self._assignment
        assignment.unsettled = unsettled = assignment.unsettled - 1
        assignment.size -= delivery.size
        slots = self._slots
        if slots and slots[0] is delivery:
            slots.popleft()
            count = 1
            while slots and slots[0].state is _SETTLED:
                delivery = slots.popleft()
                count += 1
            self.last = delivery
            self.commit_at = delivery.token + 1
            assignment.released = released = assignment.released + count
            if released >= assignment.notify_at:
                assignment.on_release()
            if self.paused:
                self._make_room()
        elif delivery.size > _SMALL:
            delivery.envelope = _forgotten(delivery.envelope)
        if unsettled <= assignment.wake_at and assignment.size <= assignment.wake_at_size:
            assignment.wake()

    def _released(self, count: int) -> None:
        assert self.last is not None
        self.commit_at = self.last.token + 1
        assignment = self._assignment
        assignment.released += count
        if assignment.released >= assignment.notify_at:
            assignment.on_release()
        self._make_room()

    def _make_room(self) -> None:
        if self.paused and not self.holds(self.resume_at):
            self.paused = False
            self._on_room(self.partition)


class CountingTracker(PartitionTracker):
    """Only counts, for partitions that are never committed."""

    def __init__(self, assignment: Assignment, partition: TopicPartition) -> None:
        super().__init__(assignment, partition)
        self._slots = deque(maxlen=0)

    def skip(self, offset: int) -> None:
        """Do nothing: nothing waits for the record."""

    def advance(self) -> None:
        """Do nothing: nothing is kept."""

    def settled(self, delivery: Delivery) -> None:
        assignment = self._assignment
        assignment.unsettled = unsettled = assignment.unsettled - 1
        assignment.size -= delivery.size
        if unsettled <= assignment.wake_at and assignment.size <= assignment.wake_at_size:
            assignment.wake()


class SizeTracker(Tracker):
    """Counts the bytes of deliveries that are never committed.

    Args:
        assignment: the assignment with which they came.
    """

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(lambda free: None)
        self._assignment = assignment

    def settled(self, delivery: Delivery) -> None:
        assignment = self._assignment
        assignment.size -= delivery.size
        if assignment.unsettled <= assignment.wake_at and (
            assignment.size <= assignment.wake_at_size
        ):
            assignment.wake()


def _forgotten(envelope: Envelope) -> Envelope:
    """Return what is kept of a message that is settled while one before it is not."""
    payload, left_out = envelope.payload, envelope.left_out
    if left_out is None and len(payload) > _SMALL:
        payload, left_out = b"", LeftOut(len(payload), "")
    return Envelope(
        topic=envelope.topic,
        payload=payload,
        id=envelope.id,
        time=envelope.time,
        partition=envelope.partition,
        offset=envelope.offset,
        left_out=left_out,
    )
