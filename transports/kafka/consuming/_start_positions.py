"""Start positions: where a member of a group begins or continues in its partitions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from .._aiokafka_private import begin_at_start, client_of
from .._offset_reset_option import start_time
from .._topic_facts import TopicFacts, recreated, topic_facts
from ._assignment import Assignment
from ._group_requests import Committed, commit, committed, partitions
from ._leader_epochs import lost_ends

__all__ = ["compare", "first_since", "recreated_since", "take_places"]

# What the library says of a partition that does not exist, and of one whose brokers are away.
_NO_LEADER = (None, -1)
_LOOK_AGAIN = 0.1


async def compare(consumer: Any, assignment: Assignment, rewind_to: int | None = None) -> set[str]:
    """Check whether what the group has committed belongs to the topics that exist now.

    If a topic was deleted and recreated, the new one is read from its start; if it has lost its
    end, from there. Notes the ids of the topics and what is committed.

    Partitions that were not rewound to a time yet are: by whoever has them, and not by the first
    member of the group for all of them, which might be overtaken by what another one commits.

    Args:
        consumer: the library's.
        assignment: what has just been assigned to it.
        rewind_to: the time, in milliseconds since 1970 (UTC); None for none.

    Returns:
        the topics that were deleted and recreated.

    Raises:
        OSError, aiokafka.errors.KafkaError: no answer.
    """
    places = [*assignment.trackers]
    topics = sorted({place.topic for place in places})
    facts = await topic_facts(client_of(consumer), topics)
    ids = {}
    if facts is not None:
        ids = {name: facts[name].id if name in facts else "" for name in topics}
    found = await committed(consumer, places, ids)
    for place, tracker in assignment.trackers.items():
        tracker.committed = found.offsets.get(place, -1)
    # The library would ask for the offset of each by itself, one after another.
    for place, offset in sorted(found.offsets.items()):
        consumer.seek(place, offset)
    begin_at_start(consumer, sorted({*places}.difference(found.offsets, found.stale)))
    for place in sorted(found.stale):
        consumer.seek(place, 0)
    noted = {place: those for place, those in found.claims.items() if those}
    lost, unknown = await lost_ends(client_of(consumer), noted)
    assignment.epochs.begin(noted, lost, unknown)
    for place, end in sorted(lost.items()):
        consumer.seek(place, end)
        assignment.trackers[place].committed = found.offsets[place] = end
    assignment.lost = lost
    assignment.ids = ids
    assignment.rewound = found.rewound
    if rewind_to is not None:
        await _rewind(consumer, assignment, found, rewind_to)
    return {place.topic for place in found.stale}


async def _rewind(consumer: Any, assignment: Assignment, found: Committed, since: int) -> None:
    """Go back to a time, unless that was done before, or somebody has set the offset by hand."""
    # Without ids it is not known who has committed an offset.
    assignment.kept = found.foreign if assignment.ids else set()
    ahead = {
        place: offset
        for place, offset in found.offsets.items()
        if found.rewound.get(place) != since and place not in assignment.kept
    }
    first = await first_since(consumer, ahead, since)
    for place, offset in sorted(ahead.items()):
        # What the group has not handled yet is never skipped.
        if first[place] < offset:
            consumer.seek(place, first[place])
            assignment.trackers[place].committed = first[place]
            assignment.again.add(place)
    assignment.rewound = dict.fromkeys(assignment.trackers, since)
    places = {place: first[place] for place in sorted(assignment.again)}
    # If it fails, the next commit tells it to whoever has the partition then. Until there is one,
    # nothing was handled, and going back once more is no harm.
    with contextlib.suppress(kafka.KafkaError):
        if places:
            await commit(consumer, places, assignment.ids, assignment.rewound)


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
    consumer: Any,
    assignment: Assignment | None,
    offset_reset: str,
    now: float,
    rewind_to: int | None = None,
) -> None:
    """Fix a position in each partition, so that what is published from now on is received.

    One without a leader that can be reached has none until it has one, and holds up no other.

    Args:
        consumer: the library's.
        assignment: what is assigned to it.
        offset_reset: where a group that has committed nothing starts; see `KafkaConfig`.
        now: seconds since 1970 (UTC).
        rewind_to: the time that it starts with at the latest, in milliseconds since 1970 (UTC);
            None for none.

    Raises:
        aiokafka.errors.IllegalStateError, aiokafka.errors.CommitFailedError: the partitions were
            reassigned meanwhile.
        aiokafka.errors.KafkaError: no answer.
    """
    if offset_reset != "earliest":
        # Not left to the library: it would also go to the end of partitions that appear later, and
        # where retention has removed its position.
        ids = {} if assignment is None else assignment.ids
        offsets, stale, *_ = await committed(consumer, partitions(consumer), ids)
        if not offsets and not stale:
            times = (start_time(offset_reset, now), rewind_to)
            since = min((time for time in times if time is not None), default=None)
            offsets = await _first_places(consumer, since)
            rewound = {} if rewind_to is None else dict.fromkeys(offsets, rewind_to)
            # What only a wildcard matches, and we may not read, may be meant for others.
            with contextlib.suppress(kafka.TopicAuthorizationFailedError):
                await commit(consumer, offsets, ids, rewound)
        again = set() if assignment is None else {*assignment.again, *assignment.lost}
        for partition in sorted(consumer.assignment()):
            if partition in offsets and partition not in again:
                consumer.seek(partition, offsets[partition])
    # Each is tried once, which may take long.
    reachable: dict[int, bool] = {}
    for partition in sorted(consumer.assignment()):
        await _placed(consumer, partition, reachable)


async def _placed(consumer: Any, partition: TopicPartition, reachable: dict[int, bool]) -> None:
    """Wait until a partition has a position, as long as it has a leader that can be reached."""
    client = client_of(consumer)
    leader_of = client.cluster.leader_for_partition
    waiting = asyncio.ensure_future(consumer.position(partition))
    try:
        while not waiting.done() and (leader := leader_of(partition)) not in _NO_LEADER:
            await asyncio.wait((waiting,), timeout=_LOOK_AGAIN)
            if not waiting.done() and leader not in reachable:
                reachable[leader] = await client.ready(leader)
            if not reachable.get(leader, True):
                break
        if waiting.done():
            waiting.result()
    finally:
        waiting.cancel()


async def _first_places(consumer: Any, since: int | None) -> dict[TopicPartition, int]:
    """Return the offsets at which a new group starts: the ends, or the first from a time on."""
    # Asked for first: what is published meanwhile is read, whichever answer counts.
    ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions(consumer))
    return ends if since is None else await first_since(consumer, ends, since)


async def first_since(
    consumer: Any, otherwise: Mapping[TopicPartition, int], since: int
) -> dict[TopicPartition, int]:
    """Return the offsets of the first records that are not older than a time.

    Args:
        consumer: the library's.
        otherwise: the partitions, with the offset if all records of a partition are older.
        since: the time, in milliseconds since 1970 (UTC).

    Raises:
        aiokafka.errors.KafkaError: no answer.
    """
    if not otherwise:
        return {}
    found = await consumer.offsets_for_times(dict.fromkeys(otherwise, since))
    return {
        place: offset if (first := found.get(place)) is None else first.offset
        for place, offset in otherwise.items()
    }
