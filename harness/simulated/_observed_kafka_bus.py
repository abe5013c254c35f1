"""The bus of an application on a simulated Kafka cluster, and what it has left to do there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka.structs import TopicPartition

from ...transports import Envelope, KafkaConfig, Receiver, Subscription, Surroundings
from ...transports.kafka._bus import KafkaBus
from ...transports.kafka._consumer import KafkaConsumer
from ...transports.kafka._records import Record
from ...transports.kafka._topic_names import Names
from ...transports.kafka.consuming._group_member import GroupMember
from ...transports.kafka.consuming._groupless_reader import Reader
from ...transports.kafka.consuming._unit_commits import UnitCommits
from ..kafka_cluster import RequestRefused
from ..loop._tasks_and_timers import OWNER

if TYPE_CHECKING:
    from ...transports.kafka._topic_names import Selection
    from ..kafka_cluster import Cluster

__all__ = ["ObservedKafkaBus", "Offsets"]

Offsets: TypeAlias = dict[tuple[str, str, int], int]
"""The offset after the last record concerned, by group, topic and partition."""

_STABLE = "Stable"


class ObservedKafkaBus(KafkaBus):
    """The Kafka bus of one life of an application, with what it has under way made visible.

    Args:
        config: leads to the cluster.
        names: translates addresses.
        surroundings: the application's.
        cluster: the simulated one.

    Attributes:
        owner: the life of the application that opened it.
        gone: whether it was closed, or its application killed.
        request_timeout: seconds that it waits for an answer.
    """

    def __init__(
        self, config: KafkaConfig, names: Names, surroundings: Surroundings, cluster: Cluster
    ) -> None:
        super().__init__(config, names, surroundings)
        self.owner = OWNER.get()
        self.gone = False
        self.request_timeout = config.request_timeout
        self._cluster = cluster
        self._started = False
        self._consumers: list[KafkaConsumer] = []
        self._make(self._own, 1)

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        await super().start(on_reply)
        self._started = True

    def consumer(self, subscription: Subscription, receiver: Receiver) -> KafkaConsumer:
        self._make(self._names.selection(subscription.filters).names, self._config.partitions)
        consumer = super().consumer(subscription, receiver)
        self._consumers.append(consumer)
        sessions = consumer._sessions
        if isinstance(sessions, GroupMember) and sessions._units is not None and self.owner:
            self.owner.files.append(sessions._units.abandon)
        return consumer

    def _encode(self, envelope: Envelope, *, parking: bool = False) -> Record:
        record = super()._encode(envelope, parking=parking)
        if not record.is_reply:
            self._make((record.name,), self._config.partitions)
        return record

    def _make(self, topics: Iterable[str], partitions: int) -> None:
        """Create missing topics, as an administrator would have done beforehand."""
        for topic in topics:
            if topic not in self._cluster.topics:
                # A topic that cannot be created is refused to whoever uses it, as in production.
                with contextlib.suppress(RequestRefused):
                    self._cluster.create_topic(topic, partitions)

    async def close(self) -> None:
        self.gone = True
        await super().close()

    def abandon(self) -> None:
        """Drop it as if its process had ended; the remains of the client library must not warn."""
        self.gone = True
        inboxes = [self._inbox, *self._lone._open]
        clients: list[Any] = [inbox._consumer for inbox in inboxes]
        for consumer in self._consumers:
            sessions: Any = consumer._sessions
            clients.append(sessions._consumer)
            if isinstance(sessions, GroupMember):
                # Also those of an assignment that is ending, or of a member that is leaving.
                for commits in sessions._rebalances._open:
                    clients += [unit.producer._library for unit in commits._units]
        producer = self._publisher._producer
        if producer is not None:
            clients.append(producer._library)
        for client in clients:
            if client is not None:
                client._closed = True

    # What goes on.

    def settled(self) -> Offsets:
        """Return how far its consumers have settled what they received, committed or not."""
        found: Offsets = {}
        for member in self._members():
            assignment = member.assignment
            if assignment is not None and not assignment.ended and self._is_in_group(member):
                for place, tracker in assignment.trackers.items():
                    found[member._group, place.topic, place.partition] = tracker.commit_at
        return found

    def ends(self) -> Offsets:
        """Return the ends of the partitions that its consumers read as members of groups."""
        return {
            (member._group, topic, partition): end
            for member in self._members()
            for topic, partition, end in self._ends(member._selection)
        }

    def under_way(
        self, connected: Callable[[str], bool], settled: Offsets, to_commit: Offsets
    ) -> str | None:
        """Describe what is unfinished; None if nothing is.

        Args:
            connected: tells whether the client with this id has a connection.
            settled: how far the members of groups have settled what they received.
            to_commit: how far that also has to be committed.
        """
        pending = len(self._publisher.outbox)
        if pending:
            return f"{self._client_id}: {pending} publishes are not confirmed"
        if not self._started:
            return None
        inbox = self._inbox
        if not self.connected or inbox._consumer is None or not connected(self._client_id):
            return f"{self._client_id}: it is to reconnect"
        topics = self._cluster.topics
        for place, position in inbox._positions.items():
            if place.topic in topics and position < self._end(place.topic, place.partition):
                return f"{self._client_id}: replies are on their way"
        for consumer in self._receiving():
            problem = self._problem(consumer._sessions, connected, settled, to_commit)
            if problem is not None:
                return f"{consumer._sessions.identifier}: {problem}"
        return None

    def _receiving(self) -> list[Any]:
        # One that is ending has clients until that is over.
        self._consumers = [
            consumer
            for consumer in self._consumers
            if not consumer._sessions.closed or consumer._sessions._consumer is not None
        ]
        return [consumer for consumer in self._consumers if not consumer._sessions.closed]

    def _members(self) -> Iterator[GroupMember]:
        for consumer in self._receiving():
            if isinstance(consumer._sessions, GroupMember):
                yield consumer._sessions

    def _is_in_group(self, member: GroupMember) -> bool:
        """Tell whether the group knows it; a member that was removed finds out later."""
        group = self._cluster.groups.get(member._group)
        return group is not None and any(
            known.client_id == member.identifier for known in group.members.values()
        )

    def _problem(
        self, sessions: Any, connected: Callable[[str], bool], settled: Offsets, to_commit: Offsets
    ) -> str | None:
        ready = sessions._ready
        if not ready.done():
            return "it is starting" if sessions._task is not None else None
        if ready.cancelled() or ready.exception() is not None or sessions.stopped:
            return None
        if sessions._changes:
            return "its filters are to change"
        if not sessions._filters:
            return None
        assignment = sessions.assignment
        if sessions._consumer is None or not connected(sessions.identifier):
            return "it is to reconnect"
        if assignment is not None and assignment.unsettled > 0:
            return f"{assignment.unsettled} messages are not settled"
        if isinstance(sessions, GroupMember):
            return self._problem_of_member(sessions, settled, to_commit)
        return self._problem_of_reader(sessions)

    def _problem_of_member(
        self, member: GroupMember, settled: Offsets, to_commit: Offsets
    ) -> str | None:
        name = member._group
        group = self._cluster.groups.get(name)
        assignment = member.assignment
        if assignment is None or assignment.ended or group is None or group.state != _STABLE:
            return f"group {name!r} is assigning its partitions"
        committed = self._cluster.committed(name)
        unsettled = uncommitted = 0
        for topic, partition, end in self._ends(member._selection):
            place = name, topic, partition
            kept = max(committed.get((topic, partition), 0), 0)
            unsettled += max(0, end - max(kept, settled.get(place, 0)))
            uncommitted += max(0, to_commit.get(place, 0) - kept)
        if unsettled:
            return f"group {name!r} has {unsettled} messages that are not settled"
        if uncommitted:
            return f"group {name!r} has {uncommitted} messages that are not committed"
        commits = member._rebalances.committer
        if isinstance(commits, UnitCommits) and commits.pending:
            return f"group {name!r} has effects that are not committed"
        return None

    def _problem_of_reader(self, reader: Reader) -> str | None:
        places = reader._places
        for topic, partition, end in self._ends(reader._selection):
            if end > places.get(TopicPartition(topic, partition), 0):
                return f"messages on topic {topic!r} are on their way"
        return None

    def _ends(self, selection: Selection) -> Iterator[tuple[str, int, int]]:
        """Yield the partitions of the selected topics, with the end of what can be read."""
        names, pattern, _ = selection
        for topic, stored in self._cluster.topics.items():
            if topic in names or (pattern is not None and pattern.match(topic) is not None):
                for partition in range(len(stored.partitions)):
                    yield topic, partition, self._end(topic, partition)

    def _end(self, topic: str, partition: int) -> int:
        return self._cluster.readable_end(topic, partition)
