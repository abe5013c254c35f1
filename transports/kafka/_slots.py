"""What is handed out of an assignment of partitions, and how far it is settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiokafka.structs import TopicPartition

from .._delivery import Delivery, DeliveryState, Tracker
from .._envelope import Envelope

__all__ = ["Assignment", "CountingTracker", "PartitionTracker"]

_NOTHING = Envelope(topic="-")
_SETTLED = DeliveryState.SETTLED


class Assignment:
    """The partitions that were assigned together, from then until they are taken away.

    What is settled after it has ended changes nothing any more: whatever comes next has objects
    of its own.

    Args:
        epoch: its number.
        on_release: called when so many have become free to commit as ``notify_at`` says, and
            more than before; sets ``notify_at`` anew.

    Attributes:
        unsettled: deliveries handed out and not settled.
        released: deliveries that have become free to commit since ``released`` was set to 0.
        notify_at: see ``on_release``.
        trackers: by partition.
        ended: whether it is over.
    """

    def __init__(self, epoch: int, on_release: Callable[[], None] = lambda: None) -> None:
        self.epoch = epoch
        self.on_release = on_release
        self.unsettled = 0
        self.released = 0
        self.notify_at = 1
        self.trackers: dict[TopicPartition, PartitionTracker] = {}
        self.ended = False
        self.wake_at = -1
        self._changed = asyncio.Event()

    def end(self) -> None:
        """Nothing is handed out any more; who waits for room wakes."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Called when no more than ``wake_at`` deliveries are unsettled."""
        self.wake_at = -1
        self._changed.set()

    async def settled_down_to(self, unsettled: int, timeout: float) -> bool:
        """Wait until at most so many are unsettled; whether that is so.

        Returns early, with False, when the assignment ends or ``timeout`` seconds are over.
        """
        if self.unsettled > unsettled and not self.ended:
            await self._wait(unsettled, timeout)
        return self.unsettled <= unsettled

    async def finished(self, deliveries: list[Delivery], timeout: float, left: int = 0) -> None:
        """Wait until at most ``left`` of the deliveries still run, or for so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        running = DeliveryState.RUNNING
        while len(deliveries) > left and (patience := deadline - loop.time()) > 0:
            # One that is given back unsettled wakes nobody.
            await self._wait(self.unsettled - 1, min(patience, 0.05))
            deliveries = [delivery for delivery in deliveries if delivery.state is running]

    async def _wait(self, unsettled: int, timeout: float) -> None:
        self._changed.clear()
        self.wake_at = unsettled
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            self.wake_at = -1

    def running(self) -> list[Delivery]:
        """The deliveries that a handler works on."""
        return [
            delivery
            for tracker in self.trackers.values()
            for delivery in tracker.unreleased()
            if delivery.state is DeliveryState.RUNNING
        ]


class PartitionTracker(Tracker):
    """What came from one partition in one assignment, in order.

    Attributes:
        first: the offset of the first record; -1 before there was one.
        commit_at: the offset to commit: everything before it is settled; -1 when nothing is.
        committed: the one that the cluster has confirmed; -1 when none.
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
        """What is not released yet, oldest first; to be appended to."""
        return self._slots

    @property
    def oldest(self) -> int:
        """The offset that keeps everything behind it from being committed."""
        return self._slots[0].token

    def skip(self, offset: int) -> None:
        """A record that nobody gets; `advance` when the batch is complete."""
        delivery = Delivery(_NOTHING, epoch=self.epoch, token=offset)
        delivery.state = _SETTLED
        self._slots.append(delivery)

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
        if unsettled <= assignment.wake_at:
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
    """Only counts: for partitions of which nothing is committed."""

    def __init__(self, assignment: Assignment, partition: TopicPartition) -> None:
        super().__init__(assignment, partition)
        self._slots = deque(maxlen=0)

    def skip(self, offset: int) -> None:
        """Nothing waits for it."""

    def advance(self) -> None:
        """Nothing is kept."""

    def settled(self, delivery: Delivery) -> None:
        assignment = self._assignment
        assignment.unsettled = unsettled = assignment.unsettled - 1
        if unsettled <= assignment.wake_at:
            assignment.wake()
