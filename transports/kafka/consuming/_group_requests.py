"""Requests to a group: joining and why it refuses, what is committed, what is misassigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aiokafka.errors as kafka
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from .._aiokafka_private import client_of, commit_offsets, committed_offsets, describe_group
from .._config import KafkaConfig
from .._errors import REACHABLE_FROM_HERE, GroupRefused
from .._offset_notes import Claim, claims_of, is_of_deleted_topic, is_ours, offset_note, rewound_to
from ._leader_epochs import LeaderEpochs

__all__ = [
    "NO_COORDINATOR",
    "Committed",
    "commit",
    "committed",
    "join_refusal",
    "misassigned",
    "partitions",
]

_STABLE = "Stable"
# Answers to a request to join.
NO_COORDINATOR = 15
"""The codes of a cluster that cannot coordinate a group at the moment."""
_INCONSISTENT, _BAD_SESSION_TIMEOUT, _FULL = 23, 26, 81
# The library's error for bytes that it cannot decode.
_GARBLED = "to struct format"
_NO_MEMBER = (
    kafka.IllegalGenerationError,
    kafka.RebalanceInProgressError,
    kafka.UnknownMemberIdError,
)


def join_refusal(
    error: BaseException, code: int, group: str, config: KafkaConfig, unreachable: str = ""
) -> GroupRefused | ConnectionError | None:
    """Return why the group does not let us join; None if the error has another reason.

    Args:
        error: what the library raised.
        code: the cluster's answer to the last attempt to join; 0 if it succeeded.
        group: its id.
        config: what was requested.
        unreachable: the broker that coordinates it, if that cannot be reached; otherwise empty.
    """
    if code == NO_COORDINATOR and isinstance(error, (kafka.KafkaError, TimeoutError)):
        return GroupRefused(
            f"the cluster has no coordinator for group {group!r}: the brokers with its topic"
            " __consumer_offsets are away, or there are too few of them to create it (see"
            " offsets.topic.replication.factor)",
            may_pass=True,
        )
    if unreachable and isinstance(error, TimeoutError):
        return ConnectionError(
            f"the coordinator of group {group!r}, {unreachable}, cannot be reached, while others"
            f" can: {REACHABLE_FROM_HERE}, and max.connections.per.ip"
        )
    if not isinstance(error, kafka.KafkaError):
        return None
    if type(error) is kafka.KafkaError and _GARBLED in str(error):
        return GroupRefused(
            f"group {group!r} has a member of another program that does not act as a consumer:"
            " stop it, or give the application or the actor another name",
            may_pass=True,
        )
    if isinstance(error, kafka.InconsistentGroupProtocolError) or code == _INCONSISTENT:
        return GroupRefused(
            f"group {group!r} has members of another program, or of another client, that assign"
            " partitions differently from this one (roundrobin): stop them, or give the"
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


class Committed(NamedTuple):
    """What a group has committed.

    Attributes:
        offsets: by partition, without those of deleted topics.
        stale: the partitions whose offset belongs to a deleted topic.
        foreign: the partitions whose offset a tool or another program has committed.
        rewound: the last time to which a partition was rewound, if it ever was, in milliseconds
            since 1970 (UTC).
        claims: by partition, what was read up to the offset.
    """

    offsets: dict[TopicPartition, int]
    stale: set[TopicPartition]
    foreign: set[TopicPartition]
    rewound: dict[TopicPartition, int]
    claims: dict[TopicPartition, list[Claim]]


async def commit(
    consumer: Any,
    offsets: Mapping[TopicPartition, int],
    ids: Mapping[str, str],
    rewound: Mapping[TopicPartition, int],
    epochs: LeaderEpochs | None = None,
) -> None:
    """Commit once, as long as the membership lasts.

    Args:
        consumer: the library's.
        offsets: what to commit.
        ids: of the topics; committed as metadata, to tell later which topic of that name it was.
        rewound: see `Committed`; committed as metadata, so that nothing is rewound twice.
        epochs: know what was read; committed as metadata, to tell later whether it is still there.

    Raises:
        aiokafka.errors.CommitFailedError: another member may have the partitions by now.
        aiokafka.errors.KafkaError: the cluster refused it, or cannot be reached.
    """
    wanted = {}
    for tp, offset in offsets.items():
        claims = () if epochs is None else epochs.claims(tp, offset)
        note = offset_note(ids.get(tp.topic), rewound.get(tp), claims)
        wanted[tp] = OffsetAndMetadata(offset, note)
    try:
        await commit_offsets(consumer, wanted)
    except _NO_MEMBER as error:
        raise kafka.CommitFailedError(*error.args) from error


async def committed(
    consumer: Any, places: Sequence[TopicPartition], ids: Mapping[str, str]
) -> Committed:
    """Return what the group has committed, whichever members have the partitions.

    Args:
        consumer: the library's.
        places: the partitions.
        ids: of their topics, as far as they are known.
    """
    offsets = await committed_offsets(consumer, places)
    known = {tp: meta for tp, meta in offsets.items() if meta.offset >= 0}
    notes = {tp: meta.metadata or "" for tp, meta in known.items()}
    stale = {
        tp
        for tp, note in notes.items()
        if ids.get(tp.topic) and is_of_deleted_topic(note, ids[tp.topic])
    }
    times = {tp: rewound_to(note) for tp, note in notes.items()}
    return Committed(
        {tp: meta.offset for tp, meta in known.items() if tp not in stale},
        stale,
        {tp for tp, note in notes.items() if not is_ours(note)},
        {tp: time for tp, time in times.items() if time is not None},
        {
            # Who has gone back with the note of another offset has not read that far.
            tp: [claim for claim in claims_of(notes[tp]) if claim.upto <= meta.offset]
            for tp, meta in known.items()
            if tp not in stale
        },
    )


def partitions(consumer: Any) -> list[TopicPartition]:
    """Return all partitions of the consumer's topics."""
    cluster = client_of(consumer).cluster
    return [
        TopicPartition(topic, partition)
        for topic in sorted(consumer.subscription())
        for partition in sorted(cluster.partitions_for_topic(topic) or ())
    ]


async def misassigned(consumer: Any, group: str) -> list[TopicPartition]:
    """Return partitions that this member has and that do not exist, or else that nobody has.

    There are some if a member has come back and wants other topics than before, or if there are new
    partitions, or a topic was recreated with fewer: as long as its name is known, it gets what it
    had.
    """
    there = partitions(consumer)
    gone = sorted(consumer.assignment().difference(there))
    if gone:
        return gone
    code, state, taken = await describe_group(consumer, group)
    if kafka.for_code(code) is not kafka.NoError or state != _STABLE:
        return []
    return [tp for tp in there if tp not in taken]
