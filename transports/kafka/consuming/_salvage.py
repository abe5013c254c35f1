"""Reading records that the client library cannot read."""

from __future__ import annotations

from typing import Any

import aiokafka.errors as kafka
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint
from aiokafka.structs import TopicPartition

__all__ = ["LenientRecords", "read_leniently"]

_MOST_BYTES = 52_428_800
_MOST_OF_A_PARTITION = 1_048_576
_BACKOFF = 0.1
_LENGTH_AT, _MAGIC_AT, _OVERHEAD = 8, 16, 12
_SECOND_FORMAT = 2


async def read_leniently(consumer: Any, partition: TopicPartition) -> None:
    """Have the library take what comes next in the partition as it is.

    Names of headers are texts for the library, but for the cluster any bytes: one that is no UTF-8
    would end every attempt to read its batch, and whoever may publish could stop a partition. Call
    it while the partition is paused where the library cannot read on.

    Raises:
        aiokafka.errors.KafkaError: the cluster did not answer with records.
    """
    client, fetcher = consumer._client, consumer._fetcher
    assignment = consumer._subscription.subscription.assignment
    # As the consumer itself reads: what a transaction has open may be there for it, or not yet.
    isolation = fetcher._isolation_level
    position = await consumer.position(partition)
    place = (partition.partition, position, _MOST_OF_A_PARTITION)
    answer = await client.send(
        client.cluster.leader_for_partition(partition),
        FetchRequest(0, 1, _MOST_BYTES, isolation, [(partition.topic, [place])]),
    )
    _, code, _, *parts = answer.topics[0][1][0]
    if kafka.for_code(code) is not kafka.NoError or not parts[-1]:
        raise kafka.KafkaError(f"no records at offset {position} of {partition}")
    aborted = parts[2] if answer.API_VERSION >= 11 else parts[-2]
    if assignment.active and await consumer.position(partition) == position:
        # In place of what could not be read, which keeps the library from fetching it again.
        fetcher._records[partition] = FetchResult(
            partition,
            assignment=assignment,
            partition_records=PartitionRecords(
                partition,
                LenientRecords(parts[-1]),
                aborted,
                position,
                None,
                None,
                True,
                isolation,
            ),
            backoff=_BACKOFF,
        )


class LenientRecords:
    """The batches of a fetch, in which names of headers may be any bytes.

    Args:
        data: as fetched.
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._at = 0

    def has_next(self) -> bool:
        """Whether there is a further batch; the last may have been cut off by the cluster."""
        return len(self._data) >= self._at + _OVERHEAD and len(self._data) >= self._end()

    def next_batch(self) -> Any:
        """The next batch, as the library has them."""
        start, self._at = self._at, self._end()
        batch = self._data[start : self._at]
        if batch[_MAGIC_AT] >= _SECOND_FORMAT:
            return _LenientBatch(batch)
        # There are no headers in older ones.
        return MemoryRecords(batch).next_batch()

    def _end(self) -> int:
        length = int.from_bytes(self._data[self._at + _LENGTH_AT : self._at + _OVERHEAD], "big")
        return self._at + _OVERHEAD + length


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    _pos: int

    def _read_msg(self, varint: Any = decode_varint) -> Any:
        buffer = self._buffer
        length, at = varint(buffer, self._pos)
        end = at + length
        _, at = varint(buffer, at)
        delay, at = varint(buffer, at)
        delta, at = varint(buffer, at)
        key, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        count, at = varint(buffer, at)
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            name, at = _bytes(buffer, at)
            content, at = _bytes(buffer, at)
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
        if at != end:
            raise kafka.CorruptRecordException(f"a record of {length} bytes ends at {at - end}")
        self._pos = at
        appended = self.timestamp_type == self.LOG_APPEND_TIME
        time = self.max_timestamp if appended else self.first_timestamp + delay
        offset = self.base_offset + delta
        return _DefaultRecordPy(offset, time, self.timestamp_type, key, value, headers)


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    return (None, at) if length < 0 else (bytes(buffer[at : at + length]), at + length)
