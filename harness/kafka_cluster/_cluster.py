"""The cluster: its topics and groups, and the operations on them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ...transports.kafka._partitioner import hash_of
from ._access_rules import AccessRules, Right
from ._errors import ErrorCode, RequestRefused
from ._groups import Group
from ._partition_log import AppendedRecord, Log
from ._record_batches import Headers, encode_record
from ._transactions import Coordinator, Transaction

__all__ = ["MARKER_DELAY", "MAX_BATCH", "REFUSAL_DELAY", "Cluster", "ClusterTopic"]

MAX_BATCH = 1_048_588
"""Bytes of the largest batch that a topic accepts by default."""

REFUSAL_DELAY = 0.01
"""Seconds before a request for something that does not exist is answered. The client library asks
again at once: if answers took no time at all, no time would ever pass."""

MARKER_DELAY = 0.001
"""Seconds until a transaction that has ended has its next marker, unless something else is set."""

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_EPOCH = 1_700_000_000.0


class ClusterTopic:
    """One topic.

    Args:
        name: its name.
        partitions: how many.
        max_batch: bytes of the largest batch that it accepts.
        tombstones: seconds for which tombstones are kept once it was compacted; None if it is not
            to be compacted.

    Attributes:
        partitions: one log each.
    """

    def __init__(
        self, name: str, partitions: int, max_batch: int, tombstones: float | None = None
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.tombstones = tombstones
        self.partitions: list[Log] = []
        self.grow(partitions)

    def grow(self, partitions: int) -> None:
        """Grow to so many partitions; those that exist stay."""
        for number in range(len(self.partitions), partitions):
            keyed = self.tombstones is not None
            self.partitions.append(Log(self.name, number, self.max_batch, keyed=keyed))


class Cluster:
    """A cluster of one broker that speaks Kafka's protocol with any client.

    Records, groups, producers and transactions behave as in a real one. There are no logins and no
    retention, everybody may do what was not denied to all, and any replication factor is accepted.

    Args:
        loop: the event loop.
        host: the host that clients are told to connect to.
        port: the port.
        on_event: called with a client id (or the name of a group), one word for what happened
            (``connect``, ``disconnect``, ``append``, ``duplicate``, ``fetch``, ``join``,
            ``return``, ``leave``, ``expire``, ``generation``, ``commit``, ``create-topic``,
            ``delete-topic``, ``init-producer``, ``begin``, ``offset``, ``commit-all``, ``abort``,
            ``time-out``, ``marker``, ``ended``, ``compact``), the topic, partition, group or
            transactional id concerned, and an offset or number.
        now: returns the wall time in seconds since 1970; None for the clock of the loop plus a
            fixed epoch.

    Attributes:
        auto_create: whether topics that a client asks for are created; False.
        partitions_default: the number of partitions of topics that are created without one.
        initial_delay: seconds that an empty group waits for further members; 0, whereas a real
            broker waits 3 by default.
        session_timeouts: the least and the most seconds that a member may ask for.
        on_append: called for each record that is appended, by a client or from outside; for those
            in a transaction once it is committed.
        marker_delay: returns the seconds until a transaction that has ended has its next marker.
        access: what clients may not do.
        coordinator: coordinates transactions.
        patience: called when a client has waited for records as long as it asked to, and there are
            none; returns the seconds for which it is kept waiting beyond that, unless it sends
            another request. None for 0.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        host: str = "kafka",
        port: int = 9092,
        on_event: Callable[[str, str, str, str], None] | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.loop = loop
        self.host = host
        self.port = port
        self.auto_create = False
        self.partitions_default = 1
        self.initial_delay: float = 0.0
        self.session_timeouts: tuple[float, float] = (0.001, 1_800.0)
        self.on_append: Callable[[str, int, AppendedRecord], None] | None = None
        self.patience: Callable[[], float] | None = None
        self._on_event = on_event
        self._now = now
        self.marker_delay: Callable[[], float] = lambda: MARKER_DELAY
        self.access: AccessRules = AccessRules()
        self.coordinator: Coordinator = Coordinator(self)
        self._topics: dict[str, ClusterTopic] = {}
        self._groups: dict[str, Group] = {}
        self._numbers = 0
        self._producers = 0
        self._turn = 0

    # For tests.

    @property
    def topics(self) -> Mapping[str, ClusterTopic]:
        """The topics by name, oldest first."""
        return MappingProxyType(self._topics)

    @property
    def groups(self) -> Mapping[str, Group]:
        """The groups by id, oldest first."""
        return MappingProxyType(self._groups)

    @property
    def transactions(self) -> Mapping[str, Transaction]:
        """The transactions by transactional id, oldest first."""
        return MappingProxyType(self.coordinator.transactions)

    def deny(self, right: Right, name: str) -> None:
        """Deny a right to what has this name, to everybody."""
        self.access.deny(right, name)

    def allow(self, right: Right, name: str) -> None:
        """End `deny`."""
        self.access.allow(right, name)

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        max_batch: int = MAX_BATCH,
        tombstones: float | None = None,
    ) -> None:
        """Create a topic.

        Args:
            name: its name.
            partitions: how many; -1 for ``partitions_default``.
            max_batch: bytes of the largest batch that it accepts.
            tombstones: seconds for which tombstones are kept once it was compacted; None if it is
                not to be compacted.

        Raises:
            RequestRefused: it exists, or the name or the number is not allowed.
        """
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise RequestRefused(ErrorCode.INVALID_TOPIC)
        if name in self._topics:
            raise RequestRefused(ErrorCode.TOPIC_ALREADY_EXISTS)
        other = self.alike(name)
        if other is not None:
            text = f"Topic '{name}' collides with existing topic: {other}"
            raise RequestRefused(ErrorCode.INVALID_TOPIC, text)
        count = self.partitions_default if partitions == -1 else partitions
        if count < 1:
            raise RequestRefused(ErrorCode.INVALID_PARTITIONS)
        self._topics[name] = ClusterTopic(name, count, max_batch, tombstones)
        self.note("", "create-topic", name, str(count))

    def alike(self, name: str) -> str | None:
        """Return the topic that a topic of this name would collide with; None if there is none.

        Names that differ only in ``.`` and ``_`` are the same in a cluster's metrics.
        """
        folded = name.replace(".", "_")
        for other in self._topics:
            if other != name and other.replace(".", "_") == folded:
                return other
        return None

    def delete_topic(self, name: str) -> None:
        """Delete a topic, and the offsets that groups have committed for it.

        Raises:
            RequestRefused: it does not exist.
        """
        topic = self._topics.pop(name, None)
        if topic is None:
            raise RequestRefused(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        for group in self._groups.values():
            group.forget_topic(name)
        self.note("", "delete-topic", name)
        for log in topic.partitions:
            log.gone = True
            log.notify()

    def compact(self, name: str) -> bool:
        """Compact a topic now; return False if it is not to be compacted.

        A real cluster leaves out the newest segment of each partition; this one leaves out nothing
        but what may still be aborted.

        Raises:
            RequestRefused: there is no such topic.
        """
        found = self._topics.get(name)
        if found is None:
            raise RequestRefused(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        if found.tombstones is None:
            return False
        for log in found.partitions:
            log.compact(self.now(), found.tombstones)
        self.note("", "compact", name)
        return True

    def append(
        self,
        topic: str,
        partition: int | None = None,
        *,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
    ) -> int:
        """Append a record from outside, without a connection.

        Args:
            topic: its name.
            partition: None for the one that the key belongs to, or without a key the next in turn.
            key: None for none.
            value: None for a tombstone.
            headers: names with values.
            timestamp: milliseconds since 1970 (UTC); None for now.

        Returns:
            The offset.

        Raises:
            RequestRefused: there is no such topic or partition, or the record is too large.
        """
        if partition is None:
            partition = self._partition_for(topic, key)
        moment = int(self.now() * 1000) if timestamp is None else timestamp
        batch = encode_record(key, value, headers, moment)
        return self.append_batch("", self.log(topic, partition), batch, None)

    def records(self, topic: str) -> list[AppendedRecord]:
        """Return the records of a topic, in order of arrival; none if it does not exist.

        Those of transactions that are open or were aborted are left out.
        """
        if topic not in self._topics:
            return []
        logs = self._topics[topic].partitions
        if len(logs) == 1:
            return logs[0].readable()
        everything = [record for log in logs for record in log.readable()]
        return sorted(everything, key=lambda record: record.number)

    def end_offset(self, topic: str, partition: int) -> int:
        """Return the offset of the next record.

        Raises:
            RequestRefused: there is no such topic or partition.
        """
        return self.log(topic, partition).end

    def readable_end(self, topic: str, partition: int) -> int:
        """Return the offset after the last record that can be read, of those that are stable.

        `end_offset` also counts the markers of transactions and what they have aborted.

        Raises:
            RequestRefused: there is no such topic or partition.
        """
        return self.log(topic, partition).readable_end

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """Return the offsets that a group has committed, by topic and partition."""
        if group not in self._groups:
            return {}
        return {place: offset for place, (offset, _) in self._groups[group].offsets.items()}

    def now(self) -> float:
        """Return the wall time in seconds since 1970."""
        return _EPOCH + self.loop.time() if self._now is None else self._now()

    # For the requests of clients.

    def log(self, topic: str, partition: int) -> Log:
        """Return the log of one partition.

        Raises:
            RequestRefused: there is no such topic or partition.
        """
        found = self._topics.get(topic)
        if found is None or not 0 <= partition < len(found.partitions):
            raise RequestRefused(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        return found.partitions[partition]

    def append_batch(self, client: str, log: Log, batch: bytes | None, name: str | None) -> int:
        """Append a batch that a client has sent, with its transactional id; return its offset.

        Raises:
            RequestRefused: the batch is not accepted.
        """

        def verify(producer: int, epoch: int) -> None:
            if name is None:
                raise RequestRefused(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
            self.coordinator.verify(name, producer, epoch, (log.topic, log.partition))

        offset, records = log.append(batch, self._next_number, verify)
        what = "append" if records else "duplicate"
        self.note(client, what, f"{log.topic}-{log.partition}", str(offset))
        if records:
            if offset not in log.unreadable:
                self._tell(records)
            log.notify()
        return offset

    def append_marker(
        self, topic: str, partition: int, producer: int, epoch: int, commit: bool
    ) -> None:
        """Append the marker that ends the transaction of a producer in a partition."""
        if topic not in self._topics:
            return
        log = self.log(topic, partition)
        moment = int(self.now() * 1000)
        offset, records = log.end_transaction(producer, epoch, moment, commit=commit)
        self.note("", "marker", f"{topic}-{partition}", str(offset))
        self._tell(records)
        log.notify()

    def _tell(self, records: list[AppendedRecord]) -> None:
        if self.on_append is not None:
            for record in records:
                self.on_append(record.topic, record.partition, record)

    def group(self, name: str) -> Group:
        """Return the group with this id; create it if there is none.

        Raises:
            RequestRefused: the id is not allowed.
        """
        if not name:
            raise RequestRefused(ErrorCode.INVALID_GROUP_ID)
        found = self._groups.get(name)
        if found is None:
            found = self._groups[name] = Group(name, self.loop, self.note)
        found.initial_delay = self.initial_delay
        return found

    def next_producer(self) -> int:
        """Return the id for a new idempotent producer."""
        self._producers += 1
        return self._producers

    def note(self, client: str, what: str, about: str = "", detail: str = "") -> None:
        """Report an event to ``on_event``."""
        if self._on_event is not None:
            self._on_event(client, what, about, detail)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _partition_for(self, topic: str, key: bytes | None) -> int:
        count = len(self._topics[topic].partitions) if topic in self._topics else 1
        if key is not None:
            return hash_of(key) % count
        self._turn += 1
        return (self._turn - 1) % count
