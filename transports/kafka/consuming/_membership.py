"""What a member of a group needs to know and to do that the client library keeps to itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiokafka.errors as kafka
from aiokafka.client import ConnectionGroup
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from .._config import KafkaConfig
from .._errors import GroupRefused
from .._topic_facts import is_of_another, note_of

__all__ = [
    "NO_COORDINATOR",
    "commit",
    "committed",
    "is_lost",
    "join_refusal",
    "leave",
    "partitions",
    "rejoin_anew",
    "unassigned",
    "watch_topics",
]

_STABLE = "Stable"
# Answers to who wants to join.
NO_COORDINATOR = 15
"""What a cluster answers that cannot look after a group now."""
_INCONSISTENT, _BAD_SESSION_TIMEOUT, _FULL = 23, 26, 81
# What the library says of bytes that it cannot read.
_GARBLED = "to struct format"
_LOOK_AGAIN = 0.1
_NO_MEMBER = (
    kafka.IllegalGenerationError,
    kafka.RebalanceInProgressError,
    kafka.UnknownMemberIdError,
)


def is_lost(consumer: Any) -> bool:
    """Whether the group has given the member up, or somebody else took its name."""
    return bool(consumer._coordinator.generation < 0)


def join_refusal(
    error: BaseException, code: int, group: str, config: KafkaConfig
) -> GroupRefused | None:
    """Why the group does not let us in; None when it is over something else.

    Args:
        error: what the library raised.
        code: what the cluster answered to the last attempt to join; 0 when it was let in.
        group: its id.
        config: what was asked for.
    """
    if code == NO_COORDINATOR and isinstance(error, (kafka.KafkaError, TimeoutError)):
        return GroupRefused(
            f"the cluster has no coordinator for group {group!r}: the brokers with its topic"
            " __consumer_offsets are away, or there are too few of them to create it (see"
            " offsets.topic.replication.factor)",
            may_pass=True,
        )
    if not isinstance(error, kafka.KafkaError):
        return None
    if type(error) is kafka.KafkaError and _GARBLED in str(error):
        return GroupRefused(
            f"group {group!r} has a member of another program that does not speak as a consumer:"
            " stop it, or give the application or the actor another name",
            may_pass=True,
        )
    if isinstance(error, kafka.InconsistentGroupProtocolError) or code == _INCONSISTENT:
        return GroupRefused(
            f"group {group!r} has members of another program, or of another client, that share"
            " out partitions in a way that is not ours (roundrobin): stop them, or give the"
            " application or the actor another name",
            may_pass=True,
        )
    if isinstance(error, kafka.InvalidSessionTimeoutError) or code == _BAD_SESSION_TIMEOUT:
        return GroupRefused(
            f"the cluster does not let members of group {group!r} have"
            f" session_timeout={config.session_timeout:g}: give one within its limits"
            " (group.min.session.timeout.ms, group.max.session.timeout.ms)",
            may_pass=False,
        )
    if code == _FULL:
        return GroupRefused(
            f"group {group!r} has as many members as the cluster allows (group.max.size): stop"
            " some, or raise the limit",
            may_pass=True,
        )
    return None


async def leave(consumer: Any) -> None:
    """Give the membership up, instead of keeping it for who comes back with the name."""
    coordinator = consumer._coordinator
    if coordinator is not None:
        instance, coordinator._group_instance_id = coordinator._group_instance_id, None
        try:
            await coordinator._maybe_leave_group()
        finally:
            coordinator._group_instance_id = instance


async def commit(
    consumer: Any, offsets: Mapping[TopicPartition, int], ids: Mapping[str, str]
) -> None:
    """Commit for as long as the membership lasts.

    The library's own way does so no more once a pattern has found a new topic, although that is
    before the partitions are taken away. It would also try again without end.

    Args:
        consumer: the library's.
        offsets: what to commit.
        ids: of the topics; they are committed along, to tell later of which topic of that name.

    Raises:
        aiokafka.errors.CommitFailedError: somebody else may have the partitions by now.
        aiokafka.errors.KafkaError: the cluster refused it, or cannot be reached.
    """
    coordinator = consumer._coordinator
    wanted = {
        tp: OffsetAndMetadata(offset, note_of(ids.get(tp.topic))) for tp, offset in offsets.items()
    }
    await coordinator.ensure_coordinator_known()
    try:
        async with coordinator._commit_lock:
            await coordinator._do_commit_offsets(None, wanted)
    except _NO_MEMBER as error:
        raise kafka.CommitFailedError(*error.args) from error


async def committed(
    consumer: Any, places: Sequence[TopicPartition], ids: Mapping[str, str]
) -> tuple[dict[TopicPartition, int], set[TopicPartition]]:
    """What the group has committed, whoever has the partitions.

    Args:
        consumer: the library's.
        places: the partitions.
        ids: of their topics, as far as they are known.

    Returns:
        the offsets, and those of the partitions whose offset is of a topic that is gone.
    """
    offsets = await consumer._coordinator.fetch_committed_offsets(places)
    known = {tp: meta for tp, meta in offsets.items() if meta.offset >= 0}
    stale = {
        tp
        for tp, meta in known.items()
        if ids.get(tp.topic) and is_of_another(meta.metadata or "", ids[tp.topic])
    }
    return {tp: meta.offset for tp, meta in known.items() if tp not in stale}, stale


def partitions(consumer: Any) -> list[TopicPartition]:
    """All partitions of the consumer's topics."""
    cluster = consumer._client.cluster
    return [
        TopicPartition(topic, partition)
        for topic in sorted(consumer.subscription())
        for partition in sorted(cluster.partitions_for_topic(topic) or ())
    ]


async def rejoin_anew(consumer: Any, reassigned: asyncio.Event) -> None:
    """Leave the group and join it again, so that everything is assigned anew.

    Args:
        consumer: it.
        reassigned: set when that is done.

    Raises:
        aiokafka.errors.KafkaError: the cluster does not let it.
    """
    coordinator = consumer._coordinator
    await leave(consumer)
    # Or it counts as one that has stopped fetching, which is not let in.
    with consumer._subscription.fetch_context():
        while not reassigned.is_set():
            coordinator.check_errors()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN):
                    await reassigned.wait()


def watch_topics(consumer: Any) -> None:
    """Notice new partitions of the topics.

    The library leaves that to the leader of the group, but the member that comes back as one is
    not told that it is.
    """
    coordinator = consumer._coordinator
    if coordinator._group_subscription is None:
        coordinator._group_subscription = consumer.subscription()
        coordinator._metadata_snapshot = coordinator._get_metadata_snapshot()


async def unassigned(consumer: Any, group: str) -> list[TopicPartition]:
    """Partitions of the consumer's topics that the group has given to nobody.

    That is so when a member came back and wants other topics than before, or there are new
    partitions: as long as its name is known, it gets what it had.
    """
    coordinator = consumer._coordinator
    answer = await consumer._client.send(
        coordinator.coordinator_id,
        DescribeGroupsRequest([group]),
        group=ConnectionGroup.COORDINATION,
    )
    code, _, state, _, _, members, *_ = answer.groups[0]
    if kafka.for_code(code) is not kafka.NoError or state != _STABLE:
        return []
    taken: set[TopicPartition] = set()
    for member in members:
        taken.update(_assigned_to(member[4]))
    return [tp for tp in partitions(consumer) if tp not in taken]


def _assigned_to(assignment: bytes) -> Iterable[TopicPartition]:
    return ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions() if assignment else ()
