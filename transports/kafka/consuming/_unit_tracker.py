"""Partitions whose messages' outcomes are committed with their offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aiokafka.structs import TopicPartition

from ....errors import SpaDatError
from ..._delivery import Delivery
from ..._units import Outcome, Refused, Unit
from .._records import Record
from ..producing._transactions import Refusals
from ._assignment import Assignment
from ._committable_offsets import PartitionTracker
from ._snapshots import PartitionStates, key_bytes

__all__ = ["Due", "RefusedOutcomes", "UnitTracker", "records_of"]

# Bytes of outcomes that are not committed, from which on a commit does not wait, and nothing more
# is fetched of the partition.
_MANY_BYTES = 1_048_576
_MOST_BYTES = 16_777_216


class RefusedOutcomes:
    """Which outcomes of one partition's messages were refused, for when the messages come again.

    It outlives assignments.

    Attributes:
        apart_until: before this offset each record is sent in a batch of its own, to find out which
            one is refused.
    """

    def __init__(self) -> None:
        self.apart_until = 0
        self._known: dict[int, Refused] = {}

    def of(self, offset: int) -> Refused | None:
        """Return why the outcome of the message at an offset was refused, if it was."""
        return self._known.get(offset)

    def add(self, refusals: Refusals, offsets: list[int]) -> None:
        """Note what was refused.

        Args:
            refusals: by the places of records.
            offsets: by these places, the offset of the message that each record came of.
        """
        if not refusals.certain:
            self.apart_until = max(offsets[place] for place in refusals.errors) + 1
            return
        news: dict[int, SpaDatError] = {}
        for place, error in refusals.errors.items():
            news.setdefault(offsets[place], error)
        for offset, error in news.items():
            self._known[offset] = Refused(error, letter_too=offset in self._known)

    def forget_before(self, offset: int) -> None:
        """Forget what is committed."""
        if self._known:
            self._known = {at: why for at, why in self._known.items() if at >= offset}


class Due(NamedTuple):
    """What is to be committed next of a partition.

    Attributes:
        offset: the offset to commit.
        outcomes: by the offsets of their messages, in order.
        states: the last state of each key that has changed, and the offset of the message it is of.
    """

    offset: int
    outcomes: list[tuple[int, Outcome]]
    states: dict[bytes, tuple[int, bytes | None]]


class UnitTracker(PartitionTracker, Unit):
    """The deliveries of a partition in one assignment, with outcomes that are not committed yet.

    Args:
        assignment: the assignment.
        partition: the partition.
        on_room: called when a partition that was full no longer is.
        refusals: what was refused in earlier assignments.
        states: what is committed of the partition's keys; None if nothing is kept of them.

    Attributes:
        states: as given.
    """

    def __init__(
        self,
        assignment: Assignment,
        partition: TopicPartition,
        on_room: Callable[[TopicPartition], None],
        refusals: RefusedOutcomes,
        states: PartitionStates | None = None,
    ) -> None:
        super().__init__(assignment, partition, on_room)
        self.states = states
        # What is settled and not committed.
        self._latest: dict[bytes, bytes | None] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._size = 0
        self._refusals = refusals

    def holds(self, records: int) -> bool:
        """As in `PartitionTracker`, counting also outcomes that are not committed."""
        count = len(self._slots) + len(self._outcomes)
        return count > records or (bool(count) and self._size > _MOST_BYTES)

    @property
    def waits(self) -> bool:
        """As in `PartitionTracker`: for the states of its keys."""
        return self.states is not None and not self.states.restored

    def note(self, delivery: Delivery, outcome: Outcome, *, hurry: bool = False) -> None:
        """See `Unit.note`."""
        earlier = self._outcomes.get(delivery.token)
        if earlier is not None:
            self._size -= earlier.size
        self._outcomes[delivery.token] = outcome
        outcome.size = _size_of(outcome)
        self._size += outcome.size
        if hurry or self._size > _MANY_BYTES:
            self._assignment.hurry()

    def settled(self, delivery: Delivery) -> None:
        """As in `PartitionTracker`."""
        outcome = self._outcomes.get(delivery.token) if self.states is not None else None
        if outcome is not None and outcome.key is not None:
            self._latest[key_bytes(outcome.key)] = outcome.value
            # What it would call keeps more objects alive than all else of it.
            outcome.dropped = ()
        super().settled(delivery)

    async def load(self, key: str) -> bytes | None:
        """See `Unit.load`."""
        assert self.states is not None
        known = key_bytes(key)
        if known in self._latest:
            return self._latest[known]
        return await self.states.load(key)

    async def peek(self, key: str) -> bytes | None:
        """See `Unit.peek`."""
        known = self.states if self._assignment.open and not self.waits else None
        return None if known is None else await known.load(key)

    def refused(self, delivery: Delivery) -> Refused | None:
        """See `Unit.refused`."""
        return self._refusals.of(delivery.token)

    def due(self, most: int) -> Due | None:
        """Take out what is settled and not committed, with at most so many outcomes."""
        until = self.commit_at
        if until <= self.committed:
            return None
        offsets = sorted(offset for offset in self._outcomes if offset < until)
        if len(offsets) > most:
            offsets = offsets[:most]
            until = offsets[-1] + 1
        outcomes = [(offset, self._outcomes.pop(offset)) for offset in offsets]
        states = {
            key_bytes(outcome.key): (offset, outcome.value)
            for offset, outcome in outcomes
            if outcome.key is not None
        }
        self._size -= sum(outcome.size for _, outcome in outcomes)
        return Due(until, outcomes, states)

    def has_committed(self, due: Due) -> None:
        """Note that what was due is committed."""
        self.committed = due.offset
        for key, (_, state) in due.states.items():
            assert self.states is not None
            self.states.apply(key, state)
            if self._latest.get(key, state) is state:
                self._latest.pop(key, None)
        self._refusals.forget_before(due.offset)
        self._make_room()


def _size_of(outcome: Outcome) -> int:
    size = sum(output.size for output in outcome.outputs if isinstance(output, Record))
    return size if outcome.value is None else size + len(outcome.value)


def records_of(due: Due) -> tuple[list[Record], list[int]]:
    """Return the records of what is due, and for each the offset of the message it came of."""
    records: list[Record] = []
    offsets: list[int] = []
    for offset, outcome in due.outcomes:
        for output in outcome.outputs:
            assert isinstance(output, Record)
            records.append(output)
            offsets.append(offset)
    return records, offsets
