"""Batches of records as bytes, as they are in a log and on their way."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from ...transports.kafka._aiokafka_private import LenientRecords
from ._errors import ErrorCode, RequestRefused

__all__ = [
    "Batch",
    "Headers",
    "encode_marker",
    "encode_record",
    "keep_records",
    "parse_batch",
    "place_batch",
    "records_in",
]

Headers = Sequence[tuple[str, bytes | None]]

# Base offset, length, leader epoch, magic, checksum, attributes, delta of the last offset, first
# and largest timestamp, producer, its epoch, base sequence, number of records.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_PREFIX = struct.Struct(">qii")
_CHECKSUM = struct.Struct(">I")
_ATTRIBUTES = struct.Struct(">h")
_OVERHEAD = 12
_LARGEST = 1 << 30
_CHECKSUM_AT, _CHECKED_FROM = 17, 21
_MAGIC = 2
_COMPRESSION, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20
_MARKER_KEY = struct.Struct(">hh")
_MARKER_VALUE = struct.Struct(">hi")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, and what its header says.

    Args:
        data: all of it.
        base: the offset of its first record.
        last: the offset of its last record, also of one that was removed.
        producer: the id of its idempotent producer; -1 for none.
        epoch: that of the producer.
        sequence: that of its first record.
        transactional: whether it is part of a transaction.
        control: whether it is a marker.
        remove_at: when compaction may remove its tombstones, or the marker, in seconds since 1970;
            None as long as it has come across none.
    """

    data: bytes
    base: int
    last: int
    producer: int
    epoch: int
    sequence: int
    transactional: bool
    control: bool
    remove_at: float | None = None

    @property
    def empty(self) -> bool:
        """Whether all of its records were removed."""
        return len(self.data) == _HEADER.size


def parse_batch(data: bytes | None) -> Batch:
    """Return a batch that a producer has sent.

    Raises:
        RequestRefused: it is corrupt.
    """
    if data is None or len(data) < _HEADER.size:
        raise RequestRefused(ErrorCode.CORRUPT_MESSAGE)
    base, length, _, magic, _, attributes, delta, _, _, producer, epoch, sequence, count = (
        _HEADER.unpack_from(data)
    )
    if length + _OVERHEAD != len(data) or magic != _MAGIC or count != delta + 1:
        raise RequestRefused(ErrorCode.CORRUPT_MESSAGE)
    if not DefaultRecordBatch(data).validate_crc():
        raise RequestRefused(ErrorCode.CORRUPT_MESSAGE)
    # Without a producer a batch is part of no transaction, whatever it says.
    transactional = bool(attributes & _TRANSACTIONAL) and producer >= 0
    control = bool(attributes & _CONTROL)
    return Batch(data, base, base + delta, producer, epoch, sequence, transactional, control)


def place_batch(batch: Batch, offset: int) -> Batch:
    """Return the batch for its place in a log."""
    data = _PREFIX.pack(offset, len(batch.data) - _OVERHEAD, 0) + batch.data[_PREFIX.size :]
    return replace(batch, data=data, base=offset, last=offset + batch.last - batch.base)


def keep_records(batch: Batch, offsets: Collection[int]) -> Batch:
    """Return what is left of a batch in a log if only the records with these offsets are kept."""
    header = list(_HEADER.unpack_from(batch.data))
    if header[12] == len(offsets):
        return batch
    builder = _builder(batch.producer, batch.epoch, transactional=batch.transactional)
    for record in records_in(batch.data) if offsets else ():
        if record.offset in offsets:
            place = record.offset - batch.base
            headers = list(record.headers)
            builder.append(place, record.timestamp, record.key, record.value, headers)
    body = b""
    if offsets:
        built = bytes(builder.build())
        body = built[_HEADER.size :]
        header[7:9] = _HEADER.unpack_from(built)[7:9]
    header[1] = _HEADER.size - _OVERHEAD + len(body)
    # No longer compressed. The rest, with the last offset, is what it was.
    header[5] &= ~_COMPRESSION
    header[12] = len(offsets)
    return replace(batch, data=_with_checksum(_HEADER.pack(*header) + body))


def records_in(data: bytes) -> list[Any]:
    """Return the records of a batch, as the client library presents them.

    Raises:
        RequestRefused: they are corrupt.
    """
    try:
        return list(DefaultRecordBatch(data))
    except UnicodeDecodeError:
        return list(LenientRecords(data).next_batch())
    except Exception as error:
        raise RequestRefused(ErrorCode.CORRUPT_MESSAGE) from error


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
    builder = _builder(-1, -1, transactional=False)
    builder.append(0, timestamp, key, value, list(headers))
    return bytes(builder.build())


def encode_marker(producer: int, epoch: int, timestamp: int, *, commit: bool) -> Batch:
    """Return the marker that ends a transaction in a partition.

    Args:
        producer: the producer's id.
        epoch: the producer's epoch.
        timestamp: milliseconds since 1970 (UTC).
        commit: whether the transaction is committed, not aborted.
    """
    builder = _builder(producer, epoch, transactional=True)
    builder.append(0, timestamp, _MARKER_KEY.pack(0, commit), _MARKER_VALUE.pack(0, 0), [])
    data = bytearray(builder.build())
    _ATTRIBUTES.pack_into(data, _CHECKED_FROM, _TRANSACTIONAL | _CONTROL)
    whole = _with_checksum(bytes(data))
    return Batch(whole, 0, 0, producer, epoch, -1, transactional=True, control=True)


def _with_checksum(data: bytes) -> bytes:
    checksum = calc_crc32c(data[_CHECKED_FROM:])
    return data[:_CHECKSUM_AT] + _CHECKSUM.pack(checksum) + data[_CHECKED_FROM:]


def _builder(producer: int, epoch: int, *, transactional: bool) -> Any:
    return DefaultRecordBatchBuilder(
        magic=_MAGIC,
        compression_type=0,
        is_transactional=transactional,
        producer_id=producer,
        producer_epoch=epoch,
        base_sequence=-1,
        # The first record is taken whatever its size, others up to this one.
        batch_size=_LARGEST,
    )
