"""Publishes on their way to one topic."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

from .._outbox import OutboxEntry
from ._keys import hash_of
from ._lane import Lane, LaneOwner
from ._records import Record

__all__ = ["Route"]


class Route:
    """What goes to one topic.

    Args:
        owner: the producer.
        name: of the topic.
        cluster: what the library knows of it.
        choice: where the partitions of records without key come from.
        stretch: bytes without key that go to one partition before the next is chosen.
    """

    def __init__(
        self, owner: LaneOwner, name: str, cluster: Any, choice: random.Random, stretch: int
    ) -> None:
        self.name = name
        self.lanes: list[Lane] = []
        self.unplaced: deque[OutboxEntry] = deque()
        self.finding: asyncio.Task[None] | None = None
        self.lost_at: float | None = None
        # Strangers name the topics of replies, as many as they like.
        self.creates = False
        self._owner = owner
        self._cluster = cluster
        self._choice = choice
        self._sticky: Lane | None = None
        self._stuck = 0
        self._most = stretch

    def write(self, entry: OutboxEntry, record: Record) -> None:
        """Put a publish in line for its partition."""
        lanes = self.lanes
        if not lanes:
            self.unplaced.append(entry)
        elif len(lanes) == 1:
            lanes[0].append(entry)
        elif record.key is not None:
            lanes[hash_of(record.key) % len(lanes)].append(entry)
        else:
            self._anywhere(record).append(entry)

    def _anywhere(self, record: Record) -> Lane:
        # Whole batches for one partition, and not a piece of each for all.
        self._stuck += len(record.value or b"")
        if self._sticky is None or self._stuck > self._most:
            others = [lane for lane in self.lanes if lane is not self._sticky]
            led = self._cluster.available_partitions_for_topic(self.name) or ()
            usable = [lane for lane in others if lane.partition in led]
            self._sticky = self._choice.choice(usable or others)
            self._stuck = 0
        return self._sticky

    def grow(self, count: int) -> None:
        """There are so many partitions."""
        known = len(self.lanes)
        self.lanes += [Lane(self._owner, self.name, number) for number in range(known, count)]
        unplaced, self.unplaced = self.unplaced, deque()
        for entry in unplaced:
            self.write(entry, entry.note)

    def start(self) -> None:
        """Send what waits."""
        for lane in self.lanes:
            lane.start()

    def on_batch(self, lane: Lane) -> None:
        """A batch of the lane is on its way."""
        if lane is self._sticky:
            self._sticky = None

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What is at work."""
        found: list[asyncio.Task[Any]] = [lane.task for lane in self.lanes if lane.task is not None]
        return found
