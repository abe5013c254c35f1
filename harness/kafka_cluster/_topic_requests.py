"""Requests about topics, partitions and records."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ._access_rules import Right
from ._cluster import MAX_BATCH, REFUSAL_DELAY, Cluster
from ._errors import ErrorCode, RequestRefused
from ._protocol_frames import REQUESTS, Request
from ._topic_settings import checked_settings

__all__ = ["TOPIC_REQUESTS"]

_Reply = Callable[[Any], None]
_NODE = 0
_CLUSTER_ID = "simulated"
_LATEST, _EARLIEST = -1, -2
_NO_OFFSET = -1
_DEFAULT = -1
_TOMBSTONES = 86_400_000


def _api_versions(cluster: Cluster, request: Request, reply: _Reply) -> None:
    versions = [(kind.API_KEY, kind.API_VERSION, kind.API_VERSION) for kind in REQUESTS.values()]
    reply(request.body.RESPONSE_TYPE(ErrorCode.NONE, versions))


def _metadata(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    names = list(cluster.topics) if body.topics is None else list(dict.fromkeys(body.topics))
    may_create = cluster.auto_create and body.allow_auto_topic_creation
    topics = [_described(cluster, name, may_create) for name in names]
    brokers = [(_NODE, cluster.host, cluster.port, None)]
    answer = body.RESPONSE_TYPE(0, brokers, _CLUSTER_ID, _NODE, topics)
    if all(code is ErrorCode.NONE for code, *_ in topics):
        reply(answer)
    else:
        cluster.loop.call_later(REFUSAL_DELAY, reply, answer)


def _described(cluster: Cluster, name: str, may_create: bool) -> tuple[Any, ...]:
    topic = cluster.topics.get(name)
    if topic is not None:
        numbers = range(len(topic.partitions))
        places: list[tuple[Any, ...]] = [
            (ErrorCode.NONE, number, _NODE, [_NODE], [_NODE], []) for number in numbers
        ]
        return ErrorCode.NONE, name, False, places
    code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    if may_create:
        try:
            cluster.create_topic(name, -1)
            # It exists when the client asks again.
            code = ErrorCode.LEADER_NOT_AVAILABLE
        except RequestRefused as refusal:
            code = refusal.code
    return code, name, False, []


def _produce(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    topics = []
    failed = False
    for topic, batches in body.topics:
        partitions = []
        for partition, batch in batches:
            code, offset = _append(cluster, request, topic, partition, batch)
            failed = failed or code is not ErrorCode.NONE
            partitions.append((partition, code, offset, -1, 0 if offset >= 0 else -1))
        topics.append((topic, partitions))
    # Without confirmation there is nothing to answer.
    reply(body.RESPONSE_TYPE(topics, 0) if body.required_acks else None)


def _append(
    cluster: Cluster, request: Request, topic: str, partition: int, batch: bytes | None
) -> tuple[ErrorCode, int]:
    try:
        if request.body.required_acks not in (-1, 0, 1):
            raise RequestRefused(ErrorCode.INVALID_REQUIRED_ACKS)
        cluster.access.check(Right.WRITE_TOPIC, topic)
        log = cluster.log(topic, partition)
        name = request.body.transactional_id
        if name is not None:
            cluster.access.check(Right.TRANSACT, name)
        return ErrorCode.NONE, cluster.append_batch(request.client_id, log, batch, name)
    except RequestRefused as refusal:
        return refusal.code, _NO_OFFSET


def _list_offsets(cluster: Cluster, request: Request, reply: _Reply) -> None:
    topics = []
    for topic, wanted in request.body.topics:
        partitions = []
        for partition, timestamp in wanted:
            code, moment, offset = ErrorCode.NONE, -1, -1
            try:
                log = cluster.log(topic, partition)
            except RequestRefused as refusal:
                code = refusal.code
            else:
                end = log.end_for(request.body.isolation_level)
                if timestamp == _LATEST:
                    offset = end
                elif timestamp == _EARLIEST:
                    offset = log.start
                else:
                    moment, offset = log.offset_for(timestamp, end)
            partitions.append((partition, code, moment, offset))
        topics.append((topic, partitions))
    reply(request.body.RESPONSE_TYPE(0, topics))


def _delete_records(cluster: Cluster, request: Request, reply: _Reply) -> None:
    topics = []
    for topic, wanted in request.body.topics:
        partitions = []
        for partition, offset in wanted:
            code, start = ErrorCode.NONE, -1
            try:
                log = cluster.log(topic, partition)
                log.trim(log.end if offset == _LATEST else offset)
                start = log.start
            except RequestRefused as refusal:
                code = refusal.code
            partitions.append((partition, start, code))
        topics.append((topic, partitions))
    reply(request.body.RESPONSE_TYPE(0, topics))


def _create_topics(cluster: Cluster, request: Request, reply: _Reply) -> None:
    errors = [
        _done(wanted[0], partial(_make, cluster, request, wanted))
        for wanted in request.body.create_topic_requests
    ]
    reply(request.body.RESPONSE_TYPE(0, errors))


def _make(cluster: Cluster, request: Request, wanted: tuple[Any, ...]) -> None:
    name, partitions, replication, placed, configs = wanted
    if name in cluster.topics:
        raise RequestRefused(ErrorCode.TOPIC_ALREADY_EXISTS)
    if not placed and replication != _DEFAULT and replication < 1:
        raise RequestRefused(ErrorCode.INVALID_REPLICATION_FACTOR)
    settings = checked_settings(configs)
    most = int(settings.get("max.message.bytes", MAX_BATCH))
    tombstones = None
    if "compact" in settings.get("cleanup.policy", ""):
        tombstones = int(settings.get("delete.retention.ms", _TOMBSTONES)) / 1000
    if not request.body.validate_only:
        cluster.create_topic(name, len(placed) or partitions, max_batch=most, tombstones=tombstones)


def _delete_topics(cluster: Cluster, request: Request, reply: _Reply) -> None:
    errors = [_done(name, partial(cluster.delete_topic, name))[:2] for name in request.body.topics]
    reply(request.body.RESPONSE_TYPE(0, errors))


def _create_partitions(cluster: Cluster, request: Request, reply: _Reply) -> None:
    errors = [
        _done(name, partial(_grow, cluster, request, name, count))
        for name, (count, _) in request.body.topic_partitions
    ]
    reply(request.body.RESPONSE_TYPE(0, errors))


def _grow(cluster: Cluster, request: Request, name: str, count: int) -> None:
    topic = cluster.topics.get(name)
    if topic is None:
        raise RequestRefused(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
    if count <= len(topic.partitions):
        raise RequestRefused(ErrorCode.INVALID_PARTITIONS)
    if not request.body.validate_only:
        topic.grow(count)


def _done(name: str, step: Callable[[], None]) -> tuple[str, ErrorCode, str | None]:
    try:
        step()
    except RequestRefused as refusal:
        return name, refusal.code, str(refusal)
    return name, ErrorCode.NONE, None


TOPIC_REQUESTS: dict[int, Callable[[Cluster, Request, _Reply], None]] = {
    0: _produce,
    2: _list_offsets,
    3: _metadata,
    18: _api_versions,
    19: _create_topics,
    20: _delete_topics,
    21: _delete_records,
    37: _create_partitions,
}
"""The functions that answer these requests, by API key."""
