"""The log of one partition: batches of records as bytes, in order."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ._compaction import compacted
from ._errors import ErrorCode, RequestRefused
from ._record_batches import Batch, encode_marker, parse_batch, place_batch, records_in

__all__ = ["AppendedRecord", "Log"]

_REMEMBERED_BATCHES = 5
_SEQUENCES = 1 << 31


@dataclass(frozen=True, slots=True)
class AppendedRecord:
    """A record in a partition.

    Args:
        topic: the topic's name.
        partition: the number of the partition.
        offset: its offset.
        key: None for none.
        value: None for a tombstone.
        headers: names with values.
        timestamp: milliseconds since 1970 (UTC), as the publisher has set it.
        number: counts all records of the cluster, in order of arrival.
        transactional: whether it was part of a transaction.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int
    number: int = 0
    transactional: bool = False


@dataclass(slots=True)
class _ProducerState:
    """What a partition knows about an idempotent producer."""

    epoch: int
    next_sequence: int = 0
    # First and last sequence, and offset, of its last batches.
    batches: deque[tuple[int, int, int]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED_BATCHES)
    )


@dataclass(frozen=True, slots=True)
class _Aborted:
    """An aborted transaction in a partition: whose, where it begins, and where its marker is."""

    producer: int
    first: int
    marker: int


class Log:
    """The records of one partition.

    Args:
        topic: the topic's name.
        partition: the number of the partition.
        max_batch: the most bytes of a batch that is accepted.
        keyed: whether records without a key are refused.

    Attributes:
        start: the offset of the oldest record that is left.
        end: the offset of the next record.
        records: the records that are left, oldest first.
        unreadable: the offsets of those in transactions that are open or were aborted.
        gone: whether the topic was deleted.
    """

    def __init__(self, topic: str, partition: int, max_batch: int, *, keyed: bool = False) -> None:
        self.topic = topic
        self.keyed = keyed
        self.partition = partition
        self.max_batch = max_batch
        self.start: int = 0
        self.end: int = 0
        self.records: list[AppendedRecord] = []
        self.unreadable: set[int] = set()
        self.gone = False
        self._batches: list[Batch] = []
        self._lasts: list[int] = []
        self._open: dict[int, list[AppendedRecord]] = {}
        self._aborted: list[_Aborted] = []
        self._markers: dict[int, int] = {}
        # Epoch and first sequence of producers that have nothing here yet.
        self._attempts: dict[int, tuple[int, int]] = {}
        self._producers: dict[int, _ProducerState] = {}
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def stable(self) -> int:
        """The last stable offset: where the first open transaction begins, or the end."""
        for records in self._open.values():
            return max(self.start, records[0].offset)
        return self.end

    @property
    def readable_end(self) -> int:
        """The offset after the last record before `stable` that no transaction has aborted."""
        stable = self.stable
        for record in reversed(self.records):
            if record.offset < stable and record.offset not in self.unreadable:
                return record.offset + 1
        return self.start

    def end_for(self, isolation_level: int) -> int:
        """Return where the log ends for readers of this level; 1 is ``read_committed``."""
        return self.stable if isolation_level else self.end

    def readable(self) -> list[AppendedRecord]:
        """Return the records of no transaction, and of those that were committed."""
        if not self.unreadable:
            return list(self.records)
        return [record for record in self.records if record.offset not in self.unreadable]

    def append(
        self,
        data: bytes | None,
        next_number: Callable[[], int] = lambda: 0,
        verify: Callable[[int, int], None] = lambda producer, epoch: None,
    ) -> tuple[int, list[AppendedRecord]]:
        """Append one batch.

        Args:
            data: the batch, as a producer sends it.
            next_number: returns the number of the next record.
            verify: called with id and epoch of a producer whose transaction has nothing here yet;
                raises RequestRefused if this partition is not in it.

        Returns:
            The offset of its first record, and its records; without records for a batch that an
            idempotent producer has sent before.

        Raises:
            RequestRefused: it is corrupt, too large, out of its producer's sequence, or not part of
                an open transaction.
        """
        batch = parse_batch(data)
        producer = batch.producer
        if batch.transactional and producer not in self._open:
            self._note_attempt(producer, batch.epoch, batch.sequence)
            verify(producer, batch.epoch)
        if batch.control:
            raise RequestRefused(ErrorCode.INVALID_RECORD)
        if len(batch.data) > self.max_batch:
            raise RequestRefused(ErrorCode.MESSAGE_TOO_LARGE)
        last_sequence = (batch.sequence + batch.last - batch.base) % _SEQUENCES
        if producer >= 0:
            earlier = self._check_sequence(producer, batch.epoch, batch.sequence, last_sequence)
            if earlier is not None:
                return earlier, []
            if producer in self._open and not batch.transactional:
                raise RequestRefused(ErrorCode.INVALID_TXN_STATE)
        stored = place_batch(batch, self.end)
        found = records_in(stored.data)
        if self.keyed and any(record.key is None for record in found):
            raise RequestRefused(ErrorCode.INVALID_RECORD)
        transactional = batch.transactional
        records = [self._stored(record, next_number(), transactional) for record in found]
        self._add(stored)
        self.records += records
        if producer >= 0:
            state = self._producers[producer]
            state.next_sequence = (last_sequence + 1) % _SEQUENCES
            state.batches.append((batch.sequence, last_sequence, stored.base))
        if batch.transactional:
            self._open.setdefault(producer, []).extend(records)
            self.unreadable.update(record.offset for record in records)
        return stored.base, records

    def end_transaction(
        self, producer: int, epoch: int, timestamp: int, *, commit: bool
    ) -> tuple[int, list[AppendedRecord]]:
        """Append the marker that ends the transaction of a producer here.

        Args:
            producer: its id.
            epoch: its epoch, higher than before if it was fenced.
            timestamp: milliseconds since 1970 (UTC).
            commit: whether the transaction is committed, not aborted.

        Returns:
            The offset of the marker, and the records that can be read now.
        """
        offset = self.end
        self._markers[offset] = timestamp
        self._add(place_batch(encode_marker(producer, epoch, timestamp, commit=commit), offset))
        state = self._producers.get(producer)
        if state is None or epoch > state.epoch:
            self._producers[producer] = _ProducerState(epoch)
        records = self._open.pop(producer, [])
        if commit:
            self.unreadable.difference_update(record.offset for record in records)
            return offset, records
        if records:
            self._aborted.append(_Aborted(producer, records[0].offset, offset))
        return offset, []

    def aborted_between(self, offset: int, end: int) -> list[tuple[int, int]]:
        """Return producers and first offsets of the aborted transactions in between."""
        return [
            (it.producer, it.first)
            for it in self._aborted
            if it.marker >= offset and it.first < end
        ]

    def read(self, offset: int, most: int, end: int, *, at_least_one: bool) -> bytes:
        """Return batches, starting with the one that holds an offset.

        Args:
            offset: where to start.
            most: the most bytes.
            end: the offset before which to stop.
            at_least_one: return a first batch even if it is larger.
        """
        found: list[bytes] = []
        size = 0
        for index in range(bisect_left(self._lasts, offset), len(self._batches)):
            batch = self._batches[index]
            size += len(batch.data)
            if batch.base >= end or (size > most and (found or not at_least_one)):
                break
            found.append(batch.data)
        return b"".join(found)

    def size_from(self, offset: int, most: int, end: int) -> int:
        """Return how many bytes `read` would return, counting no further than ``most``."""
        size = 0
        for index in range(bisect_left(self._lasts, offset), len(self._batches)):
            batch = self._batches[index]
            if batch.base >= end or size >= most:
                break
            size += len(batch.data)
        return size

    def trim(self, offset: int) -> None:
        """Drop the records before an offset, as a broker does with those that are too old.

        Raises:
            RequestRefused: there is no such offset.
        """
        if not 0 <= offset <= self.end:
            raise RequestRefused(ErrorCode.OFFSET_OUT_OF_RANGE)
        self.start = max(self.start, offset)
        self.records = [record for record in self.records if record.offset >= self.start]

    def compact(self, now: float, retention: float) -> None:
        """Keep only the last record of each key, before the first transaction that is open.

        Args:
            now: wall time in seconds since 1970.
            retention: seconds for which tombstones are kept.
        """
        count = bisect_left(self._lasts, self.stable)
        kept = compacted(self._batches[:count], self.unreadable, now, retention)
        left = {
            offset
            for batch in kept
            if not batch.control and not batch.empty
            for offset in (record.offset for record in records_in(batch.data))
        }
        markers = {batch.base for batch in kept if batch.control and not batch.empty}
        stable = self.stable
        self._batches[:count] = kept
        self._lasts[:count] = [batch.last for batch in kept]
        self.records = [it for it in self.records if it.offset >= stable or it.offset in left]
        self.unreadable = {offset for offset in self.unreadable if offset >= stable}
        self._aborted = [it for it in self._aborted if it.marker >= stable or it.marker in markers]
        self._markers = {
            offset: moment
            for offset, moment in self._markers.items()
            if offset >= stable or offset in markers
        }

    def offset_for(self, timestamp: int, end: int) -> tuple[int, int]:
        """Return timestamp and offset of the first record not older; -1 and -1 if there is none.

        Markers count, as in a broker.

        Args:
            timestamp: milliseconds since 1970 (UTC).
            end: the offset before which to look.
        """
        times = [(record.offset, record.timestamp) for record in self.records]
        for offset, moment in sorted([*times, *self._markers.items()]):
            if self.start <= offset < end and moment >= timestamp:
                return moment, offset
        return -1, -1

    def wait(self, callback: Callable[[], None]) -> None:
        """Call a function after every append, until `forget`."""
        self._waiting[callback] = None

    def forget(self, callback: Callable[[], None]) -> None:
        """End `wait`."""
        self._waiting.pop(callback, None)

    def notify(self) -> None:
        """Call everybody who waits: something has changed."""
        for callback in list(self._waiting):
            callback()

    def _check_sequence(self, producer: int, epoch: int, first: int, last: int) -> int | None:
        """Return the offset that this batch was given before; None for a new one."""
        state = self._producers.get(producer)
        if state is None:
            tried = self._attempts.pop(producer, None)
            if tried is not None and first > tried[1]:
                self._attempts[producer] = tried
                raise RequestRefused(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
            # The cluster may have forgotten the producer, so any first sequence is accepted.
            self._producers[producer] = _ProducerState(epoch, first)
            return None
        if epoch < state.epoch:
            raise RequestRefused(ErrorCode.INVALID_PRODUCER_EPOCH)
        if epoch > state.epoch:
            if first != 0:
                raise RequestRefused(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
            self._producers[producer] = _ProducerState(epoch)
            return None
        for its_first, its_last, offset in state.batches:
            if (its_first, its_last) == (first, last):
                return offset
        if first != state.next_sequence:
            raise RequestRefused(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER)
        return None

    def _note_attempt(self, producer: int, epoch: int, sequence: int) -> None:
        """Remember the first sequence of a producer, even if its batch is refused."""
        if producer not in self._producers:
            tried = self._attempts.get(producer)
            if tried is None or tried[0] < epoch or sequence < tried[1]:
                self._attempts[producer] = epoch, sequence

    def _add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._lasts.append(batch.last)
        self.end = batch.last + 1

    def _stored(self, record: Any, number: int, transactional: bool) -> AppendedRecord:
        return AppendedRecord(
            self.topic,
            self.partition,
            record.offset,
            record.key,
            record.value,
            tuple(record.headers),
            record.timestamp,
            number,
            transactional,
        )
