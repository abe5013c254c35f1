"""A member of a consumer group, as its coordinator knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocol

from ._errors import ErrorCode

__all__ = ["JoinAnswer", "JoinReply", "JoinRequest", "Member"]

Protocols = list[tuple[str, bytes]]
"""Names of the ways to assign partitions that the member knows, with what it says for each."""


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """What a member hears when a generation has begun, or why it is in none."""

    code: ErrorCode
    member_id: str
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    members: list[tuple[str, str | None, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a member says when it joins; times are in seconds."""

    client_id: str
    member_id: str
    instance_id: str | None
    session_timeout: float
    rebalance_timeout: float
    protocol_type: str
    protocols: Protocols


JoinReply = Callable[[JoinAnswer], None]
SyncReply = Callable[[ErrorCode, bytes], None]


class Member:
    """One member.

    Attributes:
        id: what the coordinator has named it.
        client_id: what it calls itself.
        instance_id: its name as a static member; None for a dynamic one.
        encoded_assignment: what it was assigned, as the leader has sent it.
        joining: answers its request to join, while that waits.
        syncing: answers its request for its assignment, while that waits.
        is_new: whether it has never been in a generation.
    """

    def __init__(self, identifier: str, request: JoinRequest) -> None:
        self.id = identifier
        self.client_id = request.client_id
        self.instance_id = request.instance_id
        self.encoded_assignment = b""
        self.joining: JoinReply | None = None
        self.syncing: SyncReply | None = None
        self.is_new = True
        self.timer: asyncio.TimerHandle | None = None
        self.update(request)

    def update(self, request: JoinRequest) -> None:
        """Take over what it says now."""
        self.session_timeout = request.session_timeout
        self.rebalance_timeout = request.rebalance_timeout
        self.protocols = request.protocols

    @property
    def waits(self) -> bool:
        """Whether one of its requests waits for others, so that it cannot give a sign of life."""
        return self.joining is not None or self.syncing is not None

    @property
    def topics(self) -> list[str]:
        """What it has subscribed to."""
        if not self.protocols:
            return []
        metadata: Any = ConsumerProtocol.METADATA.decode(self.protocols[0][1])
        return list(metadata.subscription)

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """Topics and partitions that it was assigned."""
        if not self.encoded_assignment:
            return []
        decoded: Any = ConsumerProtocol.ASSIGNMENT.decode(self.encoded_assignment)
        return [(topic, partition) for topic, partition in decoded.partitions()]

    def metadata(self, protocol: str) -> bytes:
        """What it says for a way to assign."""
        return dict(self.protocols).get(protocol, b"")

    def answer_join(self, answer: JoinAnswer) -> None:
        """Answer its request to join, if there is one."""
        reply, self.joining = self.joining, None
        if reply is not None:
            reply(answer)

    def answer_sync(self, code: ErrorCode, assignment: bytes = b"") -> None:
        """Answer its request for its assignment, if there is one."""
        reply, self.syncing = self.syncing, None
        if reply is not None:
            reply(code, assignment)

    def stop_timer(self) -> None:
        """Expect no sign of life."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
