"""The groupless reader: consuming all partitions without a group, from now on."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from ...._moments import milliseconds
from ..._contract import Receiver, Subscription
from .._aiokafka_private import (
    client_of,
    find_topics,
    keep_connections,
    overhear,
    separate_fetches,
    stop_consumer,
)
from .._bus_context import BusContext
from .._topic_facts import TopicFacts, recreated, topic_facts
from ._assignment import Assignment
from ._committable_offsets import CountingTracker
from ._consumer_sessions import ConsumerSessions, SessionState
from ._fetching import Fetched
from ._leader_epochs import EndsLost, report_lost_ends
from ._partition_guard import PartitionGuard
from ._start_positions import first_since

__all__ = ["Reader"]

_STOP_TIMEOUT = 3.0


class Reader(ConsumerSessions):
    """Reads every partition of its topics by itself.

    It starts at the end of partitions that exist when a filter is put into force, or with the time
    to which the subscription is rewound, and at the beginning of those that appear later. Its
    position is kept in memory and outlives connections; nothing is committed.
    """

    def __init__(self, context: BusContext, subscription: Subscription, receiver: Receiver) -> None:
        super().__init__(context, subscription, receiver)
        # A single one: what was handed out stays handed out, whatever happens to the connection.
        self._assignment = Assignment(1)
        # The next offset of each partition, including those that are not visible at the moment.
        self._places: dict[TopicPartition, int] = {}
        # Up to where partitions that have lost their end have it, until they are read from there.
        self._lost: dict[TopicPartition, int] = {}
        # Of the topics, as far as they are known.
        self._ids: dict[str, str] = {}
        # Existing partitions of these start at their end; later ones at their beginning.
        self._new = dict.fromkeys(subscription.filters)

    @property
    def assignment(self) -> Assignment:
        return self._assignment

    def _added(self, pattern: str) -> None:
        self._new[pattern] = None

    async def _session(self) -> None:
        if not await self._unless_interrupted(self._reach()):
            return
        consumer = self._consumer = AIOKafkaConsumer(
            # Only applies if its position is gone.
            **self._options(),
            group_id=None,
            auto_offset_reset="earliest",
        )
        keep_connections(client_of(consumer), self._renewed_options, self._config.connect_timeout)
        separate_fetches(client_of(consumer))
        overhear(client_of(consumer), fetched=self._hear)
        guard = self._guard = PartitionGuard(consumer, self._troubles)
        try:
            if not await self._unless_interrupted(self._connect(consumer, guard)):
                return
            pauses = self._pauses = self._pauses_for(consumer, guard)
            fetching = self._fetching(consumer, guard, pauses)
            loop = asyncio.get_running_loop()
            while not self.closed:
                changes = [*self._changes]
                self._interrupt.clear()
                if not await self._unless_interrupted(self._look_around(consumer)):
                    continue
                self._in_force(changes)
                if consumer.assignment():
                    await fetching.run(self._interrupt, loop.time() + self._config.topic_refresh)
                else:
                    await self._interrupted(self._config.topic_refresh)
        finally:
            await stop_consumer(consumer, _STOP_TIMEOUT)
            self._consumer = self._pauses = None

    async def _connect(self, consumer: Any, guard: PartitionGuard) -> None:
        async with asyncio.timeout(self._config.connect_timeout):
            await consumer.start()
            guard.start()
            await self._check_rights(client_of(consumer))

    async def _look_around(self, consumer: Any) -> None:
        """Read all existing partitions of the wanted topics."""
        selection, patterns = self._selection, [*self._new]
        new = self._names.selection(patterns)
        async with asyncio.timeout(self._config.request_timeout):
            cluster = await client_of(consumer).fetch_all_metadata()
            # Without any of them there is nothing to fetch.
            self._look_for_topics(cluster, await self._forbidden(client_of(consumer), cluster))
            wanted = [
                TopicPartition(topic, number)
                for topic in sorted(cluster.topics())
                if selection.selects(topic)
                for number in sorted(cluster.partitions_for_topic(topic) or ())
            ]
            facts = await topic_facts(client_of(consumer), {tp.topic for tp in wanted}) or {}
            await self._look_for_lost_ends(client_of(consumer))
            fresh = [tp for tp in wanted if tp not in self._places]
            at_the_end = [tp for tp in fresh if new.selects(tp.topic)]
            ends = await consumer.end_offsets(at_the_end) if at_the_end else {}
            if self._subscription.rewind_to is not None:
                since = milliseconds(self._subscription.rewind_to)
                ends = await first_since(consumer, ends, since)
        for pattern in patterns:
            self._new.pop(pattern, None)
        kept = {tp: n for tp, n in self._places.items() if selection.selects(tp.topic)}
        self._places = kept | dict.fromkeys(fresh, 0) | ends
        lost, self._lost = self._lost, {}
        self._places |= {tp: end for tp, end in lost.items() if tp in kept}
        gone = self._start_over(facts)
        if gone or lost or set(wanted) != consumer.assignment():
            self._assign(consumer, wanted)

    async def _forbidden(self, client: Any, cluster: Any) -> Container[str]:
        """Return the wanted topics that we may not see: only who asks for them by name is told."""
        hidden = [name for name in self._selection.names if not cluster.partitions_for_topic(name)]
        if not hidden:
            return ()
        forbidden = kafka.TopicAuthorizationFailedError.errno
        return {name for code, name, *_ in await find_topics(client, hidden) if code == forbidden}

    async def _look_for_lost_ends(self, client: Any) -> None:
        """Note the partitions that have less than was read of them, and up to where they do."""
        epochs = self._assignment.epochs
        try:
            trusted = await epochs.verify(client)
        except EndsLost as error:
            # It is told only once, and what is asked of brokers after it may fail.
            for partition, end in error.ends.items():
                self._lost[partition] = min(end, self._lost.get(partition, end))
            epochs.forget(error.ends.keys())
            self._dispatcher.forget_topics({tp.topic for tp in error.ends})
            report_lost_ends(f"consumer {self.identifier!r}", error.ends, self._stats)
            return
        assert self._pauses is not None
        self._pauses.resume(*trusted)

    def _start_over(self, facts: Mapping[str, TopicFacts]) -> list[str]:
        """Read topics that were deleted and recreated from their start, and return them."""
        gone = recreated(self._ids, facts)
        if gone:
            self._forget_recreated(gone)
            self._reported.clear()
            self._places |= {tp: 0 for tp in self._places if tp.topic in gone}
        self._ids |= {name: topic.id for name, topic in facts.items()}
        return gone

    def _assign(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        trackers = self._assignment.trackers
        for partition in partitions:
            trackers.setdefault(partition, CountingTracker(self._assignment, partition))
        assert self._guard is not None
        self._guard.reassigned(partitions)
        if partitions:
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, self._places[partition])
        else:
            consumer.unsubscribe()

    def _take(self, fetched: Fetched) -> None:
        for partition, records in fetched.items():
            if self._state is not SessionState.RECEIVING:
                return
            self._places[partition] = records[-1].offset + 1
            if self._at_most_once:
                self._dispatcher.hand_out_untracked(self._assignment, records)
            else:
                self._dispatcher.hand_out(self._assignment, partition, records)
