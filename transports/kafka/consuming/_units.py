"""The units of one subscription: what is committed in transactions of its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from aiokafka.structs import TopicPartition

from ...._limited_log import LimitedLog
from ...._logs import get_logger
from ....errors import ConfigurationError
from ..._contract import Subscription
from .._aiokafka_private import client_of, find_topics, topic_settings
from .._bus_context import BusContext
from .._errors import GroupRefused, describe
from .._own_topic_settings import DECISIVE_SETTINGS, unfit_settings
from .._topic_facts import TopicFacts, topic_facts
from .._topic_names import Selection
from ..producing._partition_queue import UNANSWERED_FOR
from ..producing._transactions import TransactionalProducer, TransactionFailed
from ._assignment import Assignment
from ._changelog import restore
from ._snapshots import PartitionStates, Snapshot, SnapshotLost
from ._unit_commits import UnitCommits
from ._unit_tracker import PartitionUnit, RefusedOutcomes, UnitTracker

__all__ = ["Units"]

_log = get_logger(__name__)

_FOUND_WITHIN = 5.0
_MANY_FAILURES = 3
# Seconds after the longest pause within which what was not committed has come again.
_COMES_AGAIN = 30.0


class Units:
    """Makes the trackers and commits of partitions that are committed with their outcomes.

    A unit has the partitions of all topics that have one number. So whoever has one of them has to
    have all of them, and if states of keys are kept, all topics need as many partitions.

    Args:
        context: that of the bus.
        subscription: whose partitions they are.
        group: the id of its consumer group.
    """

    def __init__(self, context: BusContext, subscription: Subscription, group: str) -> None:
        self._context = context
        self._group = group
        self._name = subscription.name
        self._client_id = context.surroundings.identity.client_id_of(subscription.name)
        # By the numbers of units, as are states; units are those of the latest assignment.
        self._refusals: defaultdict[int, RefusedOutcomes] = defaultdict(RefusedOutcomes)
        self._units: dict[int, PartitionUnit] = {}
        self._topics: Sequence[str] = ()
        # Where a partition was begun, if nothing of it is committed yet.
        self._first: dict[TopicPartition, int] = {}
        self._backoff = context.config.backoff(context.surroundings.environment)
        self._log = LimitedLog(_log)
        # In a row, with the times of the loop of the last one, and of when the first one began.
        self._failures = 0
        self._failure = ""
        self._failed_at = self._failing_since = 0.0
        self._loop = asyncio.get_running_loop()
        # Why the states of keys could not be read, as text.
        self._not_restored = ""
        self._keeps_states = subscription.keeps_states
        self._on_restored = subscription.on_restored
        self._states: dict[int, PartitionStates] = {}
        self._changelog = ""
        if subscription.keeps_states:
            application = context.surroundings.identity.application
            self._changelog = context.names.states(application, subscription.name)
        # Partitions of which nothing is committed.
        self._without_offset: set[TopicPartition] = set()
        # Whether it was said that its settings may not be seen.
        self._said_unknown = False
        # That of the changelog whose states these are; empty before one was read.
        self._changelog_id = ""
        self._snapshot = self._snapshot_in(context) if subscription.keeps_states else None
        # The epochs of its leaders, by partition, or of former ones.
        self._epochs: Mapping[int, int] = {}
        # Ends the current assignment when what is known of the states is lost.
        self._on_failed: Callable[[TransactionFailed], None] = lambda error: None
        self._restoring: asyncio.Task[None] | None = None

    def _snapshot_in(self, context: BusContext) -> Snapshot | None:
        folder = context.surroundings.folder
        if folder is None:
            return None
        name = f"{self._client_id}.snapshot"
        return Snapshot(lambda: folder() / name, self._log, self._lost)

    def _lost(self, error: SnapshotLost) -> None:
        """Have all states read again, as nothing of what was not in memory is known any more."""
        for states in self._states.values():
            states.forget()
        self._on_failed(TransactionFailed(error))

    async def close(self) -> None:
        """Write what is left to the snapshot, and release it."""
        await self.stop_restoring()
        if self._snapshot is not None:
            await self._snapshot.close()

    def abandon(self) -> None:
        """Release the snapshot as it is, after everything that uses it was killed."""
        if self._snapshot is not None:
            self._snapshot.abandon()

    def check(self, selection: Selection) -> None:
        """Note which topics the subscription reads; raise ConfigurationError for a pattern."""
        self._topics = selection.names
        if selection.pattern is None:
            return
        raise ConfigurationError(
            f"actor {self._name!r} commits in transactions and reads all topics of the cluster"
            " whose names match a pattern: give it topics that are known by their names, for"
            " example by binding its addresses to them with KafkaConfig(topics=...)"
        )

    def check_assignment(self, consumer: Any, assigned: Collection[TopicPartition]) -> None:
        """Raise unless all partitions with one number are assigned together.

        Raises:
            GroupRefused: whoever assigns the partitions of the group does not see to that.
            ConfigurationError: states are kept, and a topic has more partitions than another one.
        """
        cluster = client_of(consumer).cluster
        if self._keeps_states and assigned:
            self._count(cluster)
        held = set(assigned)
        for number in sorted({place.partition for place in held}):
            missing = [
                topic
                for topic in self._topics
                if number in (cluster.partitions_for_topic(topic) or ())
                and TopicPartition(topic, number) not in held
            ]
            if missing:
                there = [place.topic for place in held if place.partition == number]
                raise GroupRefused(
                    f"group {self._group!r} has assigned partition {number} of"
                    f" {_named(sorted(there))} to this member, and not that of {_named(missing)}:"
                    f" actor {self._name!r} commits partitions with one number together, so one"
                    " member has to have them all. Another program, or an earlier version of this"
                    " one, assigns the partitions of the group: stop it, or give the application"
                    " or the actor another name",
                    may_pass=True,
                )

    def _count(self, cluster: Any) -> int:
        """Return how many partitions each topic has; raise ConfigurationError if they differ."""
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in self._topics}
        if len({*counts.values()}) > 1:
            found = ", ".join(f"{topic!r} has {count}" for topic, count in counts.items())
            raise ConfigurationError(
                f"the topics of actor {self._name!r} have different numbers of partitions"
                f" ({found}), and the state of a key belongs to the partitions with one number:"
                " give all of them as many, or use several actors. If there are states already"
                " give the actor another name, too, and copy them with spa-dat states copy"
            )
        return max(counts.values(), default=0)

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being handled, or from being committed, as text; or None."""
        # Another thread may look at it.
        lasting = self._loop.time() - self._failing_since >= UNANSWERED_FOR
        if self._failures and (lasting or self._failures >= _MANY_FAILURES) and self._tries:
            return f"nothing is committed, as transactions fail: {self._failure}"
        everything = self._states.copy()
        waiting = [place for place, states in everything.items() if not states.restored]
        if self._restoring is None or not waiting:
            return None
        why = f" ({self._not_restored})" if self._not_restored else ""
        return (
            f"restoring the states of keys in {len(waiting)} of {len(everything)} partitions from"
            f" {self._changelog!r}{why}"
        )

    @property
    def _tries(self) -> bool:
        """Whether something waits to be committed since a transaction has failed.

        What was read comes again; but somebody who had a dead letter replayed may have given up, or
        the partitions have gone to another member.
        """
        patience = self._context.config.backoff_max + _COMES_AGAIN
        return self._loop.time() < self._failed_at + patience or any(
            unit.busy for unit in tuple(self._units.values())
        )

    def has_failed(self, error: TransactionFailed) -> float:
        """Note that a transaction has failed; return the seconds until the next attempt."""
        self._failures += 1
        self._failed_at = self._loop.time()
        if self._failures == 1:
            self._failing_since = min(error.began, self._failed_at)
        self._failure = describe(error.__cause__ or error)
        # It may be over already, and what was read is soon handled again.
        return 0.0 if self._failures == 1 else self._backoff.next_delay()

    def flush(self) -> None:
        """Log what was left out, at the end."""
        self._log.flush()

    def _has_committed(self) -> None:
        if self._failures:
            self._failures = 0
            self._backoff.reset()

    def tracker(
        self,
        assignment: Assignment,
        partition: TopicPartition,
        on_room: Callable[[TopicPartition], None],
    ) -> UnitTracker:
        """Return the tracker of a partition in a new assignment."""
        number = partition.partition
        unit = self._units.get(number)
        if unit is None or unit.epoch != assignment.epoch:
            states = None
            if self._keeps_states:
                states = self._states.get(number)
                if states is None:
                    states = self._states[number] = PartitionStates(self._snapshot, number)
            unit = PartitionUnit(assignment, number, self._refusals[number], states)
            self._units[number] = unit
        return UnitTracker(assignment, partition, on_room, unit)

    def commits(
        self, assignment: Assignment, on_failed: Callable[[TransactionFailed], None]
    ) -> UnitCommits:
        """Return what commits an assignment; forgets everything about other partitions."""
        numbers = {place.partition for place in assignment.trackers}
        for number in [*self._refusals]:
            if number not in numbers:
                del self._refusals[number]
        self._first = {at: it for at, it in self._first.items() if at in assignment.trackers}
        self._states = {at: it for at, it in self._states.items() if at in numbers}
        self._units = {at: it for at, it in self._units.items() if at in numbers}
        self._on_failed = on_failed
        context = self._context
        return UnitCommits(
            assignment,
            context.config,
            context.surroundings.stats,
            self._group,
            self._producer,
            self._has_committed,
            on_failed,
            self._changelog,
            self._log,
            lambda: self.trouble,
            context.surroundings.environment.now,
            lambda number: self._epochs.get(number, -1),
            context.surroundings.reached,
        )

    async def prepare(self, consumer: Any, assignment: Assignment) -> None:
        """Find the states of the keys in an assignment, which nobody else changes any more.

        Raises:
            ConfigurationError: the changelog does not fit the topic.
            OSError, aiokafka.errors.KafkaError: no answer.
        """
        for states in self._states.values():
            states.restored = False
        if not self._keeps_states or not assignment.trackers:
            return
        topics, name = self._context.topics, self._changelog
        client = client_of(consumer)
        count = self._count(client.cluster)
        topics.will_have(name, count)
        await topics.ensure([name], _FOUND_WITHIN)
        ((_, _, _, partitions),) = await find_topics(client, [name])
        if len(partitions) != count:
            raise ConfigurationError(
                f"topic {' and topic '.join(map(repr, self._topics))} has {count} partitions, and"
                f" {name!r}, which has the states of the keys, has {len(partitions)}: keys are in"
                " other partitions now than their states. Give the actor another name, and copy the"
                " states with spa-dat states copy, or begin with new ones; or give it a topic with"
                " as many partitions as before"
            )
        await self._check_settings(client)
        facts = await topic_facts(client, [name])
        self.hear(facts or {})
        await self._know_changelog(facts[name].id if facts and name in facts else "", count)

    @property
    def topics_to_watch(self) -> Sequence[str]:
        """The topics besides its own whose leaders it has to know."""
        return [self._changelog] if self._changelog else []

    def hear(self, facts: Mapping[str, TopicFacts]) -> None:
        """Take notice of who leads the partitions of topics."""
        if self._changelog in facts:
            self._epochs = facts[self._changelog].epochs

    async def _check_settings(self, client: Any) -> None:
        """Raise ConfigurationError if the changelog does not keep states."""
        name = self._changelog
        found = await topic_settings(client, [name], DECISIVE_SETTINGS)
        if found is None:
            return
        if name in found:
            unfit = unfit_settings(name, self._context.names, found[name])
            if unfit is not None:
                raise ConfigurationError(unfit)
        elif not self._said_unknown:
            self._said_unknown = True
            self._log.warning(
                "group %r: the cluster does not tell whether topic %r keeps the states of keys;"
                " allow DescribeConfigs in its access rules",
                self._group,
                name,
            )

    def begin_restoring(self, on_restored: Callable[[TopicPartition], None]) -> None:
        """Bring the states of the keys up to date, which may take long.

        Args:
            on_restored: called with each partition that is.
        """
        if self._states:
            self._not_restored = ""
            self._restoring = asyncio.ensure_future(self._restore(on_restored))

    async def stop_restoring(self) -> None:
        """Leave it at what is known by now."""
        restoring, self._restoring = self._restoring, None
        if restoring is not None:
            restoring.cancel()
            await asyncio.wait((restoring,))

    async def _restore(self, on_restored: Callable[[TopicPartition], None]) -> None:
        context = self._context
        backoff = context.config.backoff(context.surroundings.environment)

        def restored(states: PartitionStates) -> None:
            places = [tracker.partition for tracker in self._units[states.partition].trackers]
            for place in places:
                on_restored(place)
            self._on_restored()
            for place in places:
                self._look_for_offset(place, states)

        while True:
            left = {it.partition: it for it in self._states.values() if not it.restored}
            try:
                await self._find(left.values())
                await restore(
                    context.config,
                    self._client_id,
                    self._changelog,
                    left,
                    context.surroundings.environment.now(),
                    self._epochs,
                    restored,
                )
                return
            except SnapshotLost:
                # The assignment has failed with it, and another one is on its way.
                return
            except Exception as error:  # noqa: BLE001 (whatever the library raises, it goes on)
                self._not_restored = describe(error)
                self._log.warning(
                    "group %r: the states of keys cannot be read from %r, and are read again: %s",
                    self._group,
                    self._changelog,
                    self._not_restored,
                )
            await asyncio.sleep(backoff.next_delay())

    def _look_for_offset(self, place: TopicPartition, states: PartitionStates) -> None:
        """Log that what has led to the states may come again: they are committed with an offset."""
        if place in self._without_offset and states.seen:
            self._without_offset.discard(place)
            self._log.warning(
                "group %r: partition %d of topic %r has states of keys, and no offset is committed"
                " there any more: it has expired (offsets.retention.minutes of the brokers), or was"
                " deleted. Messages that these states are of may be handled once more",
                self._group,
                place.partition,
                place.topic,
            )

    async def _know_changelog(self, identifier: str, partitions: int) -> None:
        """Forget all states if they are those of another changelog."""
        if identifier != self._changelog_id:
            self._changelog_id = identifier
            for states in self._states.values():
                states.forget()
        if self._snapshot is not None and identifier:
            # What has no id cannot be told from another one with its name.
            await self._snapshot.open(identifier, partitions)

    async def _find(self, all_states: Iterable[PartitionStates]) -> None:
        """Begin with what is in the snapshot."""
        for states in all_states:
            if states.snapshot is None or states.position:
                continue
            forgotten = states.forgotten
            place = await states.snapshot.place(states.partition)
            if place is not None and states.forgotten == forgotten:
                states.position, states.at, states.epoch = place
                states.seen = states.position > 0

    def leave(self, assignment: Assignment) -> None:
        """Note where the partitions of an assignment begin again if nothing is committed."""
        for partition, tracker in assignment.trackers.items():
            if tracker.first >= 0:
                self._first.setdefault(partition, tracker.first)

    def take_first_places(
        self, consumer: Any, assignment: Assignment, gone: Collection[str]
    ) -> None:
        """Go back to where partitions began of which nothing is committed yet."""
        self._without_offset = {
            place
            for place, tracker in assignment.trackers.items()
            if tracker.committed < 0 and place not in self._first and place.topic not in gone
        }
        for partition, tracker in assignment.trackers.items():
            if partition.topic in gone:
                self._first.pop(partition, None)
            elif tracker.committed < 0 and partition in self._first:
                consumer.seek(partition, self._first[partition])

    def _producer(self, number: int) -> TransactionalProducer:
        context = self._context
        return TransactionalProducer(
            context.config,
            self._client_id,
            f"{self._group}.{number}",
            self._group,
            context.topics,
            context.surroundings.environment.random,
        )


def _named(topics: Sequence[str]) -> str:
    return ", ".join(map(repr, topics))
