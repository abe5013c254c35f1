"""Units: partitions whose messages' outcomes are committed with their offsets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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

__all__ = [
    "Due",
    "PartitionUnit",
    "RefusedOutcomes",
    "Source",
    "Taken",
    "UnitTracker",
    "records_of",
    "source_of",
]

Source: TypeAlias = tuple[TopicPartition, int] | str
"""What an outcome is of: the place of a message, or the name of something that is no message."""

Taken: TypeAlias = tuple[TopicPartition | None, int | str, Outcome]
"""An outcome, with the partition and offset of its message, or None and a name."""

# Bytes of outcomes that are not committed, from which on a commit does not wait, and nothing more
# is fetched of the partition.
_MANY_BYTES = 1_048_576
_MOST_BYTES = 16_777_216


class RefusedOutcomes:
    """Which outcomes of one unit's messages were refused, for when the messages come again.

    It outlives assignments.
    """

    def __init__(self) -> None:
        self._known: dict[Source, Refused] = {}
        # What is sent in batches of its own to find out which record is refused: that of messages
        # before an offset, and of what is no message.
        self._apart_until: dict[TopicPartition, int] = {}
        self._apart: dict[str, None] = {}

    def __bool__(self) -> bool:
        """Return whether any was."""
        return bool(self._known)

    def of(self, source: Source) -> Refused | None:
        """Return why an outcome was refused, if it was."""
        return self._known.get(source)

    def apart(self, due: Due) -> bool:
        """Return whether each record is to be sent in a batch of its own."""
        if not self._apart_until and not self._apart:
            return False
        return any(self._is_apart(source_of(taken)) for taken in due.outcomes)

    def limit(self, sources: Sequence[Source]) -> int | None:
        """Return how many of what is settled the next transaction may take; None for all.

        What is known to be refused has to be committed before anything is tried that is new. With
        a new refusal in each transaction nothing would ever be committed.

        Args:
            sources: of what is settled, in the order in which it is taken.
        """
        marked = [at for at, source in enumerate(sources) if source in self._known]
        if not marked:
            marked = [at for at, source in enumerate(sources) if self._is_apart(source)]
        return marked[-1] + 1 if marked else None

    @property
    def pending(self) -> bool:
        """Whether something is known, or to be found out."""
        return bool(self._known or self._apart or self._apart_until)

    def _is_apart(self, source: Source) -> bool:
        if isinstance(source, str):
            return source in self._apart
        place, offset = source
        return offset < self._apart_until.get(place, 0)

    def add(self, refusals: Refusals, sources: list[Source]) -> None:
        """Note what was refused.

        Args:
            refusals: by the places of records.
            sources: by these places, what each record came of.
        """
        if not refusals.certain:
            for at in refusals.errors:
                source = sources[at]
                if isinstance(source, str):
                    self._apart[source] = None
                else:
                    place, offset = source
                    self._apart_until[place] = max(self._apart_until.get(place, 0), offset + 1)
            return
        news: dict[Source, SpaDatError] = {}
        for at, error in refusals.errors.items():
            news.setdefault(sources[at], error)
        for source, error in news.items():
            self._known[source] = Refused(error, letter_too=source in self._known)

    def forget(self, due: Due) -> None:
        """Forget what is committed."""
        if not self.pending:
            return
        done = {source for place, source, _ in due.outcomes if isinstance(source, str)}
        self._apart = {source: None for source in self._apart if source not in done}
        offsets = due.offsets
        self._apart_until = {
            place: until
            for place, until in self._apart_until.items()
            if until > offsets.get(place, 0)
        }
        self._known = {
            source: why
            for source, why in self._known.items()
            if (
                source not in done
                if isinstance(source, str)
                else source[1] >= offsets.get(source[0], 0)
            )
        }


class Due(NamedTuple):
    """What is to be committed next of a unit.

    Attributes:
        offsets: the offsets up to which everything is settled, where that is not committed yet.
        outcomes: with what they are of, in order.
        states: the last outcome of each key that has changed, with what it is of.
    """

    offsets: dict[TopicPartition, int]
    outcomes: list[Taken]
    states: dict[bytes, Taken]


class Own(NamedTuple):
    """The outcome of something that is no message."""

    outcome: Outcome
    name: str


class UnitTracker(PartitionTracker):
    """The deliveries of a partition in one assignment, with outcomes that are not committed yet.

    Args:
        assignment: the assignment.
        partition: the partition.
        on_room: called when a partition that was full no longer is.
        unit: what is committed together with it.

    Attributes:
        outcomes: of its messages that are not committed, by their offsets.
        attached: what comes after one of these messages, and before the next one of its key.
    """

    def __init__(
        self,
        assignment: Assignment,
        partition: TopicPartition,
        on_room: Callable[[TopicPartition], None],
        unit: PartitionUnit,
    ) -> None:
        super().__init__(assignment, partition, on_room)
        self.outcomes: dict[int, Outcome] = {}
        self.attached: dict[int, list[Own]] = {}
        self.unit = self._unit = unit
        unit.trackers.append(self)

    def arrived(self, until: int) -> None:
        """As in `PartitionTracker`."""
        self._unit.arrived(self, until)

    def holds(self, records: int) -> bool:
        """As in `PartitionTracker`, counting also outcomes that are not committed."""
        unit = self._unit
        count = len(self._slots) + len(self.outcomes) + unit.own
        return count > records or (bool(count) and unit.bytes > _MOST_BYTES)

    @property
    def waits(self) -> bool:
        """As in `PartitionTracker`: for the states of its keys."""
        return self._unit.waits

    def settled(self, delivery: Delivery) -> None:
        """As in `PartitionTracker`; from now on the outcome is that of its key."""
        unit = self._unit
        outcome = self.outcomes.get(delivery.token) if unit.states is not None else None
        if outcome is not None and outcome.key is not None:
            unit.latest[key_bytes(outcome.key)] = outcome
            outcome.after, outcome.behind = delivery.token, self
            # What it would call keeps more objects alive than all else of it.
            outcome.dropped = ()
        super().settled(delivery)

    def make_room(self) -> None:
        """Go on if something was committed, and that makes room."""
        self._make_room()


class _Run(NamedTuple):
    """Messages of one partition that came after one another."""

    tracker: UnitTracker
    until: int


class PartitionUnit(Unit):
    """The partitions of an actor's topics that have one number, in one assignment.

    What is committed is the longest settled prefix of their messages in the order in which they
    came, whichever partition that was. So no state is committed that knows of a message before it,
    of the same key and another topic, which is not.

    Args:
        assignment: the assignment.
        number: the number of the partitions.
        refusals: what was refused in earlier assignments.
        states: what is committed of the partitions' keys; None if nothing is kept of them.

    Attributes:
        states: as given.
        refusals: as given.
        trackers: of the partitions.
        latest: the last outcome of each key that is settled and not committed.
        bytes: of all outcomes that are not committed.
        own: how many of these are of no message.
    """

    def __init__(
        self,
        assignment: Assignment,
        number: int,
        refusals: RefusedOutcomes,
        states: PartitionStates | None = None,
    ) -> None:
        super().__init__(lambda free: None)
        self.epoch = assignment.epoch
        self.unit = self
        self.states = states
        self.refusals = refusals
        self.trackers: list[UnitTracker] = []
        self.latest: dict[bytes, Outcome] = {}
        self.bytes = self.own = 0
        self._assignment = assignment
        self._number = number
        # In which order messages came that are not taken out, if there is more than one partition.
        self._runs: deque[_Run] = deque()
        # What comes after no message that is left, and what is being committed.
        self._ready: list[Own] = []
        self._begun: list[Taken] = []
        self._given_up = False

    @property
    def waits(self) -> bool:
        """Whether the states of its keys are not known yet."""
        return self.states is not None and not self.states.restored

    @property
    def busy(self) -> bool:
        """Whether something was handed out, or is settled, and is not committed."""
        return self.own > 0 or any(len(it) or it.outcomes for it in self.trackers)

    @property
    def text(self) -> str:
        """What it is, for log messages."""
        topics = sorted(tracker.partition.topic for tracker in self.trackers)
        word = "topic" if len(topics) == 1 else "topics"
        return f"partition {self._number} of {word} {', '.join(map(repr, topics))}"

    def arrived(self, tracker: UnitTracker, until: int) -> None:
        """Note that records of a partition up to an offset are handed out after all others."""
        if len(self.trackers) == 1:
            return
        runs = self._runs
        if runs and runs[-1].tracker is tracker:
            runs.pop()
        runs.append(_Run(tracker, until))

    # As `Unit`.

    @property
    def number(self) -> int:
        """See `Unit.number`."""
        return self._number

    @property
    def over(self) -> bool:
        """See `Unit.over`."""
        return self._assignment.ended

    @property
    def ready(self) -> bool:
        """See `Unit.ready`."""
        return self._assignment.open and not self.over and not self.waits

    def note(self, delivery: Delivery, outcome: Outcome, *, hurry: bool = False) -> None:
        """See `Unit.note`."""
        tracker = delivery.tracker
        assert isinstance(tracker, UnitTracker)
        if self._given_up:
            outcome.lose()
            return
        outcomes = tracker.outcomes
        earlier = outcomes.get(delivery.token)
        if earlier is not None:
            self.bytes -= earlier.size
        outcomes[delivery.token] = outcome
        if outcome.value is not None:
            outcome.size += len(outcome.value)
        self.bytes += outcome.size
        if hurry or self.bytes > _MANY_BYTES:
            self._assignment.hurry()

    def settled(self, delivery: Delivery) -> None:
        """As in `Tracker`: takes what an `OwnDelivery` has come to."""
        assert isinstance(delivery, OwnDelivery)
        if delivery.outcome is not None:
            key, name = str(delivery.envelope.key), str(delivery.envelope.id)
            delivery.outcome.lost += (delivery.lost,)
            self.add(delivery.outcome, key, name)

    def add(self, outcome: Outcome, key: str, name: str = "") -> None:
        """See `Unit.add`."""
        if self._given_up:
            outcome.lose()
            return
        known = key_bytes(key)
        before = self.latest.get(known)
        if before is not None:
            outcome.after, outcome.behind = before.after, before.behind
        if outcome.key is not None:
            self.latest[known] = outcome
        if outcome.value is not None:
            outcome.size += len(outcome.value)
        self.bytes += outcome.size
        self.own += 1
        # As when a message is settled.
        outcome.dropped = ()
        behind, own = outcome.behind, Own(outcome, name)
        if isinstance(behind, UnitTracker) and outcome.after in behind.outcomes:
            behind.attached.setdefault(outcome.after, []).append(own)
        else:
            self._ready.append(own)
        assignment = self._assignment
        assignment.released += 1
        if assignment.released >= assignment.notify_at:
            assignment.on_release()

    async def first_due(self, most: int) -> Sequence[tuple[str, float]]:
        """See `Unit.first_due`."""
        states = self.states
        if states is None or not self.ready:
            return ()
        found = await states.first_due(most, self.latest.keys())
        return [(key.decode("utf-8", "surrogatepass"), wake) for key, wake in found]

    async def load(self, key: str) -> bytes | None:
        """See `Unit.load`."""
        assert self.states is not None
        known = key_bytes(key)
        if known in self.latest:
            return self.latest[known].value
        return await self.states.load(key)

    async def peek(self, key: str) -> bytes | None:
        """See `Unit.peek`."""
        known = self.states if self._assignment.open and not self.waits else None
        return None if known is None else await known.load(key)

    def refused(self, delivery: Delivery) -> Refused | None:
        """See `Unit.refused`."""
        refusals = self.refusals
        if not refusals:
            return None
        if isinstance(delivery, OwnDelivery):
            return refusals.of(str(delivery.envelope.id))
        tracker = delivery.tracker
        assert isinstance(tracker, UnitTracker)
        return refusals.of((tracker.partition, delivery.token))

    # What is committed.

    @property
    def has_due(self) -> bool:
        """Whether something is settled and not committed, and can be."""
        return bool(self._ready) or any(
            until > tracker.committed for tracker, until in self._prefix()
        )

    def _prefix(self) -> Iterator[_Run]:
        """Yield up to where the partitions can be committed, in the order of their messages."""
        held: set[UnitTracker] = set()
        for tracker, until in self._runs:
            if held:
                held.add(tracker)
                continue
            yield _Run(tracker, min(tracker.commit_at, until))
            if tracker.commit_at < until:
                held.add(tracker)
        for tracker in self.trackers:
            # There may be markers behind its messages.
            if tracker not in held:
                yield _Run(tracker, tracker.commit_at)

    def _settled_sources(self) -> Iterator[Source]:
        """Yield of what there are outcomes that can be committed, in the order of `due`."""
        yield from (own.name for own in self._ready)
        left: dict[UnitTracker, list[int]] = {}
        for tracker, until in self._prefix():
            if tracker not in left:
                left[tracker] = sorted(tracker.outcomes, reverse=True)
            waiting = left[tracker]
            while waiting and waiting[-1] < until:
                offset = waiting.pop()
                yield tracker.partition, offset
                yield from (own.name for own in tracker.attached.get(offset, ()))

    def due(self, most: int) -> Due | None:
        """Take out what is settled and not committed, with about so many outcomes at the most."""
        if self.refusals.pending:
            limit = self.refusals.limit([*self._settled_sources()])
            most = most if limit is None else min(most, limit)
        outcomes: list[Taken] = [(None, own.name, own.outcome) for own in self._ready[:most]]
        self._begun = outcomes
        self._ready = self._ready[most:]
        offsets: dict[TopicPartition, int] = {}
        if not self._ready:
            self._take(outcomes, offsets, most)
        if not outcomes and not offsets:
            return None
        states = {key_bytes(taken[2].key): taken for taken in outcomes if taken[2].key is not None}
        self.bytes -= sum(outcome.size for _, _, outcome in outcomes)
        return Due(offsets, outcomes, states)

    def _take(self, outcomes: list[Taken], offsets: dict[TopicPartition, int], most: int) -> None:
        """Take out what messages have come to, and what comes after them.

        Args:
            outcomes: get it.
            offsets: get up to where it was taken out, where that is not committed yet.
            most: no further one is taken when there are so many.
        """
        # By partition: the offsets of outcomes that can be taken, the first of them last.
        left: dict[UnitTracker, list[int]] = {}
        for tracker, until in [*self._prefix()]:
            known, place = tracker.outcomes, tracker.partition
            if tracker not in left:
                ready = (offset for offset in known if offset < tracker.commit_at)
                left[tracker] = sorted(ready, reverse=True)
            waiting, full = left[tracker], False
            while waiting and waiting[-1] < until:
                if len(outcomes) >= most:
                    until, full = waiting[-1], True
                    break
                offset = waiting.pop()
                outcomes.append((place, offset, known.pop(offset)))
                attached = tracker.attached.pop(offset, ())
                outcomes += [(None, own.name, own.outcome) for own in attached]
            if until > max(tracker.committed, 0):
                offsets[place] = until
            if full:
                return
            if self._runs and self._runs[0].tracker is tracker and self._runs[0].until == until:
                self._runs.popleft()

    def has_committed(self, due: Due) -> None:
        """Note that what was due is committed."""
        for tracker in self.trackers:
            offset = due.offsets.get(tracker.partition)
            if offset is not None:
                tracker.committed = offset
        for key, (_, _, outcome) in due.states.items():
            assert self.states is not None
            self.states.apply(key, outcome.value, outcome.wake)
            if self.latest.get(key) is outcome:
                del self.latest[key]
        # Those of no message have no place.
        self.own -= sum(place is None for place, _, _ in self._begun)
        self._begun = []
        self.refusals.forget(due)
        for tracker in self.trackers:
            tracker.make_room()

    def give_up(self) -> None:
        """Note that nothing more is committed, whatever is left."""
        self._given_up = True
        left = [outcome for _, _, outcome in self._begun]
        left += [own.outcome for own in self._ready]
        for tracker in self.trackers:
            left += tracker.outcomes.values()
            for attached in tracker.attached.values():
                left += [own.outcome for own in attached]
            tracker.attached = {}
        self._begun, self._ready = [], []
        for outcome in left:
            outcome.lose()


def source_of(taken: Taken) -> Source:
    """Return what an outcome that was taken out is of."""
    place, of, _ = taken
    return str(of) if place is None else (place, int(of))


def records_of(due: Due) -> tuple[list[Record], list[Taken]]:
    """Return the records of what is due, and for each the outcome that it came of."""
    records: list[Record] = []
    origins: list[Taken] = []
    for taken in due.outcomes:
        outcome = taken[2]
        output: object = outcome.output
        if output is not None:
            assert isinstance(output, Record)
            records.append(output)
            origins.append(taken)
        for output in outcome.more or ():
            assert isinstance(output, Record)
            records.append(output)
            origins.append(taken)
    return records, origins
