"""Publishes on their way to one topic and its partitions."""

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
from .._names import hash_of
from .._records import Record

__all__ = ["PartitionQueue", "QueueOwner", "TopicQueue", "blames_records"]

_log = get_logger(__name__)

_REFUSED_FOR = 5.0
# As long as anybody waits for a reply who has asked for nothing else.
_REPLIES_REFUSED_FOR = 30.0

# Nothing of such a batch is appended, and perhaps one record alone is to blame.
_REFUSED_FOR_A_RECORD = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.InvalidTimestampError,
    kafka.CorruptRecordException,
    kafka.UnsupportedForMessageFormatError,
    kafka.PolicyViolationError,
    InvalidRecordError,
)
# Nothing of such a batch is appended, whatever is in it.
_REFUSED_FOR_ALL = (
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.InvalidTopicError,
    kafka.InvalidRequiredAcksError,
    UnsupportedCompressionError,
)
# The producer is no use any more, and the records are not to blame.
_PRODUCER_LOST = (
    kafka.ProducerFenced,
    kafka.ProducerClosed,
    kafka.OutOfOrderSequenceNumber,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.UnknownProducerId,
    kafka.InvalidTxnState,
)


def blames_records(error: BaseException) -> bool:
    """Whether an answer of a broker leaves it open what it has against a batch."""
    return isinstance(error, kafka.BrokerResponseError) and not (
        error.retriable or isinstance(error, _PRODUCER_LOST)
    )


class QueueOwner(Protocol):
    """What a queue belongs to: one producer of the library."""

    outbox: Outbox
    suspects: set[OutboxEntry]

    @property
    def open(self) -> bool:
        """Whether more may be handed over now."""

    def new_batch(self) -> Any:
        """An empty batch of the library."""

    async def send(self, batch: Any, name: str, partition: int) -> asyncio.Future[Any]:
        """Hand a batch over to the library; the future ends when it is confirmed."""

    async def find(self, name: str) -> None:
        """Return when the topic is known to the library, else raise an error of this package."""

    def take_back(self, name: str, partition: int, count: int) -> None:
        """The cluster did not append the last batch of so many records."""

    def last_refusal(self, name: str, partition: int) -> int:
        """The code of the last answer for the partition that was no good."""

    def break_off(self, cause: BaseException) -> None:
        """The producer cannot go on."""

    def on_batch(self, queue: PartitionQueue) -> None:
        """A batch of this queue is on its way."""


class PartitionQueue:
    """The publishes for one partition, in order.

    One batch at a time is in the library's hands. What comes meanwhile waits here, for the next
    one; so nothing waits where nothing is on its way, and under load batches grow by themselves.

    Args:
        owner: the producer.
        name: of the topic.
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
        # What is in the library's hands.
        self._sent: list[OutboxEntry] = []

    def append(self, entry: OutboxEntry) -> None:
        """Put a publish in line."""
        self._entries.append(entry)
        if self.task is None:
            self.start()

    def start(self) -> None:
        """Send what waits. What is appended until the loop's next round goes with it."""
        if self.task is None and self._owner.open and (self._entries or self._parts):
            loop = asyncio.get_running_loop()
            self.task = loop.create_task(
                self._run(), name=f"kafka queue {self.name}-{self.partition}"
            )

    def refused(self, code: int, seconds: float) -> str | None:
        """Nothing has been taken here for so long: say so once, and refuse replies when it lasts.

        Whoever asked has chosen where those go, and nobody is to keep an actor from what all
        others ask of it.

        Args:
            code: what the cluster answers.
            seconds: 0 when the partition takes what is published.

        Returns:
            what is wrong, if the application itself wants something published here.
        """
        if seconds < _REFUSED_FOR:
            self._said = False
            return None
        where = f"partition {self.partition} of topic {self.name!r}"
        why = describe(error_for(code))
        if not self._said:
            self._said = True
            _log.warning(
                "%s has not taken what is published for %.0f s, and it is tried on: %s",
                where,
                seconds,
                why,
            )
        waiting = [entry for entry in self._all() if not entry.done()]
        if seconds >= _REPLIES_REFUSED_FOR:
            for entry in waiting:
                if entry.note.is_reply:
                    text = f"the reply to {entry.envelope.topic!r} is given up: {where} takes none"
                    self._owner.outbox.fail(entry, PublishRefused(f"{text}: {why}"))
        self._let_go()
        if all(entry.note.is_reply for entry in waiting):
            return None
        return f"{where} does not take what is published: {why}"

    def _let_go(self) -> None:
        """What was given up in line would hold its place in the outbox until anything is taken."""
        lines = (self._entries, *self._parts)
        given_up = [entry for line in lines for entry in line if entry.done()]
        for line in lines if given_up else ():
            left = [entry for entry in line if not entry.done()]
            line.clear()
            line.extend(left)
        for entry in given_up:
            self._owner.outbox.let_go(entry)

    def _all(self) -> list[OutboxEntry]:
        return [*self._sent, *(entry for part in self._parts for entry in part), *self._entries]

    async def _run(self) -> None:
        try:
            await self._send_all()
        except asyncio.CancelledError:
            raise
        # What the library raises beside its own errors: assertions, missing keys.
        except Exception as error:  # noqa: BLE001
            self._owner.break_off(error)
        finally:
            self.task = None

    async def _send_all(self) -> None:
        confirm = self._owner.outbox.confirm
        confirmed: list[OutboxEntry] = []
        while True:
            sent, future = await self._send_next()
            self._sent = sent
            # While the next batch is on its way.
            for entry in confirmed:
                confirm(entry)
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
        """Whether the entry is dealt with; not when the batch is full."""
        record: Record = entry.note
        try:
            added = batch.append(
                timestamp=record.timestamp,
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
        except (TypeError, ValueError, OverflowError) as error:
            refusal = PublishRefused(
                f"the message to {entry.envelope.topic!r} cannot be written as a record: {error}"
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
            # The library has one name for all that it does not know.
            error = error_for(self._owner.last_refusal(self.name, self.partition))
        if isinstance(error, _REFUSED_FOR_ALL):
            self._owner.take_back(self.name, self.partition, len(entries))
            self._refuse(entries, error)
        elif isinstance(error, _REFUSED_FOR_A_RECORD):
            self._owner.take_back(self.name, self.partition, len(entries))
            if len(entries) == 1:
                self._refuse(entries, error)
            else:
                # Half by half the one is found that is to blame, and the order stays.
                half = len(entries) // 2
                self._parts.appendleft(deque(entries[half:]))
                self._parts.appendleft(deque(entries[:half]))
        else:
            if blames_records(error):
                self._suspect(entries, error)
            self._owner.break_off(error)

    def _suspect(self, entries: list[OutboxEntry], error: kafka.KafkaError) -> None:
        """The library does not know this answer: perhaps one of the records is to blame."""
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
    """What goes to one topic.

    Args:
        owner: the producer.
        name: of the topic.
        cluster: what the library knows of it.
        choice: where the partitions of records without key come from.
        stretch: bytes without key that go to one partition before the next is chosen.
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
        """Put a publish in line for its partition."""
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
        # Whole batches for one partition, and not a piece of each for all.
        self._stuck += len(record.value or b"")
        if self._sticky is None or self._stuck > self._most:
            others = [queue for queue in self.queues if queue is not self._sticky]
            led = self._cluster.available_partitions_for_topic(self.name) or ()
            usable = [queue for queue in others if queue.partition in led]
            self._sticky = self._choice.choice(usable or others)
            self._stuck = 0
        return self._sticky

    def grow(self, count: int) -> None:
        """There are so many partitions."""
        known = len(self.queues)
        self.queues += [
            PartitionQueue(self._owner, self.name, number) for number in range(known, count)
        ]
        unplaced, self.unplaced = self.unplaced, deque()
        for entry in unplaced:
            self.write(entry, entry.note)

    def start(self) -> None:
        """Send what waits."""
        for queue in self.queues:
            queue.start()

    def on_batch(self, queue: PartitionQueue) -> None:
        """A batch of the queue is on its way."""
        if queue is self._sticky:
            self._sticky = None

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What is at work."""
        found: list[asyncio.Task[Any]] = [
            queue.task for queue in self.queues if queue.task is not None
        ]
        return found
