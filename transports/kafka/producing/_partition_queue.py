"""Partition queues: publishes on their way to one topic and its partitions."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from typing import Any, Protocol

import aiokafka.errors as kafka

from ...._logs import get_logger
from ....errors import PublishRefused, SpaDatError
from ..._outbox import Outbox, OutboxEntry
from .._errors import (
    InvalidRecordError,
    UnsupportedCompressionError,
    describe,
    error_for,
    publish_refusal,
)
from .._partitioner import hash_of
from .._records import Record

__all__ = [
    "REFUSED_FOR_ALL",
    "UNANSWERED_FOR",
    "PartitionQueue",
    "QueueOwner",
    "TopicQueue",
    "blames_records",
]

_log = get_logger(__name__)

UNANSWERED_FOR = 10.0
"""Seconds without a confirmation by the brokers, after which that is a problem."""
_REFUSED_FOR = 5.0
# As long as a requester waits for a reply by default.
_REPLIES_REFUSED_FOR = 30.0

# Nothing of such a batch is appended, and perhaps a single record is to blame.
_REFUSED_FOR_A_RECORD = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.InvalidTimestampError,
    kafka.CorruptRecordException,
    kafka.UnsupportedForMessageFormatError,
    kafka.PolicyViolationError,
    InvalidRecordError,
)
REFUSED_FOR_ALL = (
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.InvalidTopicError,
    kafka.InvalidRequiredAcksError,
    UnsupportedCompressionError,
)
"""Answers about a batch of which nothing is appended, whatever it contains."""
# The producer is of no more use, and the records are not to blame.
_PRODUCER_LOST = (
    kafka.ProducerFenced,
    kafka.ProducerClosed,
    kafka.OutOfOrderSequenceNumber,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.UnknownProducerId,
    kafka.InvalidTxnState,
    # The token of its connection was refused, which the library takes for accepted.
    kafka.IllegalSaslStateError,
)


def blames_records(error: BaseException) -> bool:
    """Return whether a broker's answer may be about a single record of a batch."""
    return isinstance(error, kafka.BrokerResponseError) and not (
        error.retriable or isinstance(error, _PRODUCER_LOST)
    )


class QueueOwner(Protocol):
    """The owner of a queue: one producer of the library."""

    outbox: Outbox
    suspects: set[OutboxEntry]

    @property
    def open(self) -> bool:
        """Whether more may be handed over now."""

    def new_batch(self) -> Any:
        """Return an empty batch of the library."""

    async def send(self, batch: Any, name: str, partition: int) -> asyncio.Future[Any]:
        """Hand a batch to the library; return a future that completes when it is confirmed."""

    async def find(self, name: str) -> None:
        """Wait until the topic is known to the library, or raise an error of this package."""

    def take_back(self, name: str, partition: int, count: int) -> None:
        """Take back the last batch, of this many records, which the cluster did not append."""

    def last_refusal(self, name: str, partition: int) -> int:
        """Return the code of the last error of the partition."""

    def break_off(self, cause: BaseException) -> None:
        """Break off, as the producer cannot continue."""

    def on_batch(self, queue: PartitionQueue) -> None:
        """Note that a batch of this queue is in flight."""


class PartitionQueue:
    """The publishes for one partition, in order.

    The library has one batch at a time. What arrives meanwhile waits here for the next one; so
    nothing waits if nothing is in flight, and under load batches grow by themselves.

    Args:
        owner: the producer.
        name: the topic's name.
        partition: its number.
    """

    def __init__(self, owner: QueueOwner, name: str, partition: int) -> None:
        self.name = name
        self.partition = partition
        self.task: asyncio.Task[None] | None = None
        self._owner = owner
        self._entries: deque[OutboxEntry] = deque()
        self._parts: deque[deque[OutboxEntry]] = deque()
        self._said = False
        # What the library has, and since when (loop time).
        self._sent: list[OutboxEntry] = []
        self._sent_at = 0.0

    def append(self, entry: OutboxEntry) -> None:
        """Append a publish to the queue."""
        self._entries.append(entry)
        if self.task is None:
            self.start()

    def start(self) -> None:
        """Send what is waiting, together with what is appended until the loop's next iteration."""
        if self.task is None and self._owner.open and (self._entries or self._parts):
            loop = asyncio.get_running_loop()
            self.task = loop.create_task(
                self._run(), name=f"kafka queue {self.name}-{self.partition}"
            )

    def refused(self, code: int, seconds: float) -> str | None:
        """Log, once, that nothing has been accepted here for long; refuse replies if it lasts.

        Requesters choose where those go, and none of them must be able to keep an actor from
        answering all others.

        Args:
            code: the cluster's answer.
            seconds: for how long; 0 if the partition accepts what is published.

        Returns:
            what is wrong, if the application itself publishes something here.
        """
        if seconds < _REFUSED_FOR:
            self._said = False
            return None
        where = f"partition {self.partition} of topic {self.name!r}"
        why = describe(error_for(code))
        if not self._said:
            self._said = True
            _log.warning(
                "%s has accepted no publish for %.0f s; still trying: %s",
                where,
                seconds,
                why,
            )
        waiting = [entry for entry in self._all() if not entry.done()]
        if seconds >= _REPLIES_REFUSED_FOR:
            for entry in waiting:
                if entry.note.is_reply:
                    text = (
                        f"the reply to {entry.envelope.topic!r} is given up: {where} accepts none"
                    )
                    self._owner.outbox.fail(entry, PublishRefused(f"{text}: {why}"))
        self._let_go()
        if all(entry.note.is_reply for entry in waiting):
            return None
        return f"{where} accepts no publishes: {why}"

    def unanswered(self, now: float) -> str | None:
        """Return what is wrong if no broker has answered for long about what the application sends.

        Args:
            now: the time of the loop.
        """
        if now - self._sent_at < UNANSWERED_FOR:
            return None
        if all(entry.note.is_reply for entry in self.in_flight):
            return None
        return (
            f"partition {self.partition} of topic {self.name!r} accepts no publishes: the brokers"
            f" have not answered for {UNANSWERED_FOR:.0f} s"
        )

    def _let_go(self) -> None:
        """Drop what was given up in the queue, or it would keep its place in the outbox."""
        lines = (self._entries, *self._parts)
        given_up = [entry for line in lines for entry in line if entry.done()]
        for line in lines if given_up else ():
            left = [entry for entry in line if not entry.done()]
            line.clear()
            line.extend(left)
        for entry in given_up:
            self._owner.outbox.let_go(entry)

    @property
    def in_flight(self) -> list[OutboxEntry]:
        """The publishes that the library has, and that have no outcome yet."""
        return [entry for entry in self._sent if not entry.done()]

    def _all(self) -> list[OutboxEntry]:
        return [*self._sent, *(entry for part in self._parts for entry in part), *self._entries]

    async def _run(self) -> None:
        try:
            await self._send_all()
        except asyncio.CancelledError:
            raise
        # What the library raises besides its own errors: assertions, missing keys.
        except Exception as error:  # noqa: BLE001
            self._owner.break_off(error)
        finally:
            self.task = None

    async def _send_all(self) -> None:
        confirm_all = self._owner.outbox.confirm_all
        confirmed: list[OutboxEntry] = []
        while True:
            sent, future = await self._send_next()
            self._sent = sent
            # While the next batch is in flight.
            if confirmed:
                confirm_all(confirmed)
                confirmed = []
            if future is None:
                if self._owner.open and (self._entries or self._parts):
                    continue
                return
            try:
                await future
            except kafka.KafkaError as error:
                self._on_refused(sent, error)
            else:
                confirmed = sent

    async def _send_next(self) -> tuple[list[OutboxEntry], asyncio.Future[Any] | None]:
        owner = self._owner
        if not owner.open or not (self._entries or self._parts):
            return [], None
        try:
            await owner.find(self.name)
        except SpaDatError as error:
            self._fail_all(error)
            return [], None
        if not owner.open:
            return [], None
        batch = owner.new_batch()
        entries = self._fill(batch)
        if not entries:
            return [], None
        owner.on_batch(self)
        self._sent = entries
        self._sent_at = asyncio.get_running_loop().time()
        return entries, await owner.send(batch, self.name, self.partition)

    def _fill(self, batch: Any) -> list[OutboxEntry]:
        part = self._parts.popleft() if self._parts else None
        source = self._entries if part is None else part
        suspects = self._owner.suspects
        taken: list[OutboxEntry] = []
        while source:
            entry = source[0]
            if entry.done():
                source.popleft()
                self._owner.outbox.confirm(entry)
                continue
            alone = bool(suspects) and entry in suspects
            if alone and taken:
                break
            if not self._add(batch, entry):
                break
            source.popleft()
            if entry.done():
                continue
            taken.append(entry)
            if alone:
                break
        if part:
            self._parts.appendleft(part)
        return taken

    def _add(self, batch: Any, entry: OutboxEntry) -> bool:
        """Add the entry; return whether it is dealt with, or False if the batch is full."""
        record: Record = entry.note
        try:
            added = batch.append(
                timestamp=record.timestamp,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
            )
        except (TypeError, ValueError, OverflowError) as error:
            refusal = PublishRefused(
                f"the message to {entry.envelope.topic!r} cannot be encoded as a record: {error}"
            )
            refusal.__cause__ = error
            self._owner.outbox.fail(entry, refusal)
            return True
        if added is None:
            return False
        entry.writes += 1
        return True

    def _on_refused(self, entries: list[OutboxEntry], error: kafka.KafkaError) -> None:
        if type(error) is kafka.UnknownError:
            # The library has one name for all codes that it does not know.
            error = error_for(self._owner.last_refusal(self.name, self.partition))
        if isinstance(error, REFUSED_FOR_ALL):
            self._owner.take_back(self.name, self.partition, len(entries))
            self._refuse(entries, error)
        elif isinstance(error, _REFUSED_FOR_A_RECORD):
            self._owner.take_back(self.name, self.partition, len(entries))
            if len(entries) == 1:
                self._refuse(entries, error)
            else:
                # The one to blame is found by bisection, which keeps the order.
                half = len(entries) // 2
                self._parts.appendleft(deque(entries[half:]))
                self._parts.appendleft(deque(entries[:half]))
        else:
            if blames_records(error):
                self._suspect(entries, error)
            self._owner.break_off(error)

    def _suspect(self, entries: list[OutboxEntry], error: kafka.KafkaError) -> None:
        """Suspect single records, as the library does not know this answer."""
        if len(entries) == 1:
            self._refuse(entries, error)
        else:
            self._owner.suspects.update(entries)
            for entry in entries:
                entry.add_done_callback(self._owner.suspects.discard)

    def _refuse(self, entries: list[OutboxEntry], error: kafka.KafkaError) -> None:
        for entry in entries:
            refusal = publish_refusal(error, entry.envelope.topic, keyless=entry.note.key is None)
            refusal.__cause__ = error
            self._owner.outbox.fail(entry, refusal)

    def _fail_all(self, error: SpaDatError) -> None:
        left = [entry for part in self._parts for entry in part]
        left += self._entries
        self._parts.clear()
        self._entries.clear()
        for entry in left:
            self._owner.outbox.fail(entry, copy.copy(error))


class TopicQueue:
    """The publishes for one topic.

    Args:
        owner: the producer.
        name: the topic's name.
        cluster: the library's metadata.
        choice: source of the partitions of records without a key.
        stretch: bytes without a key that go to one partition before the next is chosen.
    """

    def __init__(
        self, owner: QueueOwner, name: str, cluster: Any, choice: random.Random, stretch: int
    ) -> None:
        self.name = name
        self.queues: list[PartitionQueue] = []
        self.unplaced: deque[OutboxEntry] = deque()
        self.finding: asyncio.Task[None] | None = None
        self.lost_at: float | None = None
        # Strangers name the topics of replies, as many as they like.
        self.creates = False
        self._owner = owner
        self._cluster = cluster
        self._choice = choice
        self._sticky: PartitionQueue | None = None
        self._stuck = 0
        self._most = stretch

    def write(self, entry: OutboxEntry, record: Record) -> None:
        """Append a publish to the queue of its partition."""
        queues = self.queues
        if not queues:
            self.unplaced.append(entry)
        elif len(queues) == 1:
            queues[0].append(entry)
        elif record.key is not None:
            queues[hash_of(record.key) % len(queues)].append(entry)
        else:
            self._anywhere(record).append(entry)

    def _anywhere(self, record: Record) -> PartitionQueue:
        # Whole batches for one partition, instead of a part of each for all.
        self._stuck += len(record.value or b"")
        if self._sticky is None or self._stuck > self._most:
            others = [queue for queue in self.queues if queue is not self._sticky]
            led = self._cluster.available_partitions_for_topic(self.name) or ()
            usable = [queue for queue in others if queue.partition in led]
            self._sticky = self._choice.choice(usable or others)
            self._stuck = 0
        return self._sticky

    def grow(self, count: int) -> None:
        """Use this many partitions."""
        known = len(self.queues)
        self.queues += [
            PartitionQueue(self._owner, self.name, number) for number in range(known, count)
        ]
        unplaced, self.unplaced = self.unplaced, deque()
        for entry in unplaced:
            self.write(entry, entry.note)

    def start(self) -> None:
        """Send what is waiting."""
        for queue in self.queues:
            queue.start()

    def on_batch(self, queue: PartitionQueue) -> None:
        """Note that a batch of the queue is in flight."""
        if queue is self._sticky:
            self._sticky = None

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the running tasks."""
        found: list[asyncio.Task[Any]] = [
            queue.task for queue in self.queues if queue.task is not None
        ]
        return found
