"""The log of one partition: batches of records as bytes, in order."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from ...transports.kafka._aiokafka_private import LenientRecords
from ._errors import ErrorCode, RequestRefused

__all__ = ["AppendedRecord", "Headers", "Log", "encode_record"]

Headers = Sequence[tuple[str, bytes | None]]

# Base offset, length, leader epoch, magic, checksum, attributes, delta of the last offset, first
# and largest timestamp, producer, its epoch, base sequence, number of records.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_PREFIX = struct.Struct(">qii")
_OVERHEAD = 12
_MAGIC = 2
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
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int
    number: int = 0


@dataclass(slots=True)
class _ProducerState:
    """What a partition knows about an idempotent producer."""

    epoch: int
    next_sequence: int = 0
    # First and last sequence, and offset, of its last batches.
    batches: deque[tuple[int, int, int]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED_BATCHES)
    )


class Log:
    """The records of one partition.

    Args:
        topic: the topic's name.
        partition: the number of the partition.
        max_batch: the most bytes of a batch that is accepted.

    Attributes:
        start: the offset of the oldest record that is left.
        end: the offset of the next record.
        records: the records that are left, oldest first.
        gone: whether the topic was deleted.
    """

    def __init__(self, topic: str, partition: int, max_batch: int) -> None:
        self.topic = topic
        self.partition = partition
        self.max_batch = max_batch
        self.start = 0
        self.end = 0
        self.records: list[AppendedRecord] = []
        self.gone = False
        self._batches: list[bytes] = []
        self._bases: list[int] = []
        self._producers: dict[int, _ProducerState] = {}
        self._waiting: dict[Callable[[], None], None] = {}

    def append(
        self, data: bytes | None, next_number: Callable[[], int] = lambda: 0
    ) -> tuple[int, list[AppendedRecord]]:
        """Append one batch.

        Args:
            data: the batch, as a producer sends it.
            next_number: returns the number of the next record.

        Returns:
            The offset of its first record, and its records; without records for a batch that an
            idempotent producer has sent before.

        Raises:
            RequestRefused: it is corrupt, too large, or out of its producer's sequence.
        """
        if data is None or len(data) < _HEADER.size:
            raise RequestRefused(ErrorCode.CORRUPT_MESSAGE)
        header = _HEADER.unpack_from(data)
        length, magic, last_delta = header[1], header[3], header[6]
        producer, epoch, first_sequence, count = header[9:13]
        if length + _OVERHEAD != len(data) or magic != _MAGIC or count != last_delta + 1:
            raise RequestRefused(ErrorCode.CORRUPT_MESSAGE)
        if len(data) > self.max_batch:
            raise RequestRefused(ErrorCode.MESSAGE_TOO_LARGE)
        if not DefaultRecordBatch(data).validate_crc():
            raise RequestRefused(ErrorCode.CORRUPT_MESSAGE)
        if producer >= 0:
            last_sequence = (first_sequence + last_delta) % _SEQUENCES
            earlier = self._check_sequence(producer, epoch, first_sequence, last_sequence)
            if earlier is not None:
                return earlier, []
        offset = self.end
        stored = _PREFIX.pack(offset, length, 0) + data[_PREFIX.size :]
        records = self._parse(stored, next_number)
        self._batches.append(stored)
        self._bases.append(offset)
        self.records += records
        self.end = offset + count
        if producer >= 0:
            state = self._producers[producer]
            state.next_sequence = (last_sequence + 1) % _SEQUENCES
            state.batches.append((first_sequence, last_sequence, offset))
        return offset, records

    def read(self, offset: int, most: int, *, at_least_one: bool) -> bytes:
        """Return batches, starting with the one that holds an offset.

        Args:
            offset: where to start.
            most: the most bytes.
            at_least_one: return a first batch even if it is larger.
        """
        if offset >= self.end:
            return b""
        found: list[bytes] = []
        size = 0
        for index in range(bisect_right(self._bases, offset) - 1, len(self._batches)):
            batch = self._batches[index]
            size += len(batch)
            if size > most and (found or not at_least_one):
                break
            found.append(batch)
        return b"".join(found)

    def size_from(self, offset: int, most: int) -> int:
        """Return how many bytes `read` would return, counting no further than ``most``."""
        size = 0
        if offset < self.end:
            for index in range(bisect_right(self._bases, offset) - 1, len(self._batches)):
                size += len(self._batches[index])
                if size >= most:
                    break
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

    def offset_for(self, timestamp: int) -> tuple[int, int]:
        """Return timestamp and offset of the first record not older; -1 and -1 if there is none."""
        for record in self.records:
            if record.timestamp >= timestamp:
                return record.timestamp, record.offset
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

    def _parse(self, data: bytes, next_number: Callable[[], int]) -> list[AppendedRecord]:
        try:
            found = list(DefaultRecordBatch(data))
        except UnicodeDecodeError:
            found = list(LenientRecords(data).next_batch())
        except Exception as error:
            raise RequestRefused(ErrorCode.CORRUPT_MESSAGE) from error
        return [self._stored(record, next_number()) for record in found]

    def _stored(self, record: Any, number: int) -> AppendedRecord:
        return AppendedRecord(
            self.topic,
            self.partition,
            record.offset,
            record.key,
            record.value,
            tuple(record.headers),
            record.timestamp,
            number,
        )


def encode_record(
    key: bytes | None, value: bytes | None, headers: Headers, timestamp: int
) -> bytes:
    """Return a batch of one record.

    Args:
        key: None for none.
        value: None for a tombstone.
        headers: names with values.
        timestamp: milliseconds since 1970 (UTC).
    """
    builder = DefaultRecordBatchBuilder(
        magic=_MAGIC,
        compression_type=0,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )
    builder.append(0, timestamp, key, value, list(headers))
    return bytes(builder.build())
