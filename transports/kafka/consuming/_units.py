"""The units of one subscription: its partitions, each committed in transactions of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

from aiokafka.structs import TopicPartition

from ....errors import ConfigurationError
from ..._contract import Subscription
from .._bus_context import BusContext
from .._topic_names import Selection
from ..producing._transactions import TransactionalProducer, TransactionFailed
from ._assignment import Assignment
from ._unit_commits import UnitCommits
from ._unit_tracker import RefusedOutcomes, UnitTracker

__all__ = ["Units"]


class Units:
    """Makes the trackers and commits of partitions that are committed with their outcomes.

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
        self._refusals: defaultdict[TopicPartition, RefusedOutcomes] = defaultdict(RefusedOutcomes)
        # Where a partition was begun, if nothing of it is committed yet.
        self._first: dict[TopicPartition, int] = {}

    def check(self, selection: Selection) -> None:
        """Raise ConfigurationError unless the subscription reads one topic."""
        if len(selection.names) == 1 and selection.pattern is None:
            return
        found = ", ".join(map(repr, selection.names)) or "a pattern of names"
        raise ConfigurationError(
            f"actor {self._name!r} commits in transactions and reads several topics of the"
            f" cluster ({found}): give it one topic, for example by binding its addresses to"
            " one with KafkaConfig(topics=...), or use several actors"
        )

    def tracker(
        self,
        assignment: Assignment,
        partition: TopicPartition,
        on_room: Callable[[TopicPartition], None],
    ) -> UnitTracker:
        """Return the tracker of a partition in a new assignment."""
        return UnitTracker(assignment, partition, on_room, self._refusals[partition])

    def commits(
        self, assignment: Assignment, on_failed: Callable[[TransactionFailed], None]
    ) -> UnitCommits:
        """Return what commits an assignment; forgets everything about other partitions."""
        for partition in [*self._refusals]:
            if partition not in assignment.trackers:
                del self._refusals[partition]
        self._first = {at: it for at, it in self._first.items() if at in assignment.trackers}
        context = self._context
        return UnitCommits(
            assignment,
            context.config,
            context.surroundings.stats,
            self._group,
            self._producer,
            self._refusals,
            on_failed,
        )

    def leave(self, assignment: Assignment) -> None:
        """Note where the partitions of an assignment begin again if nothing is committed."""
        for partition, tracker in assignment.trackers.items():
            if tracker.first >= 0:
                self._first.setdefault(partition, tracker.first)

    async def take_places(
        self, consumer: Any, assignment: Assignment, gone: Collection[str]
    ) -> None:
        """Go to what is committed, as the library may have asked for it too early."""
        for partition, tracker in assignment.trackers.items():
            if partition.topic in gone:
                continue
            if tracker.committed >= 0:
                consumer.seek(partition, tracker.committed)
            elif partition in self._first:
                consumer.seek(partition, self._first[partition])

    def _producer(self, partition: TopicPartition) -> TransactionalProducer:
        context = self._context
        return TransactionalProducer(
            context.config,
            self._client_id,
            f"{self._group}.{partition.partition}",
            self._group,
            context.topics,
            context.surroundings.environment.random,
        )
