"""Requests about consumer groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ._cluster import Cluster
from ._errors import ErrorCode, RequestRefused, code_of
from ._group_member import JoinAnswer, JoinRequest
from ._groups import Group, GroupState
from ._protocol_frames import Request

__all__ = ["GROUP_REQUESTS"]

_Reply = Callable[[Any], None]
_NODE = 0
_NO_OFFSET = -1


def _find_coordinator(cluster: Cluster, request: Request, reply: _Reply) -> None:
    # Of groups and of transactions: there is only one broker.
    reply(request.body.RESPONSE_TYPE(0, ErrorCode.NONE, None, _NODE, cluster.host, cluster.port))


def _join(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    seconds = body.session_timeout / 1000

    def answer(joined: JoinAnswer) -> None:
        reply(
            body.RESPONSE_TYPE(
                0,
                joined.code,
                joined.generation,
                joined.protocol,
                joined.leader,
                joined.member_id,
                joined.members,
            )
        )

    least, most = cluster.session_timeouts
    try:
        if body.member_id and body.group not in cluster.groups:
            raise RequestRefused(ErrorCode.UNKNOWN_MEMBER_ID)
        group = cluster.group(body.group)
        if not least <= seconds <= most:
            raise RequestRefused(ErrorCode.INVALID_SESSION_TIMEOUT)
    except RequestRefused as refusal:
        answer(JoinAnswer(refusal.code, body.member_id))
        return
    group.join(
        JoinRequest(
            request.client_id,
            body.member_id,
            body.group_instance_id,
            seconds,
            body.rebalance_timeout / 1000,
            body.protocol_type,
            list(body.group_protocols),
        ),
        answer,
    )


def _sync(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body

    def answer(code: ErrorCode, assignment: bytes) -> None:
        reply(body.RESPONSE_TYPE(0, code, assignment))

    try:
        group = _known(cluster, body.group)
    except RequestRefused as refusal:
        answer(refusal.code, b"")
        return
    group.sync(
        body.member_id,
        body.group_instance_id,
        body.generation_id,
        list(body.group_assignment),
        answer,
    )


def _heartbeat(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    reply(
        body.RESPONSE_TYPE(
            0,
            code_of(
                lambda: _known(cluster, body.group).heartbeat(body.member_id, body.generation_id)
            ),
        )
    )


def _leave(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    code = code_of(lambda: _known(cluster, body.group).leave(body.member_id))
    reply(body.RESPONSE_TYPE(0, code))


def _commit(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    member, generation = body.consumer_id, body.consumer_group_generation_id
    topics = []
    code = code_of(lambda: _for_commit(cluster, body).check_commit(member, generation))
    for topic, offsets in body.topics:
        partitions = []
        for partition, offset, metadata in offsets:
            its_code = code
            if code is ErrorCode.NONE:
                its_code = code_of(partial(cluster.log, topic, partition))
            if its_code is ErrorCode.NONE:
                group = cluster.groups[body.consumer_group]
                group.commit((topic, partition), offset, metadata or "")
                cluster.note(request.client_id, "commit", f"{topic}-{partition}", str(offset))
            partitions.append((partition, its_code))
        topics.append((topic, partitions))
    reply(body.RESPONSE_TYPE(0, topics))


def _for_commit(cluster: Cluster, body: Any) -> Group:
    if body.consumer_group_generation_id < 0:
        return cluster.group(body.consumer_group)
    if body.consumer_group not in cluster.groups:
        raise RequestRefused(ErrorCode.ILLEGAL_GENERATION)
    return cluster.groups[body.consumer_group]


def _offset_fetch(cluster: Cluster, request: Request, reply: _Reply) -> None:
    body = request.body
    group = cluster.groups.get(body.consumer_group)
    offsets = {} if group is None else group.offsets
    wanted = body.topics
    if wanted is None:
        by_topic: dict[str, list[int]] = {}
        for topic, partition in offsets:
            by_topic.setdefault(topic, []).append(partition)
        wanted = list(by_topic.items())
    nothing = (_NO_OFFSET, "")
    topics = [
        (
            topic,
            [
                (number, *offsets.get((topic, number), nothing), ErrorCode.NONE)
                for number in numbers
            ],
        )
        for topic, numbers in wanted
    ]
    reply(body.RESPONSE_TYPE(0, topics, ErrorCode.NONE))


def _describe(cluster: Cluster, request: Request, reply: _Reply) -> None:
    answers: list[tuple[Any, ...]] = []
    for name in request.body.groups:
        group = cluster.groups.get(name)
        if group is None:
            answers.append((ErrorCode.NONE, name, "Dead", "", "", []))
            continue
        stable = group.state is GroupState.STABLE
        members = [
            (
                member.id,
                member.client_id,
                "/127.0.0.1",
                member.metadata(group.protocol) if stable else b"",
                member.encoded_assignment if stable else b"",
            )
            for member in group.members.values()
        ]
        protocol = group.protocol if stable else ""
        state = group.state.value
        answers.append((ErrorCode.NONE, name, state, group.protocol_type, protocol, members))
    reply(request.body.RESPONSE_TYPE(0, answers))


def _known(cluster: Cluster, name: str) -> Group:
    if name not in cluster.groups:
        raise RequestRefused(ErrorCode.UNKNOWN_MEMBER_ID)
    return cluster.groups[name]


GROUP_REQUESTS: dict[int, Callable[[Cluster, Request, _Reply], None]] = {
    8: _commit,
    9: _offset_fetch,
    10: _find_coordinator,
    11: _join,
    12: _heartbeat,
    13: _leave,
    14: _sync,
    15: _describe,
}
"""The functions that answer these requests, by API key."""
