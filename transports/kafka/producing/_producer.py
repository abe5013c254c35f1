"""The producer: one producer of the library, from its start to its end."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer
from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from ....errors import ConfigurationError, NotAuthorised, UnknownTopic
from ..._outbox import Outbox, OutboxEntry
from .._aiokafka_private import (
    find_topics,
    forget_topic,
    keep_connections,
    on_connection_closed,
    overhear,
    producer_tasks,
    renounce_numbers,
)
from .._client_options import common_options, renewed_options
from .._config import KafkaConfig
from .._errors import translate
from .._reachability import Reachability
from .._records import Record
from .._throttling import Throttling
from ._closed_connections import ClosedConnections, ClosedOver
from ._closing import close_producer
from ._partition_queue import PartitionQueue, TopicQueue
from ._topic_creation import Topics

__all__ = ["ROOM_FOR_HEADERS", "Producer"]

ROOM_FOR_HEADERS = 65_536
"""The most bytes that key and headers of a message with the largest payload may take."""

_log = get_logger(__name__)

_UNKNOWN_AFTER = 3.0
# What a stranger's request takes of the window is not free before its reply has gone.
_NO_REPLY_TOPIC_AFTER = 0.5
_LOOK_AGAIN, _LOOK_AGAIN_FOR_REPLIES = 0.1, 0.25
_SETTLE_TIMEOUT = 5.0
_NO_LEADER, _LEADERLESS = -1, kafka.LeaderNotAvailableError.errno
# No broker answers that, so it stands for no answer.
_SILENT = kafka.BrokerNotAvailableError.errno


class Producer:
    """Sends what the outbox writes, until it breaks. Never reused.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        topics: creates topics that are missing.
        outbox: is told the outcomes of the publishes.
        suspects: publishes that must be sent in a separate batch. As long as there are any, one
            batch is in flight at a time.
        refusing: since when a partition accepts nothing (loop time), from any producer.
        choice: source of the partitions of records without a key.
        known: topics known to exist.
        on_trouble: called when a connection is lost or the producer breaks.
        throttling: is told when the cluster makes it wait.

    Attributes:
        broken: why it cannot continue; None while it can.
        accused: the publish over which a broker has closed the connection again and again, with
            nothing else in flight; None if there is none.
        losses: how many connections were lost or closed.
        reachability: tells whether the brokers that it knows are still there.
        trouble: what keeps the application's publishes from being accepted, as text; None if
            nothing does.
    """

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        topics: Topics,
        outbox: Outbox,
        suspects: set[OutboxEntry],
        refusing: dict[TopicPartition, float],
        choice: random.Random,
        known: Sequence[str],
        on_trouble: Callable[[], None],
        throttling: Throttling,
    ) -> None:
        self.broken: BaseException | None = None
        self.accused: OutboxEntry | None = None
        self.losses = 0
        self.trouble: str | None = None
        self.outbox = outbox
        self.suspects = suspects
        self.choice = choice
        self._config = config
        self._topics = topics
        self._on_trouble = on_trouble
        self._open = False
        self._topic_queues: dict[str, TopicQueue] = {}
        self._finding: dict[str, asyncio.Task[None]] = {}
        # The last errors, until there is a success.
        self._answers: dict[TopicPartition, int] = {}
        self._refusing = refusing
        self._closings = ClosedConnections()
        self._one_at_a_time = asyncio.Lock()
        self._library = AIOKafkaProducer(
            **common_options(config, client_id),
            enable_idempotence=True,
            acks="all",
            compression_type=config.compression,
            max_batch_size=config.max_batch,
            max_request_size=max(config.max_batch, config.max_payload + ROOM_FOR_HEADERS),
            linger_ms=0,
        )
        client = self._library.client
        keep_connections(client, partial(renewed_options, config), config.connect_timeout)
        self.reachability = Reachability(config, client_id, client)
        overhear(
            client,
            produced=self._hear,
            unanswered=self._hear_nothing,
            throttled=throttling.hear,
        )
        on_connection_closed(client, self._on_loss)
        client.cluster.add_listener(self._on_metadata)
        # As long as it knows no topic, the library requests all of them, every time.
        client.set_topics(known)

    # Life cycle.

    async def start(self) -> None:
        """Connect, and obtain an id as an idempotent producer.

        Raises:
            OSError: no connection; TimeoutError is one.
            aiokafka.errors.KafkaError: the cluster refused.
        """
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                await self._library.start()
        except BaseException:
            await self.close()
            raise
        self._open = True

    @property
    def open(self) -> bool:
        """Whether more may be handed to the library now."""
        return self._open

    def pause(self) -> None:
        """Stop handing over; the library keeps trying with what it has."""
        self._open = False
        self._refusing.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self.broken is None:
            self._open = True
            for topic in self._topic_queues.values():
                topic.start()

    def break_off(self, cause: BaseException) -> None:
        """Break off: what it has must be written again with another producer."""
        if self.broken is None:
            self.broken = cause
            self._open = False
            self._on_trouble()

    async def reachable(self) -> bool:
        """Return whether a broker can be reached; break off if the library cannot recover."""
        for task in producer_tasks(self._library):
            if task is not None and task.done():
                error = None if task.cancelled() else task.exception()
                self.break_off(error or kafka.KafkaError("a task of the library has ended"))
                return False
        self._look_for_lost_topics()
        return await self.reachability.reachable()

    def _look_for_lost_topics(self) -> None:
        """Fail publishes to topics that were deleted, or recreated with fewer partitions.

        The library would wait a whole request_timeout, and for the same partitions again and
        again.
        """
        now = asyncio.get_running_loop().time()
        for name, topic in self._topic_queues.items():
            there = 0 < self._partitions(name) >= len(topic.queues)
            if there or name in self._finding or not topic.tasks():
                topic.lost_at = None
            elif topic.lost_at is None:
                topic.lost_at = now
            elif now - topic.lost_at > _UNKNOWN_AFTER:
                self.break_off(kafka.UnknownTopicOrPartitionError(name))

    async def settle(self) -> None:
        """Wait briefly for the outcome of what the library has."""
        topics = [topic for name, topic in self._topic_queues.items() if self._partitions(name)]
        tasks = [
            queue.task
            for topic in topics
            for queue in topic.queues
            # Of what the broker closes its connections over there is no outcome.
            if queue.task is not None
            and TopicPartition(queue.name, queue.partition) not in self._closings
        ]
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_TIMEOUT)

    async def close(self) -> None:
        """End it at once. Never raises; bounded in time."""
        self._open = False
        tasks: list[asyncio.Future[Any]]
        tasks = [task for topic in self._topic_queues.values() for task in topic.tasks()]
        tasks += self._finding.values()
        for task in tasks:
            task.cancel()
        await close_producer(self._library, tasks)

    # Publishing.

    def write(self, entry: OutboxEntry) -> None:
        """Queue a publish; its note is its `Record`."""
        record: Record = entry.note
        topic = self._topic_queues.get(record.name)
        if topic is None:
            topic = self._topic_queues[record.name] = TopicQueue(
                self, record.name, self._library.client.cluster, self.choice, self._config.max_batch
            )
            self._look_up(topic)
        if not record.is_reply:
            topic.creates = True
        topic.write(entry, record)

    def new_batch(self) -> Any:
        return self._library.create_batch()

    async def send(self, batch: Any, name: str, partition: int) -> asyncio.Future[Any]:
        sent: asyncio.Future[Any]
        if not self.suspects:
            sent = await self._library.send_batch(batch, name, partition=partition)
            return sent
        # What is to blame shows only if nothing else is in the same request.
        await self._one_at_a_time.acquire()
        try:
            sent = await self._library.send_batch(batch, name, partition=partition)
        except BaseException:
            self._one_at_a_time.release()
            raise
        sent.add_done_callback(lambda _: self._one_at_a_time.release())
        return sent

    def _on_loss(self) -> None:
        self.losses += 1
        self._on_trouble()

    def _hear_nothing(self, places: Sequence[TopicPartition], closed: bool) -> None:
        closings = self._closings
        count = closings.unanswered(places, closed)
        if not closed:
            # Other brokers may well answer.
            for place in places:
                self._note(place, _SILENT)
        entries = [entry for place in places for entry in self._in_flight(place)]
        if self.broken is not None or not entries or not closings.is_suspicious(places):
            return
        size = sum(entry.note.size for entry in entries)
        if len(entries) > 1:
            what = f"{len(entries)} publishes ({size} bytes)"
        else:
            what = f"the publish to {entries[0].envelope.topic!r} ({size} bytes)"
        if len(entries) > 1 or entries[0] not in self.suspects:
            self.suspects.update(entries)
            for entry in entries:
                entry.add_done_callback(self.suspects.discard)
        elif closings.is_proof(places):
            self.accused = entries[0]
        else:
            return
        self.break_off(ClosedOver(count, what))

    def _in_flight(self, place: TopicPartition) -> list[OutboxEntry]:
        topic = self._topic_queues.get(place.topic)
        queues = [] if topic is None else topic.queues[place.partition : place.partition + 1]
        return [entry for queue in queues for entry in queue.in_flight]

    def _hear(self, topics: Any) -> None:
        for topic, partitions in topics:
            for number, code, *_ in partitions:
                self._closings.answered(topic, number)
                if code or self._answers:
                    self._note(TopicPartition(topic, number), code)

    def _note(self, place: TopicPartition, code: int) -> None:
        if code:
            self._answers[place] = code
            self._refusing.setdefault(place, asyncio.get_running_loop().time())
        else:
            self._answers.pop(place, None)
            self._refusing.pop(place, None)

    def look_at_queues(self) -> None:
        """Find out what keeps partitions from accepting anything; the library does not say."""
        self.trouble = None
        now = asyncio.get_running_loop().time()
        leader = self._library.client.cluster.leader_for_partition
        for queue in [queue for topic in self._topic_queues.values() for queue in topic.queues]:
            place = TopicPartition(queue.name, queue.partition)
            if leader(place) == _NO_LEADER and queue.task is not None:
                self._note(place, _LEADERLESS)
            elif queue.task is None or self._answers.get(place) == _LEADERLESS:
                self._note(place, 0)
            code = self._answers.get(place, 0)
            since = self._refusing.get(place, now) if code else now
            trouble = queue.refused(code, now - since) or queue.unanswered(now)
            self.trouble = trouble or self.trouble

    def last_refusal(self, name: str, partition: int) -> int:
        return self._answers.pop(TopicPartition(name, partition), -1)

    def take_back(self, name: str, partition: int, count: int) -> None:
        # The cluster expects the sequence numbers of the refused records from the next ones. The
        # queue hands over one batch at a time, so nothing else has been numbered.
        place = TopicPartition(name, partition)
        self._note(place, 0)
        renounce_numbers(self._library, place, count)

    def on_batch(self, queue: PartitionQueue) -> None:
        self._topic_queues[queue.name].on_batch(queue)

    # Topics.

    async def find(self, name: str) -> None:
        """Wait until the topic is known to the library.

        Raises:
            UnknownTopic: it does not exist, and was not created.
            NotAuthorised: the cluster does not let us see it.
            ConfigurationError: it cannot be created as configured.
        """
        if self._partitions(name):
            return
        task = self._finding.get(name)
        if task is None:
            task = asyncio.ensure_future(self._find(name))
            self._finding[name] = task
            task.add_done_callback(lambda _: self._finding.pop(name, None))
        await asyncio.wait((task,))
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                raise error

    def _partitions(self, name: str) -> int:
        return len(self._library.client.cluster.partitions_for_topic(name) or ())

    async def _find(self, name: str) -> None:
        client = self._library.client
        loop = asyncio.get_running_loop()
        await self._see_reply_topic(name)
        deadline = loop.time() + _UNKNOWN_AFTER
        created = False
        client.add_topic(name)
        while True:
            asked = await client.force_metadata_update()
            if self._partitions(name):
                return
            if name in client.cluster.unauthorized_topics:
                forget_topic(client, name)
                error = kafka.TopicAuthorizationFailedError(name)
                raise translate(error, f"publish to topic {name!r}") from error
            if not asked or not self._open:
                # Only what a cluster says counts.
                deadline = loop.time() + _UNKNOWN_AFTER
            elif not created and self._may_create(name):
                try:
                    await self._topics.ensure([name], _UNKNOWN_AFTER)
                    created = True
                except (kafka.KafkaError, OSError):
                    deadline = loop.time() + _UNKNOWN_AFTER
            elif loop.time() > deadline:
                forget_topic(client, name)
                allow = "" if self._topics.may_create(name) else ", or give create_topics='all'"
                missing = f"topic {name!r} does not exist on the cluster"
                raise UnknownTopic(f"{missing}: create it{allow}")
            await asyncio.sleep(_LOOK_AGAIN)

    async def _see_reply_topic(self, name: str) -> None:
        """Wait until a topic that only requesters name exists; return at once for others.

        The library requests metadata in a way that makes brokers create what is missing, if they
        have auto-creation. Strangers must not be able to create any number of topics.

        Raises:
            UnknownTopic: it does not exist.
        """
        client = self._library.client
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _NO_REPLY_TOPIC_AFTER
        while not self._is_ours(name):
            try:
                found = await find_topics(client, [name])
            except (kafka.KafkaError, OSError):
                # Only what a cluster says counts.
                deadline = loop.time() + _NO_REPLY_TOPIC_AFTER
            else:
                missing = kafka.UnknownTopicOrPartitionError.errno
                if all(code != missing for code, *_ in found):
                    return
                if loop.time() > deadline:
                    text = f"topic {name!r}, which only requesters name, does not exist on the"
                    raise UnknownTopic(f"{text} cluster: create it")
            await asyncio.sleep(_LOOK_AGAIN_FOR_REPLIES)

    def _is_ours(self, name: str) -> bool:
        """Return whether anything but a reply goes there."""
        return name in self._topic_queues and self._topic_queues[name].creates

    def _may_create(self, name: str) -> bool:
        return self._is_ours(name) and self._topics.may_create(name)

    def _look_up(self, topic: TopicQueue) -> None:
        count = self._partitions(topic.name)
        if count:
            topic.grow(count)
            return
        task = asyncio.ensure_future(self.find(topic.name))
        topic.finding = task
        task.add_done_callback(lambda task: self._on_looked_up(topic, task))

    def _on_looked_up(self, topic: TopicQueue, task: asyncio.Task[None]) -> None:
        topic.finding = None
        if task.cancelled() or self.broken is not None:
            return
        error = task.exception()
        if error is None:
            topic.grow(self._partitions(topic.name))
            return
        # The next publish asks again.
        del self._topic_queues[topic.name]
        if isinstance(error, (UnknownTopic, NotAuthorised, ConfigurationError)):
            for entry in topic.unplaced:
                self.outbox.fail(entry, copy.copy(error))
        else:
            self.break_off(error)

    def _on_metadata(self, cluster: Any) -> None:
        for topic in self._topic_queues.values():
            count = self._partitions(topic.name)
            if count > len(topic.queues) > 0:
                topic.grow(count)
