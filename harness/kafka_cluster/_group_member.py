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
"""Names of the assignment strategies that the member knows, with its metadata for each."""


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """The answer to a join request: the generation that has begun, or why there is none."""

    code: ErrorCode
    member_id: str
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    members: list[tuple[str, str | None, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """The request of a member to join; times are in seconds."""

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
        id: the id that the coordinator gave it.
        client_id: the id that it gives itself.
        instance_id: its name as a static member; None for a dynamic one.
        encoded_assignment: its assignment, as the leader has sent it.
        joining: answers its request to join, while that is pending.
        syncing: answers its request for its assignment, while that is pending.
        is_new: whether it has never been in a generation.
    """

    def __init__(self, identifier: str, request: JoinRequest) -> None:
        self.id = identifier
        self.client_id: str = request.client_id
        self.instance_id: str | None = request.instance_id
        self.encoded_assignment = b""
        self.joining: JoinReply | None = None
        self.syncing: SyncReply | None = None
        self.is_new = True
        self.timer: asyncio.TimerHandle | None = None
        self.update(request)

    def update(self, request: JoinRequest) -> None:
        """Take over what a new request to join says."""
        self.session_timeout: float = request.session_timeout
        self.rebalance_timeout: float = request.rebalance_timeout
        self.protocols: Protocols = request.protocols

    @property
    def waits(self) -> bool:
        """Whether a request of it is pending, so that it cannot send heartbeats."""
        return self.joining is not None or self.syncing is not None

    @property
    def topics(self) -> list[str]:
        """The topics that it has subscribed to."""
        if not self.protocols:
            return []
        metadata: Any = ConsumerProtocol.METADATA.decode(self.protocols[0][1])
        return list(metadata.subscription)

    @property
    def assignment(self) -> list[tuple[str, int]]:
        """The topics and partitions that it was assigned."""
        if not self.encoded_assignment:
            return []
        decoded: Any = ConsumerProtocol.ASSIGNMENT.decode(self.encoded_assignment)
        return [(topic, partition) for topic, partition in decoded.partitions()]

    def metadata(self, protocol: str) -> bytes:
        """Return its metadata for an assignment strategy."""
        return dict(self.protocols).get(protocol, b"")

    def answer_join(self, answer: JoinAnswer) -> None:
        """Answer its request to join, if one is pending."""
        reply, self.joining = self.joining, None
        if reply is not None:
            reply(answer)

    def answer_sync(self, code: ErrorCode, assignment: bytes = b"") -> None:
        """Answer its request for its assignment, if one is pending."""
        reply, self.syncing = self.syncing, None
        if reply is not None:
            reply(code, assignment)

    def stop_timer(self) -> None:
        """Expect no heartbeat any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
