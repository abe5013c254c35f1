"""The reply inbox on Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from .._contract import Surroundings
from .._envelope import Envelope, without_payload
from .._topics import COMMAND
from .._wire_formats import WireFormats
from ._aiokafka_private import (
    client_of,
    fetching_ends,
    keep_connections,
    stop_consumer,
)
from ._client_options import common_options, fetch_options, renewed_options
from ._config import KafkaConfig
from ._errors import REACHABLE_FROM_HERE, broker_at, connect_problem, describe
from ._reachability import MOVED, Reachability
from ._records import RecordCodec
from ._topic_facts import topic_facts
from .consuming._partition_guard import PartitionGuard
from .consuming._unreadable_reports import Troubles
from .producing._topic_creation import Topics

__all__ = ["KafkaReplyInbox"]

_log = get_logger(__name__)

_POLL = 1_000
_BURST = 64
_CLOSE_TIMEOUT = 2.0
_LOOK_AGAIN = 0.1
_LOST_AFTER = 2.0
_COMMAND = COMMAND.encode()


class KafkaReplyInbox:
    """Reads all partitions of the reply topic without a group, from the end at its start.

    It is never paused: replies complete futures and take no place in any mailbox. After an
    interruption it continues where it was.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        name: the name of the reply topic.
        token: the unguessable prefix of the correlations of this bus.
        codec: decodes the records.
        wires: the formats that replies may have.
        topics: recreates the topic if somebody has deleted it.
        surroundings: counters and randomness.

    Attributes:
        on_command: gets what operators ask of the application; None if nobody is to ask.
    """

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        name: str,
        token: str,
        codec: RecordCodec,
        wires: WireFormats,
        topics: Topics,
        surroundings: Surroundings,
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._name = name
        self._prefix = f"{token}/".encode()
        self.on_command: Callable[[Envelope], None] | None = None
        self._wires = wires
        self._codec = codec
        self._topics = topics
        self._stats = surroundings.stats
        self._log = LimitedLog(_log)
        self._backoff = config.backoff(surroundings.environment)
        self._positions: dict[TopicPartition, int] = {}
        # Of the topic that these are positions in; None if that is not known.
        self._id: str | None = None
        self._consumer: Any = None
        self._troubles = Troubles(f"reply inbox {name!r}", surroundings.stats)
        self._guard: PartitionGuard | None = None
        self._task: asyncio.Task[None] | None = None
        # The brokers that were asked for the end of the topic.
        self._asked = ""
        # Why there is no connection for replies.
        self._away: str | None = None
        self._on_reply: Callable[[str, Envelope], None] | None = None

    @property
    def trouble(self) -> str | None:
        """What keeps replies from being read, as text; None if nothing does."""
        return self._away or self._troubles.serious((self._name,))

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """Take a position at the end of the topic, which must exist; one attempt.

        Args:
            on_reply: called with the correlation, without the token, and the reply.

        Raises:
            OSError: no connection; TimeoutError is one.
            aiokafka.errors.KafkaError: the cluster refused.
        """
        self._on_reply = on_reply
        self._consumer = await self._connected()
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"kafka replies {self._client_id}"
        )

    async def close(self) -> None:
        """Stop reading. Never raises; bounded in time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        await self._drop()

    async def _connected(self) -> Any:
        consumer = AIOKafkaConsumer(
            **common_options(self._config, self._client_id),
            **fetch_options(self._config.window_bytes),
            group_id=None,
            enable_auto_commit=False,
            # Only applies if the position is gone: removed by retention, or the topic was
            # recreated. What is there then has not been seen.
            auto_offset_reset="earliest",
            # With read_committed anybody's open transaction would hold back all replies.
            isolation_level="read_uncommitted",
        )
        config = self._config
        renew = partial(renewed_options, config)
        keep_connections(client_of(consumer), renew, config.connect_timeout)
        # Replies are worthless later: better to lose some than all that come after them.
        guard = PartitionGuard(consumer, self._troubles, passes_over=True)
        self._asked = ""
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                await consumer.start()
                guard.start()
                await self._take_place(consumer)
        except TimeoutError as error:
            await stop_consumer(consumer, _CLOSE_TIMEOUT)
            if not self._asked:
                raise
            raise ConnectionError(
                f"the end of reply topic {self._name!r} cannot be found out: no answer from"
                f" {self._asked}, its leader, while others answer: {REACHABLE_FROM_HERE}"
            ) from error
        except BaseException:
            await stop_consumer(consumer, _CLOSE_TIMEOUT)
            raise
        self._guard = guard
        return consumer

    async def _take_place(self, consumer: Any) -> None:
        numbers = await self._partitions(consumer)
        places = [TopicPartition(self._name, number) for number in numbers]
        identifier = await self._current_id(consumer)
        if self._positions and identifier != self._id:
            self._positions = dict.fromkeys(self._positions, 0)
        self._id = identifier
        if not self._positions:
            # The library itself would determine the end with the first fetch, which may be
            # after the first reply.
            self._asked = _leaders(client_of(consumer).cluster, places)
            self._positions = await consumer.end_offsets(places)
        self._assign(consumer, places)

    def _assign(self, consumer: Any, places: Sequence[TopicPartition]) -> None:
        consumer.assign(places)
        for place in places:
            # Partitions that appear later are read from their start.
            consumer.seek(place, self._positions.setdefault(place, 0))

    def _look_for_more(self, consumer: Any, numbers: Iterable[int]) -> None:
        """Read the partitions that the topic has gained since."""
        places = [TopicPartition(self._name, number) for number in sorted(numbers)]
        if not consumer.assignment().issuperset(places):
            self._assign(consumer, places)
            if self._guard is not None:
                self._guard.reassigned(places)

    async def _current_id(self, consumer: Any) -> str | None:
        facts = await topic_facts(client_of(consumer), [self._name])
        return facts[self._name].id if facts and self._name in facts else self._id

    async def _is_another(self, consumer: Any) -> bool:
        """Return whether the topic was deleted and recreated; False if that cannot be known now."""
        try:
            return await self._current_id(consumer) != self._id
        except (OSError, kafka.KafkaError):
            return False

    async def _partitions(self, consumer: Any) -> list[int]:
        client = client_of(consumer)
        client.set_topics([self._name])
        while True:
            await client.force_metadata_update()
            found = client.cluster.partitions_for_topic(self._name)
            if found:
                return sorted(found)
            if self._name in client.cluster.unauthorized_topics:
                raise kafka.TopicAuthorizationFailedError(self._name)
            await asyncio.sleep(_LOOK_AGAIN)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                if self._consumer is None:
                    await self._topics.ensure([self._name], self._config.connect_timeout)
                    self._consumer = await self._connected()
                    self._away = None
                    began = loop.time()
                await self._read(self._consumer)
            # Whatever it is, it must not end the attempts to reconnect.
            except Exception as error:  # noqa: BLE001
                lasted = 0.0 if self._consumer is None else loop.time() - began
                self._stats["kafka.inboxes_lost"] += 1
                if isinstance(error, kafka.UnknownTopicOrPartitionError):
                    # A recreated topic counts from 0 again, and nothing in it has been seen. If it
                    # was only invisible, replies come again that nobody is waiting for any more.
                    self._positions = dict.fromkeys(self._positions, 0)
                delay = self._backoff.next_delay(lasted)
                problem = connect_problem(error, self._config.address, self._config.login.username)
                what = describe(error) if self._consumer is not None else problem.error
                self._away = f"replies cannot be read: {what}"
                _log.warning("reply inbox %r: %s; retrying in %.1f s", self._name, what, delay)
                await self._drop()
                await asyncio.sleep(delay)

    async def _read(self, consumer: Any) -> None:
        tasks = fetching_ends(consumer)
        loop = asyncio.get_running_loop()
        seen = loop.time()
        look = seen + self._config.topic_refresh
        guard, client = self._guard, client_of(consumer)
        reachability = Reachability(self._config, self._client_id, client)
        while True:
            fetched = await consumer.getmany(timeout_ms=_POLL)
            for place, records in fetched.items():
                for number, record in enumerate(records, 1):
                    self._hand_over(record)
                    self._positions[place] = record.offset + 1
                    if not number % _BURST:
                        # Lets waiting requesters send meanwhile.
                        await asyncio.sleep(0)
            if guard is not None and guard.busy:
                await guard.mend(consumer.resume)
                guard.look_again(consumer.resume)
            if not fetched and not await self._finds_a_broker(reachability) and guard is not None:
                guard.forget_silent_leaders()
            if loop.time() >= look:
                look = loop.time() + self._config.topic_refresh
                if guard is not None:
                    guard.look_for_leaders()
                    guard.look_for_silent_leaders()
                    guard.look_for_refusals()
                if await self._is_another(consumer):
                    raise kafka.UnknownTopicOrPartitionError(self._name)
            # The library would wait forever for a topic that was deleted.
            if numbers := client.cluster.partitions_for_topic(self._name):
                seen = loop.time()
                self._look_for_more(consumer, numbers)
            elif loop.time() - seen > _LOST_AFTER:
                raise kafka.UnknownTopicOrPartitionError(self._name)
            for task in tasks:
                if task.done():
                    task.result()
                    raise kafka.KafkaError("a task of the library has ended")

    async def _finds_a_broker(self, reachability: Reachability) -> bool:
        reachable = await reachability.reachable()
        if not reachable and await reachability.moved():
            raise ConnectionError(MOVED)
        why = reachability.obstacle
        self._away = None if why is None else f"replies cannot be read: {why}"
        return reachable

    def _hand_over(self, record: Any) -> None:
        try:
            # Whether it is late depends on who still waits, and not on the clocks of two hosts.
            reply = self._codec.decode_reply(record, self._prefix)
            own = None if reply is None else reply.correlation
            if reply is None or own is None:
                self._hand_over_other(record)
            elif self._on_reply is not None:
                correlation = own.decode("utf-8", "replace")
                if len(reply.payload) > self._config.largest_received:
                    reply = without_payload(reply)
                else:
                    reply = self._wires.of_reply(correlation).opened(reply)
                self._on_reply(correlation, reply)
        # Anybody may have sent a reply; it must not stop those behind it.
        except Exception:  # noqa: BLE001
            self._log.exception("a reply on %r could not be handed over", self._name)

    def _hand_over_other(self, record: Any) -> None:
        if self.on_command is not None and dict(record.headers).get("correlation_id") == _COMMAND:
            command = self._codec.decode_reply(record, b"")
            if command is not None:
                self.on_command(command)
        else:
            self._stats["replies.foreign"] += 1

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer, _CLOSE_TIMEOUT)


def _leaders(cluster: Any, places: Sequence[TopicPartition]) -> str:
    brokers = (cluster.broker_metadata(cluster.leader_for_partition(place)) for place in places)
    named = (broker_at(it.nodeId, it) for it in brokers if it is not None)
    return " and ".join(dict.fromkeys(named))
