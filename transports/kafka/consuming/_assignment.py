"""An assignment and its partitions: what was handed out of them, and how far it is settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiokafka.structs import TopicPartition

from ..._delivery import Delivery, DeliveryState, Tracker
from ..._envelope import Envelope, LeftOut

__all__ = ["Assignment", "CountingTracker", "PartitionTracker", "SizeTracker"]

_NOTHING = Envelope(topic="-")
_SETTLED = DeliveryState.SETTLED
_UNLIMITED = 2**63
# Deliveries of up to this size in bytes, including headers, are not worth trimming.
_SMALL = 256


class Assignment:
    """The partitions that were assigned together, until they are revoked.

    Settling after it has ended no longer changes anything: the next assignment has its own
    objects.

    Args:
        epoch: its number.
        on_release: called when the number that can be committed has reached ``notify_at``, and is
            higher than before; sets ``notify_at`` again.

    Attributes:
        unsettled: the number of deliveries handed out and not settled.
        size: their size in bytes.
        average: bytes per record of what was handed out last, or more; 0 if nothing was.
        released: the number of deliveries that can be committed since this was set to 0.
        notify_at: see ``on_release``.
        trackers: by partition.
        ended: whether it is over.
        open: whether its positions are known, so that something may be handed out.
        ids: of the topics, as far as they are known.
    """

    def __init__(self, epoch: int, on_release: Callable[[], None] = lambda: None) -> None:
        self.epoch = epoch
        self.on_release = on_release
        self.unsettled = 0
        self.size = 0
        self.average = 0
        self.released = 0
        self.notify_at = 1
        self.trackers: dict[TopicPartition, PartitionTracker] = {}
        self.ended = False
        self.open = True
        self.ids: dict[str, str] = {}
        self.wake_at = -1
        self.wake_at_size = _UNLIMITED
        self._changed = asyncio.Event()

    def untouched(self, topic: str) -> bool:
        """Return whether nothing was ever handed out of the topic."""
        return all(
            tracker.first < 0 and tracker.committed < 0
            for place, tracker in self.trackers.items()
            if place.topic == topic
        )

    def end(self) -> None:
        """Stop handing out, and wake whoever is waiting for room."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Wake whoever waits for room; called once ``wake_at`` and ``wake_at_size`` are reached."""
        self.wake_at = -1
        self._changed.set()

    async def settled_down_to(self, unsettled: int, timeout: float, size: int = _UNLIMITED) -> bool:
        """Wait until at most that many deliveries and bytes are unsettled; return whether they are.

        Returns False early when the assignment ends or after ``timeout`` seconds.
        """
        if (self.unsettled > unsettled or self.size > size) and not self.ended:
            await self._wait(unsettled, timeout, size)
        return self.unsettled <= unsettled and self.size <= size

    async def finished(self, deliveries: list[Delivery], timeout: float, left: int = 0) -> None:
        """Wait until at most ``left`` of the deliveries are still running, or the time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        running = DeliveryState.RUNNING
        while len(deliveries) > left and (patience := deadline - loop.time()) > 0:
            # One that is given back unsettled wakes nobody.
            await self._wait(self.unsettled - 1, min(patience, 0.05))
            deliveries = [delivery for delivery in deliveries if delivery.state is running]

    async def _wait(self, unsettled: int, timeout: float, size: int = _UNLIMITED) -> None:
        self._changed.clear()
        self.wake_at = unsettled
        self.wake_at_size = size
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            self.wake_at = -1

    def running(self) -> list[Delivery]:
        """Return the deliveries that a handler is working on."""
        return [
            delivery
            for tracker in self.trackers.values()
            for delivery in tracker.unreleased()
            if delivery.state is DeliveryState.RUNNING
        ]


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
            if self.paused and len(slots) <= self.resume_at:
                self.paused = False
                self._on_room(self.partition)
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
        if self.paused and len(self._slots) <= self.resume_at:
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
