"""Start positions: where a member of a group begins or continues in its partitions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from .._aiokafka_private import client_of
from .._offset_reset import start_time
from .._topic_facts import TopicFacts, recreated, topic_facts
from ._assignment import Assignment
from ._group_requests import commit, committed, partitions

__all__ = ["compare", "recreated_since", "take_places"]


async def compare(consumer: Any, assignment: Assignment) -> set[str]:
    """Check whether what the group has committed belongs to the topics that exist now.

    If a topic was deleted and recreated, the new one is read from its start. Notes the ids of the
    topics and what is committed.

    Args:
        consumer: the library's.
        assignment: what has just been assigned to it.

    Returns:
        the topics that were deleted and recreated.

    Raises:
        OSError, aiokafka.errors.KafkaError: no answer.
    """
    places = [*assignment.trackers]
    topics = sorted({place.topic for place in places})
    facts = await topic_facts(client_of(consumer), topics)
    if facts is None:
        return set()
    ids = {name: facts[name].id if name in facts else "" for name in topics}
    offsets, stale = await committed(consumer, places, ids)
    for place, tracker in assignment.trackers.items():
        tracker.committed = offsets.get(place, -1)
    for place in sorted(stale):
        consumer.seek(place, 0)
    assignment.ids = ids
    return {place.topic for place in stale}


def recreated_since(assignment: Assignment, facts: Mapping[str, TopicFacts]) -> list[str]:
    """Return the topics that were deleted and recreated since `compare`.

    Args:
        assignment: has the ids noted by `compare`.
        facts: the topics that exist now.
    """
    ids = assignment.ids
    for name in recreated(ids, facts):
        if not ids[name] and assignment.untouched(name):
            # It had only just been created when it was assigned.
            ids[name] = facts[name].id
    return recreated(ids, facts)


async def take_places(
    consumer: Any, assignment: Assignment | None, offset_reset: str, now: float
) -> None:
    """Fix a position in each partition, so that what is published from now on is received.

    Args:
        consumer: the library's.
        assignment: what is assigned to it.
        offset_reset: where a group that has committed nothing starts; see `KafkaConfig`.
        now: seconds since 1970 (UTC).

    Raises:
        aiokafka.errors.IllegalStateError, aiokafka.errors.CommitFailedError: the partitions were
            reassigned meanwhile.
        aiokafka.errors.KafkaError: no answer.
    """
    if offset_reset != "earliest":
        # Not left to the library: it would also go to the end of partitions that appear later, and
        # where retention has removed its position.
        ids = {} if assignment is None else assignment.ids
        offsets, stale = await committed(consumer, partitions(consumer), ids)
        if not offsets and not stale:
            offsets = await _first_places(consumer, start_time(offset_reset, now))
            # What only a wildcard matches, and we may not read, may be meant for others.
            with contextlib.suppress(kafka.TopicAuthorizationFailedError):
                await commit(consumer, offsets, ids)
        for partition in sorted(consumer.assignment()):
            if partition in offsets:
                consumer.seek(partition, offsets[partition])
    for partition in sorted(consumer.assignment()):
        await consumer.position(partition)


async def _first_places(consumer: Any, since: int | None) -> dict[TopicPartition, int]:
    """Return the offsets at which a new group starts: the ends, or the first from a time on."""
    # Asked for first: what is published meanwhile is read, whichever answer counts.
    ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions(consumer))
    if since is None:
        return ends
    found = await consumer.offsets_for_times(dict.fromkeys(ends, since))
    return {
        place: end if (first := found.get(place)) is None else first.offset
        for place, end in ends.items()
    }
