"""What a member of a group needs to know and to do that the client library keeps to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import aiokafka.errors as kafka
from aiokafka.client import ConnectionGroup
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.structs import TopicPartition

__all__ = ["is_lost", "leave_on_stop", "rejoin_anew", "stop_consumer", "unassigned", "watch_topics"]

_STABLE = "Stable"


def is_lost(consumer: Any) -> bool:
    """Whether the group has given the member up, or somebody else took its name."""
    return bool(consumer._coordinator.generation < 0)


def leave_on_stop(consumer: Any) -> None:
    """Give the membership up when the consumer stops, instead of keeping it for the next one."""
    if consumer._coordinator is not None:
        consumer._coordinator._group_instance_id = None


async def rejoin_anew(consumer: Any) -> None:
    """Leave the group and join it again, so that everything is assigned anew."""
    coordinator = consumer._coordinator
    instance, coordinator._group_instance_id = coordinator._group_instance_id, None
    try:
        await coordinator._maybe_leave_group()
    finally:
        coordinator._group_instance_id = instance


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
    client = consumer._client
    answer = await client.send(
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
    return [tp for tp in _partitions(client, sorted(consumer.subscription())) if tp not in taken]


def _assigned_to(assignment: bytes) -> Iterable[TopicPartition]:
    return ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions() if assignment else ()


def _partitions(client: Any, topics: Iterable[str]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in sorted(client.cluster.partitions_for_topic(topic) or ())
    ]


async def stop_consumer(consumer: Any, timeout: float) -> None:
    """Stop a consumer of the library, and all that it has started, whatever happens.

    Args:
        consumer: it, started or not.
        timeout: seconds after which it is not asked but cut off.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        await asyncio.wait({stopping}, timeout=timeout)
    finally:
        coordinator, fetcher = consumer._coordinator, consumer._fetcher
        parts = [
            stopping,
            getattr(coordinator, "_coordination_task", None),
            getattr(coordinator, "_heartbeat_task", None),
            getattr(coordinator, "_commit_refresh_task", None),
            getattr(coordinator, "_reset_committed_task", None),
            getattr(fetcher, "_fetch_task", None),
            *getattr(fetcher, "_pending_tasks", ()),
        ]
        tasks = [task for task in parts if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        closing = asyncio.ensure_future(consumer._client.close())
        await asyncio.wait({closing}, timeout=timeout)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
