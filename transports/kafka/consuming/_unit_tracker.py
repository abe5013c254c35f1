"""Partitions whose messages' outcomes are committed with their offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from aiokafka.structs import TopicPartition

from ....errors import SpaDatError
from ..._delivery import Delivery
from ..._units import Outcome, OwnDelivery, Refused, Unit
from .._records import Record
from ..producing._transactions import Refusals
from ._assignment import Assignment
from ._committable_offsets import PartitionTracker
from ._snapshots import PartitionStates, key_bytes

__all__ = ["Due", "RefusedOutcomes", "Source", "UnitTracker", "records_of"]

Source: TypeAlias = int | str
"""What an outcome is of: the offset of a message, or the name of something that is no message."""

# Bytes of outcomes that are not committed, from which on a commit does not wait, and nothing more
# is fetched of the partition.
_MANY_BYTES = 1_048_576
_MOST_BYTES = 16_777_216


class RefusedOutcomes:
    """Which outcomes of one partition's messages were refused, for when the messages come again.

    It outlives assignments.
    """

    def __init__(self) -> None:
        self._known: dict[Source, Refused] = {}
        # What is sent in batches of its own to find out which record is refused: that of messages
        # before an offset, and of what is no message.
        self._apart_until = 0
        self._apart: dict[str, None] = {}

    def __bool__(self) -> bool:
        """Return whether any was."""
        return bool(self._known)

    def of(self, source: Source) -> Refused | None:
        """Return why an outcome was refused, if it was."""
        return self._known.get(source)

    def apart(self, due: Due) -> bool:
        """Return whether each record is to be sent in a batch of its own."""
        first = next((source for source, _ in due.outcomes if isinstance(source, int)), None)
        if first is not None and first < self._apart_until:
            return True
        return bool(self._apart) and any(source in self._apart for source, _ in due.outcomes)

    def add(self, refusals: Refusals, sources: list[Source]) -> None:
        """Note what was refused.

        Args:
            refusals: by the places of records.
            sources: by these places, what each record came of.
        """
        if not refusals.certain:
            for place in refusals.errors:
                source = sources[place]
                if isinstance(source, int):
                    self._apart_until = max(self._apart_until, source + 1)
                else:
                    self._apart[source] = None
            return
        news: dict[Source, SpaDatError] = {}
        for place, error in refusals.errors.items():
            news.setdefault(sources[place], error)
        for source, error in news.items():
            self._known[source] = Refused(error, letter_too=source in self._known)

    def forget(self, due: Due) -> None:
        """Forget what is committed."""
        if not self._known and not self._apart:
            return
        done = {source for source, _ in due.outcomes if isinstance(source, str)}
        self._apart = {source: None for source in self._apart if source not in done}
        self._known = {
            source: why
            for source, why in self._known.items()
            if (source not in done if isinstance(source, str) else source >= due.offset)
        }


class Due(NamedTuple):
    """What is to be committed next of a partition.

    Attributes:
        offset: the offset up to which everything is settled.
        news: whether that is to be committed, because it is not what is committed already.
        outcomes: with what they are of, in order.
        states: the last outcome of each key that has changed, and what it is of.
    """

    offset: int
    news: bool
    outcomes: list[tuple[Source, Outcome]]
    states: dict[bytes, tuple[Source, Outcome]]


class _Own(NamedTuple):
    """The outcome of something that is no message."""

    outcome: Outcome
    name: str
    lost: Callable[[], None] | None


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
        # What is settled and not committed: the last outcome of each key, and all of them.
        self._latest: dict[bytes, Outcome] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._own: list[_Own] = []
        # Those of them that are being committed.
        self._begun: list[_Own] = []
        self._given_up = False
        self._size = 0
        self._refusals = refusals

    def holds(self, records: int) -> bool:
        """As in `PartitionTracker`, counting also outcomes that are not committed."""
        count = len(self._slots) + len(self._outcomes) + len(self._own)
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
        """As in `PartitionTracker`; takes what an `OwnDelivery` has come to."""
        if isinstance(delivery, OwnDelivery):
            if delivery.outcome is not None:
                key, name = str(delivery.envelope.key), str(delivery.envelope.id)
                self.add(delivery.outcome, key, name, delivery.lost)
            return
        outcome = self._outcomes.get(delivery.token) if self.states is not None else None
        if outcome is not None and outcome.key is not None:
            self._latest[key_bytes(outcome.key)] = outcome
            outcome.after = delivery.token
            # What it would call keeps more objects alive than all else of it.
            outcome.dropped = ()
        super().settled(delivery)

    @property
    def number(self) -> int:
        """See `Unit.number`."""
        return int(self.partition.partition)

    @property
    def over(self) -> bool:
        """See `Unit.over`."""
        return self._assignment.ended

    @property
    def ready(self) -> bool:
        """See `Unit.ready`."""
        return self._assignment.open and not self.over and not self.waits

    def add(
        self,
        outcome: Outcome,
        key: str,
        name: str = "",
        lost: Callable[[], None] | None = None,
    ) -> None:
        """See `Unit.add`."""
        if self._given_up:
            if lost is not None:
                lost()
            return
        known = key_bytes(key)
        before = self._latest.get(known)
        if before is not None:
            outcome.after = before.after
        if outcome.key is not None:
            self._latest[known] = outcome
        outcome.size = _size_of(outcome)
        self._size += outcome.size
        # As in `settled`.
        outcome.dropped = ()
        self._own.append(_Own(outcome, name, lost))
        assignment = self._assignment
        assignment.released += 1
        if assignment.released >= assignment.notify_at:
            assignment.on_release()

    async def first_due(self, most: int) -> Sequence[tuple[str, float]]:
        """See `Unit.first_due`."""
        states = self.states
        if states is None or not self.ready:
            return ()
        found = await states.first_due(most, self._latest.keys())
        return [(key.decode("utf-8", "surrogatepass"), wake) for key, wake in found]

    async def load(self, key: str) -> bytes | None:
        """See `Unit.load`."""
        assert self.states is not None
        known = key_bytes(key)
        if known in self._latest:
            return self._latest[known].value
        return await self.states.load(key)

    async def peek(self, key: str) -> bytes | None:
        """See `Unit.peek`."""
        known = self.states if self._assignment.open and not self.waits else None
        return None if known is None else await known.load(key)

    def refused(self, delivery: Delivery) -> Refused | None:
        """See `Unit.refused`."""
        refusals = self._refusals
        if not refusals:
            return None
        is_own = isinstance(delivery, OwnDelivery)
        return refusals.of(str(delivery.envelope.id) if is_own else delivery.token)

    @property
    def has_due(self) -> bool:
        """Whether something is settled and not committed."""
        return self.commit_at > self.committed or any(map(self._is_ready, self._own))

    def _is_ready(self, own: _Own) -> bool:
        return own.outcome.after < max(self.commit_at, 0)

    def due(self, most: int) -> Due | None:
        """Take out what is settled and not committed, with at most so many outcomes."""
        until = self.commit_at
        if until <= self.committed and not self._own:
            return None
        offsets = sorted(offset for offset in self._outcomes if offset < until)
        if len(offsets) > most:
            offsets = offsets[:most]
            until = offsets[-1] + 1
        outcomes: list[tuple[Source, Outcome]]
        if self._own:
            until, outcomes = self._with_own(offsets, until, most)
            if until <= self.committed and not outcomes:
                return None
        else:
            outcomes = [(offset, self._outcomes.pop(offset)) for offset in offsets]
        states = {
            key_bytes(outcome.key): (source, outcome)
            for source, outcome in outcomes
            if outcome.key is not None
        }
        self._size -= sum(outcome.size for _, outcome in outcomes)
        return Due(until, until > max(self.committed, 0), outcomes, states)

    def _with_own(
        self, offsets: Sequence[int], until: int, most: int
    ) -> tuple[int, list[tuple[Source, Outcome]]]:
        """Take out outcomes of messages and others, each after what it comes after.

        Args:
            offsets: of messages, in order.
            until: the offset before which messages are taken.
            most: how many others at the most.

        Returns:
            the offset before which messages were taken, and the outcomes.
        """
        ready = sorted(
            (own for own in self._own if own.outcome.after < max(until, 0)),
            key=lambda own: own.outcome.after,
        )
        if len(ready) > most:
            # What is settled after those that are left has to wait for them.
            until = ready[most].outcome.after + 1
            offsets = [offset for offset in offsets if offset < until]
            del ready[most:]
        self._begun = ready
        taken = {id(own) for own in ready}
        self._own = [own for own in self._own if id(own) not in taken]
        placed: list[tuple[int, Source, Outcome]] = [
            (offset, offset, self._outcomes.pop(offset)) for offset in offsets
        ]
        placed += [(own.outcome.after, own.name, own.outcome) for own in ready]
        placed.sort(key=lambda one: one[0])
        return until, [(source, outcome) for _, source, outcome in placed]

    def has_committed(self, due: Due) -> None:
        """Note that what was due is committed."""
        if due.news:
            self.committed = due.offset
        for key, (_, outcome) in due.states.items():
            assert self.states is not None
            self.states.apply(key, outcome.value, outcome.wake)
            if self._latest.get(key) is outcome:
                del self._latest[key]
        self._begun = []
        self._refusals.forget(due)
        self._make_room()

    def give_up(self) -> None:
        """Note that nothing more is committed, whatever is left."""
        self._given_up = True
        left, self._own, self._begun = (*self._begun, *self._own), [], []
        for own in left:
            if own.lost is not None:
                own.lost()


def _size_of(outcome: Outcome) -> int:
    size = sum(output.size for output in outcome.outputs if isinstance(output, Record))
    return size if outcome.value is None else size + len(outcome.value)


def records_of(due: Due) -> tuple[list[Record], list[Source]]:
    """Return the records of what is due, and for each what it came of."""
    records: list[Record] = []
    sources: list[Source] = []
    for source, outcome in due.outcomes:
        for output in outcome.outputs:
            assert isinstance(output, Record)
            records.append(output)
            sources.append(source)
    return records, sources
