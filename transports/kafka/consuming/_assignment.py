"""An assignment: the partitions of a consumer, until they are taken away, and what is unsettled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiokafka.structs import TopicPartition

from ..._delivery import Delivery, DeliveryState
from ._committable_offsets import PartitionTracker
from ._leader_epochs import LeaderEpochs

__all__ = ["Assignment"]

_UNLIMITED = 2**63


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
        hurried: whether somebody waits for the next commit.
        trackers: by partition.
        ended: whether it is over.
        open: whether its positions are known, so that something may be handed out.
        ids: of the topics, as far as they are known.
        rewound: the last time to which a partition was rewound, if it ever was, in milliseconds
            since 1970 (UTC).
        lost: the partitions that have less than was committed, and up to where they have it.
        again: the partitions that were rewound when they were assigned.
        epochs: what was read of which leaders.
        kept: the partitions that were not, because a tool or another program has set the offset.
    """

    def __init__(self, epoch: int, on_release: Callable[[], None] = lambda: None) -> None:
        self.epoch = epoch
        self.on_release = on_release
        self.unsettled = 0
        self.size = 0
        self.average = 0
        self.released = 0
        self.notify_at = 1
        self.hurried = False
        self.trackers: dict[TopicPartition, PartitionTracker] = {}
        self.ended = False
        self.open = True
        self.ids: dict[str, str] = {}
        self.rewound: dict[TopicPartition, int] = {}
        self.again: set[TopicPartition] = set()
        self.kept: set[TopicPartition] = set()
        self.lost: dict[TopicPartition, int] = {}
        self.epochs = LeaderEpochs()
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

    def hurry(self) -> None:
        """Have what is released next committed without a delay."""
        self.hurried = True
        self.notify_at = 0

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
