"""The dispatcher: handing out fetched records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from aiokafka.structs import TopicPartition

from ...._limited_log import LimitedLog
from ...._logs import get_logger
from ..._contract import Receiver
from ..._delivery import Delivery
from ..._envelope import without_payload
from ..._topics import TopicTrie
from ..._wire_formats import WireFormat
from .._records import RecordCodec, StoredRecord, size_of_headers
from ._assignment import Assignment
from ._committable_offsets import SizeTracker
from ._redelivery import EarlierDeliveries

__all__ = ["Dispatcher"]

_log = get_logger(__name__)


class Dispatcher:
    """Decodes and delivers fetched records of one subscription; knows what was handed out.

    Args:
        identifier: of the consumer, for log messages.
        codec: decodes records.
        receiver: gets the deliveries.
        largest: the largest payload that is handed out, in bytes.
        wire: the format that messages have.
        stats: counts ``messages.recognised``, ``messages.expired`` and ``messages.malformed``.
    """

    def __init__(
        self,
        identifier: str,
        codec: RecordCodec,
        receiver: Receiver,
        largest: int,
        wire: WireFormat,
        stats: Counter[str],
    ) -> None:
        self._identifier = identifier
        self._codec = codec
        self._receiver = receiver
        self._largest = largest
        self._is_packed = wire.is_packed
        self._opened = wire.opened
        self._stats = stats
        self._log = LimitedLog(_log)
        self._exact = True
        self._trie: TopicTrie[None] = TopicTrie()
        # What earlier assignments handed out, by partition.
        self._earlier: dict[TopicPartition, EarlierDeliveries] = {}
        self._seen: dict[TopicPartition, int] = {}

    def select(self, filters: Iterable[str], *, exact: bool) -> None:
        """Deliver what matches the plain filters; with ``exact`` that is everything."""
        self._exact = exact
        self._trie = TopicTrie()
        for pattern in filters:
            self._trie.add(pattern, None)

    # What was handed out.

    def remember(self, assignment: Assignment) -> None:
        """Remember what an ended assignment handed out, to recognise it when it comes again."""
        for partition, tracker in assignment.trackers.items():
            self._earlier[partition] = EarlierDeliveries(tracker, self._earlier.get(partition))

    def keep(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget all other partitions, which others have now, except for what still runs here."""
        ours = set(partitions)
        for partition in [*self._earlier]:
            if partition not in ours and not self._earlier[partition].keep_running():
                del self._earlier[partition]

    def forget_topics(self, names: Iterable[str]) -> None:
        """Forget what was handed out of these topics, which no longer exist."""
        gone = set(names)
        self._earlier = {
            place: it for place, it in self._earlier.items() if place.topic not in gone
        }
        self._seen = {place: it for place, it in self._seen.items() if place.topic not in gone}

    # Handing out.

    def hand_out(
        self, assignment: Assignment, partition: TopicPartition, records: Sequence[StoredRecord]
    ) -> None:
        """Decode and deliver what was fetched from one partition."""
        tracker = assignment.trackers[partition]
        earlier = self._earlier.get(partition)
        if earlier is not None and earlier.is_over(records[0].offset):
            del self._earlier[partition]
            earlier = None
        match = None if self._exact else self._trie.match
        seen = self._seen.get(partition, -1)
        decode, epoch, keep = self._codec.decode, assignment.epoch, tracker.slots.append
        deliveries: list[Delivery] = []
        skipped = total = 0
        largest = self._largest
        if tracker.first < 0:
            tracker.first = records[0].offset
        # Before anything is settled.
        tracker.arrived(records[-1].offset + 1)
        assignment.unsettled += len(records)
        for record in records:
            offset = record.offset
            try:
                envelope = decode(record, offset < seen)
                if envelope is None:
                    self._expired(record)
            except Exception as error:  # noqa: BLE001 (one bad record must not stop the others)
                self._undecodable(record, error)
                envelope = None
            if envelope is None or (match is not None and not match(envelope.topic)):
                tracker.skip(offset)
                skipped += 1
                continue
            size = len(envelope.payload)
            if size > largest:
                envelope, size = without_payload(envelope), 0
            elif self._is_packed(envelope):
                envelope = self._opened(envelope)
                size += len(envelope.payload)
            if envelope.key is not None:
                size += len(envelope.key)
            if envelope.raw_headers:
                size += size_of_headers(envelope)
            total += size
            delivery = Delivery(envelope, epoch=epoch, token=offset, tracker=tracker, size=size)
            keep(delivery)
            if earlier is None or not earlier.resolve(delivery):
                deliveries.append(delivery)
            else:
                self._stats["messages.recognised"] += 1
        self._seen[partition] = max(seen, records[-1].offset + 1)
        # Before anything is settled.
        assignment.size += total
        assignment.average = max(total // len(records), assignment.average // 2)
        if skipped:
            assignment.unsettled -= skipped
            tracker.advance()
        if deliveries:
            self._receiver.deliver_all(deliveries)

    def hand_out_untracked(self, assignment: Assignment, records: Sequence[StoredRecord]) -> None:
        """Decode and deliver records that are never committed; their bytes count until settled."""
        deliveries: list[Delivery] = []
        tracker = SizeTracker(assignment)
        largest = self._largest
        match = None if self._exact else self._trie.match
        for record in records:
            try:
                envelope = self._codec.decode(record)
            except Exception as error:  # noqa: BLE001 (one bad record must not stop the others)
                self._undecodable(record, error)
                continue
            if envelope is None:
                self._expired(record)
            elif match is None or match(envelope.topic):
                size = len(envelope.payload)
                if size > largest:
                    envelope, size = without_payload(envelope), 0
                elif self._is_packed(envelope):
                    envelope = self._opened(envelope)
                    size += len(envelope.payload)
                size += size_of_headers(envelope)
                assignment.size += size
                deliveries.append(Delivery(envelope, tracker=tracker, size=size))
        if deliveries:
            self._receiver.deliver_all(deliveries)

    def _expired(self, record: StoredRecord) -> None:
        self._stats["messages.expired"] += 1
        if any(name == "reply_to" for name, _ in record.headers):
            # Its sender only sees that nobody answers.
            self._log.warning(
                "consumer %r: a request on topic %r had expired when it was read: it waited for too"
                " long, or its sender's clock is behind the clock here",
                self._identifier,
                record.topic,
            )

    def _undecodable(self, record: StoredRecord, error: Exception) -> None:
        self._stats["messages.malformed"] += 1
        self._log.error(
            "consumer %r: record %d of partition %d of topic %r cannot be read and is"
            " skipped: %s: %s",
            self._identifier,
            record.offset,
            record.partition,
            record.topic,
            type(error).__name__,
            error,
        )
