"""Requests about transactions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ._access_rules import Right
from ._cluster import Cluster
from ._errors import ErrorCode, RequestRefused, code_of
from ._protocol_frames import Request

__all__ = ["TRANSACTION_REQUESTS"]

_Reply = Callable[[Any], None]
_NOBODY = (-1, -1)


def _init_producer(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    name = body.transactional_id
    code, (producer, epoch) = ErrorCode.NONE, _NOBODY
    if name is None:
        producer, epoch = cluster.next_producer(), 0
    else:
        try:
            cluster.access.check(Right.TRANSACT, name)
            seconds = body.transaction_timeout_ms / 1000
            producer, epoch = cluster.coordinator.init(request.client_id, name, seconds)
        except RequestRefused as refusal:
            code = refusal.code
    reply(body.RESPONSE_TYPE(0, code, producer, epoch))


def _add_partitions(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    places = [(topic, number) for topic, numbers in body.topics for number in numbers]
    codes = {place: code_of(partial(_check_place, cluster, *place)) for place in places}
    if any(codes.values()):
        # All or none.
        codes = {place: code or ErrorCode.OPERATION_NOT_ATTEMPTED for place, code in codes.items()}
    else:
        code = code_of(partial(_add, cluster, request, partitions=places))
        codes = dict.fromkeys(places, code)
    errors = [
        (topic, [(number, codes[topic, number]) for number in numbers])
        for topic, numbers in body.topics
    ]
    reply(body.RESPONSE_TYPE(0, errors))


def _check_place(cluster: Cluster, topic: str, number: int) -> None:
    cluster.access.check(Right.WRITE_TOPIC, topic)
    cluster.log(topic, number)


def _add_offsets(cluster: Cluster, request: Request, reply: _Reply) -> None:
    def add() -> None:
        name = request.body.group_id
        cluster.access.check(Right.READ_GROUP, name)
        _add(cluster, request, groups=[name])

    reply(request.body.RESPONSE_TYPE(0, code_of(add)))


def _add(cluster: Cluster, request: Request, **what: Any) -> None:
    body = request.body
    cluster.access.check(Right.TRANSACT, body.transactional_id)
    cluster.coordinator.add(
        request.client_id, body.transactional_id, body.producer_id, body.producer_epoch, **what
    )


def _commit_offsets(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    whole = code_of(partial(_check_offsets, cluster, body))
    errors = []
    for topic, offsets in body.topics:
        codes = []
        for number, offset, metadata in offsets:
            code = whole or code_of(partial(cluster.log, topic, number))
            if code is ErrorCode.NONE:
                group = cluster.group(body.group_id)
                place = topic, number
                producer = body.producer_id, body.producer_epoch
                group.commit_in_transaction(producer, place, offset, metadata or "")
                cluster.note(request.client_id, "offset", f"{topic}-{number}", str(offset))
            codes.append((number, code))
        errors.append((topic, codes))
    reply(body.RESPONSE_TYPE(0, errors))


def _check_offsets(cluster: Cluster, body: Any) -> None:
    cluster.access.check(Right.TRANSACT, body.transactional_id)
    cluster.access.check(Right.READ_GROUP, body.group_id)
    cluster.group(body.group_id)
    producer = body.producer_id, body.producer_epoch
    if any(producer in group.pending for group in cluster.groups.values()):
        # All groups are in one log, which knows the transaction already.
        return
    try:
        cluster.coordinator.verify(body.transactional_id, *producer, None)
    except RequestRefused as refusal:
        if refusal.code is not ErrorCode.NOT_ENOUGH_REPLICAS:
            raise
        raise RequestRefused(ErrorCode.COORDINATOR_NOT_AVAILABLE) from refusal


def _end(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body

    def end() -> None:
        cluster.access.check(Right.TRANSACT, body.transactional_id)
        cluster.coordinator.end(
            request.client_id,
            body.transactional_id,
            body.producer_id,
            body.producer_epoch,
            commit=body.transaction_result,
        )

    reply(body.RESPONSE_TYPE(0, code_of(end)))


TRANSACTION_REQUESTS: dict[int, Callable[[Cluster, Request, _Reply], None]] = {
    22: _init_producer,
    24: _add_partitions,
    25: _add_offsets,
    26: _end,
    28: _commit_offsets,
}
"""The functions that answer these requests, by API key."""
