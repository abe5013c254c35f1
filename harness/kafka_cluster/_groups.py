"""The group coordinator: who is in a consumer group, and who gets which partitions."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

from ._errors import ErrorCode, RequestRefused
from ._group_member import JoinAnswer, JoinReply, JoinRequest, Member, SyncReply

__all__ = ["Group", "GroupState"]

_NEW_MEMBER_TIMEOUT = 300.0


class GroupState(enum.StrEnum):
    """How far a group is on its way to the next generation; brokers use the same names."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"


class Group:
    """One consumer group.

    Args:
        name: its id.
        loop: the loop whose clock it uses.
        note: called with the client id of a member, what happened to it, and details.

    Attributes:
        state: see `GroupState`.
        members: by member id, in the order of joining.
        generation: its number; 0 before the first.
        leader: id of the member that assigns partitions.
        protocol: the assignment strategy that all members know.
        offsets: the committed offsets and their metadata, by topic and partition.
        pending: those in transactions that are not committed yet, by producer and its epoch, with a
            number that counts all commits.
        initial_delay: seconds that an empty group waits for further members.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        note: Callable[[str, str, str], None],
    ) -> None:
        self.name = name
        self.state: GroupState = GroupState.EMPTY
        self.members: dict[str, Member] = {}
        self.generation: int = 0
        self.leader: str | None = None
        self.protocol: str = ""
        self.protocol_type: str = ""
        self.offsets: dict[tuple[str, int], tuple[int, str]] = {}
        self.pending: dict[tuple[int, int], dict[tuple[str, int], tuple[int, str, int]]] = {}
        self.initial_delay: float = 0.0
        self._loop = loop
        self._note = note
        self._count = 0
        self._commits = 0
        self._committed_as: dict[tuple[str, int], int] = {}
        self._pending: dict[str, asyncio.TimerHandle] = {}
        self._static: dict[str, str] = {}
        self._rebalancing: asyncio.TimerHandle | None = None
        self._syncing: asyncio.TimerHandle | None = None
        self._early = False

    # What members ask for.

    def join(self, request: JoinRequest, reply: JoinReply) -> None:
        """Let a member into the next generation; reply when that begins."""
        code = self._why_not(request)
        if code is not ErrorCode.NONE:
            reply(JoinAnswer(code, request.member_id))
        elif not request.member_id:
            self._join_new(request, reply)
        else:
            self._join_known(request, reply)
        self._complete_join()

    def sync(
        self,
        member_id: str,
        instance_id: str | None,
        generation: int,
        assignments: list[tuple[str, bytes]],
        reply: SyncReply,
    ) -> None:
        """Give a member its assignment; reply once the leader has sent all of them."""
        try:
            member = self._checked(member_id, instance_id, generation)
        except RequestRefused as refusal:
            reply(refusal.code, b"")
            return
        if self.state is GroupState.PREPARING_REBALANCE:
            reply(ErrorCode.REBALANCE_IN_PROGRESS, b"")
        elif self.state is GroupState.STABLE:
            reply(ErrorCode.NONE, member.encoded_assignment)
            self._alive(member)
        else:
            member.syncing = reply
            if member.id == self.leader:
                self._assign(dict(assignments))

    def heartbeat(self, member_id: str, generation: int) -> None:
        """Take the heartbeat of a member.

        Raises:
            RequestRefused: it is not in the group, or has to rejoin.
        """
        self._alive(self._checked(member_id, None, generation))
        if self.state is GroupState.PREPARING_REBALANCE:
            raise RequestRefused(ErrorCode.REBALANCE_IN_PROGRESS)

    def leave(self, member_id: str) -> None:
        """Remove a member that leaves.

        Raises:
            RequestRefused: it is not in the group.
        """
        timer = self._pending.pop(member_id, None)
        if timer is not None:
            timer.cancel()
            self._complete_join()
        elif member_id in self.members:
            self._remove(self.members[member_id], "leave")
        else:
            raise RequestRefused(ErrorCode.UNKNOWN_MEMBER_ID)

    def check_commit(self, member_id: str, generation: int) -> None:
        """Check that a member may commit.

        Raises:
            RequestRefused: it is not in the group, or not in this generation.
        """
        if generation < 0 and not self.members:
            # A consumer that assigned itself partitions, without being a member.
            return
        member = self._checked(member_id, None, generation)
        if self.state is GroupState.COMPLETING_REBALANCE:
            raise RequestRefused(ErrorCode.REBALANCE_IN_PROGRESS)
        self._alive(member)

    # Offsets.

    def commit(self, place: tuple[str, int], offset: int, metadata: str) -> None:
        """Store the offset of a partition."""
        self._commits += 1
        self._store(place, offset, metadata, self._commits)

    def commit_in_transaction(
        self, producer: tuple[int, int], place: tuple[str, int], offset: int, metadata: str
    ) -> None:
        """Store the offset of a partition once the transaction of a producer is committed."""
        self._commits += 1
        self.pending.setdefault(producer, {})[place] = offset, metadata, self._commits

    def end_transaction(self, producer: int, *, commit: bool) -> None:
        """Store the offsets in the transaction of a producer, or drop them."""
        for key in [key for key in self.pending if key[0] == producer]:
            for place, (offset, metadata, number) in self.pending.pop(key).items():
                # One that was committed after this one was sent stays, as in a broker.
                if commit and number > self._committed_as.get(place, 0):
                    self._store(place, offset, metadata, number)

    def forget_topic(self, name: str) -> None:
        """Drop the offsets of a topic."""
        self.offsets = {place: it for place, it in self.offsets.items() if place[0] != name}
        for pending in self.pending.values():
            for place in [place for place in pending if place[0] == name]:
                del pending[place]

    def _store(self, place: tuple[str, int], offset: int, metadata: str, number: int) -> None:
        self.offsets[place] = offset, metadata
        self._committed_as[place] = number

    def rebalance(self) -> bool:
        """Make all members rejoin; return False if there are none, or they are doing so already."""
        if not self.members or self.state is GroupState.PREPARING_REBALANCE:
            return False
        self._prepare()
        return True

    # Joining.

    def _why_not(self, request: JoinRequest) -> ErrorCode:
        if not request.protocols or not request.protocol_type:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        others = [member for member in self.members.values() if member.id != request.member_id]
        names = {name for name, _ in request.protocols}
        for member in others:
            names &= {name for name, _ in member.protocols}
        if others and (request.protocol_type != self.protocol_type or not names):
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        return ErrorCode.NONE

    def _join_new(self, request: JoinRequest, reply: JoinReply) -> None:
        self._count += 1
        instance = request.instance_id
        identifier = f"{request.client_id if instance is None else instance}-{self._count}"
        if instance is None:
            # A member that loses the first answer and never joins must not stay forever.
            self._pending[identifier] = self._loop.call_later(
                request.session_timeout, self._give_up_pending, identifier
            )
            reply(JoinAnswer(ErrorCode.MEMBER_ID_REQUIRED, identifier))
        elif instance in self._static:
            self._replace(identifier, request, reply)
        else:
            self._add(identifier, request, reply)

    def _join_known(self, request: JoinRequest, reply: JoinReply) -> None:
        timer = self._pending.pop(request.member_id, None)
        if timer is not None:
            timer.cancel()
            self._add(request.member_id, request, reply)
            return
        try:
            member = self._known(request.member_id, request.instance_id)
        except RequestRefused as refusal:
            reply(JoinAnswer(refusal.code, request.member_id))
            return
        same = member.protocols == request.protocols
        completing = self.state is GroupState.COMPLETING_REBALANCE
        stable = self.state is GroupState.STABLE and member.id != self.leader
        if same and (completing or stable):
            # It has not learned of the generation that it is in.
            reply(self._answer(member))
            self._alive(member)
            return
        member.update(request)
        member.joining = reply
        self._prepare()

    def _add(self, identifier: str, request: JoinRequest, reply: JoinReply) -> None:
        member = Member(identifier, request)
        member.joining = reply
        if not self.members:
            self.protocol_type = request.protocol_type
        self.members[identifier] = member
        if self.leader is None:
            self.leader = identifier
        if request.instance_id is not None:
            self._static[request.instance_id] = identifier
        self._note(member.client_id, "join", self.name)
        self._expect(member, _NEW_MEMBER_TIMEOUT)
        self._prepare()

    def _replace(self, identifier: str, request: JoinRequest, reply: JoinReply) -> None:
        """Let a returning static member take the place and the partitions of its predecessor."""
        assert request.instance_id is not None
        old = self.members[self._static[request.instance_id]]
        old.stop_timer()
        old.answer_join(JoinAnswer(ErrorCode.FENCED_INSTANCE_ID, old.id))
        old.answer_sync(ErrorCode.FENCED_INSTANCE_ID)
        member = Member(identifier, request)
        member.encoded_assignment = old.encoded_assignment
        member.is_new = old.is_new
        # At the same place in the order.
        self.members = {
            (identifier if one is old else key): (member if one is old else one)
            for key, one in self.members.items()
        }
        self._static[request.instance_id] = identifier
        leader = self.leader
        if leader == old.id:
            self.leader = identifier
        self._note(member.client_id, "return", self.name)
        self._expect(member, member.session_timeout)
        if self.state is GroupState.STABLE and self._choose_protocol() == self.protocol:
            # With the old id of the leader, so that a returning leader does not reassign.
            reply(
                JoinAnswer(ErrorCode.NONE, identifier, self.generation, self.protocol, leader or "")
            )
            return
        member.joining = reply
        self._prepare()

    def _prepare(self) -> None:
        if self.state is GroupState.PREPARING_REBALANCE:
            return
        if self.state is GroupState.COMPLETING_REBALANCE:
            for member in list(self.members.values()):
                member.encoded_assignment = b""
                member.answer_sync(ErrorCode.REBALANCE_IN_PROGRESS)
        self._stop_syncing()
        self._early = self.state is GroupState.EMPTY and self.initial_delay > 0
        self.state = GroupState.PREPARING_REBALANCE
        patience = max((one.rebalance_timeout for one in self.members.values()), default=0.0)
        self._rebalancing = self._loop.call_later(
            self.initial_delay if self._early else patience, self._force_join
        )
        self._complete_join()

    def _complete_join(self) -> None:
        if self.state is not GroupState.PREPARING_REBALANCE or self._early or self._pending:
            return
        if all(member.joining is not None for member in self.members.values()):
            self._begin_generation()

    def _force_join(self) -> None:
        """Begin the next generation without the members that have not joined in time."""
        self._early = False
        for member in list(self.members.values()):
            if member.joining is None and member.instance_id is None:
                self._forget(member)
                self._note(member.client_id, "expire", self.name)
        joined = [member for member in self.members.values() if member.joining is not None]
        if self.members and not joined:
            patience = max(member.rebalance_timeout for member in self.members.values())
            self._rebalancing = self._loop.call_later(patience, self._force_join)
            return
        if joined and self.members[self.leader or ""].joining is None:
            self.leader = joined[0].id
        self._begin_generation()

    def _begin_generation(self) -> None:
        if self._rebalancing is not None:
            self._rebalancing.cancel()
            self._rebalancing = None
        self.generation += 1
        if not self.members:
            self.state = GroupState.EMPTY
            self.protocol = ""
            return
        self.protocol = self._choose_protocol()
        self.state = GroupState.COMPLETING_REBALANCE
        for member in list(self.members.values()):
            member.is_new = False
            self._alive(member)
            member.answer_join(self._answer(member))
        patience = max(member.rebalance_timeout for member in self.members.values())
        self._syncing = self._loop.call_later(patience, self._force_sync)

    def _answer(self, member: Member) -> JoinAnswer:
        leader = self.leader or ""
        everybody = []
        if member.id == leader:
            everybody = [
                (one.id, one.instance_id, one.metadata(self.protocol))
                for one in self.members.values()
            ]
        return JoinAnswer(
            ErrorCode.NONE, member.id, self.generation, self.protocol, leader, everybody
        )

    def _choose_protocol(self) -> str:
        """Return the strategy that most members prefer, of those that all of them know."""
        members = list(self.members.values())
        common = [
            name
            for name, _ in members[0].protocols
            if all(name in dict(member.protocols) for member in members)
        ]
        votes = dict.fromkeys(common, 0)
        for member in members:
            votes[next(name for name, _ in member.protocols if name in votes)] += 1
        return max(common, key=lambda name: votes[name])

    # Assigning.

    def _assign(self, assignments: dict[str, bytes]) -> None:
        self._stop_syncing()
        self.state = GroupState.STABLE
        for member in list(self.members.values()):
            member.encoded_assignment = assignments.get(member.id, b"")
        self._note(self.name, "generation", str(self.generation))
        for member in list(self.members.values()):
            if member.syncing is not None:
                member.answer_sync(ErrorCode.NONE, member.encoded_assignment)
                self._alive(member)

    def _force_sync(self) -> None:
        """Remove the members that have not asked for their assignment in time."""
        self._syncing = None
        late = [member for member in self.members.values() if member.syncing is None]
        for member in late:
            self._forget(member)
            self._note(member.client_id, "expire", self.name)
        if late:
            self._prepare()

    def _stop_syncing(self) -> None:
        if self._syncing is not None:
            self._syncing.cancel()
            self._syncing = None

    # Membership.

    def _known(self, member_id: str, instance_id: str | None) -> Member:
        if instance_id is not None:
            current = self._static.get(instance_id)
            if current is not None and current != member_id:
                raise RequestRefused(ErrorCode.FENCED_INSTANCE_ID)
        member = self.members.get(member_id)
        if member is None:
            raise RequestRefused(ErrorCode.UNKNOWN_MEMBER_ID)
        return member

    def _checked(self, member_id: str, instance_id: str | None, generation: int) -> Member:
        member = self._known(member_id, instance_id)
        if generation != self.generation:
            raise RequestRefused(ErrorCode.ILLEGAL_GENERATION)
        return member

    def _alive(self, member: Member) -> None:
        self._expect(member, member.session_timeout)

    def _expect(self, member: Member, seconds: float) -> None:
        """Expect a heartbeat within so many seconds."""
        member.stop_timer()
        member.timer = self._loop.call_later(seconds, self._expire, member)

    def _expire(self, member: Member) -> None:
        member.timer = None
        if self.members.get(member.id) is member and (member.is_new or not member.waits):
            self._remove(member, "expire")

    def _give_up_pending(self, identifier: str) -> None:
        del self._pending[identifier]
        self._complete_join()

    def _remove(self, member: Member, why: str) -> None:
        self._forget(member)
        self._note(member.client_id, why, self.name)
        self._prepare()
        self._complete_join()

    def _forget(self, member: Member) -> None:
        member.stop_timer()
        member.answer_join(JoinAnswer(ErrorCode.UNKNOWN_MEMBER_ID, ""))
        member.answer_sync(ErrorCode.UNKNOWN_MEMBER_ID)
        del self.members[member.id]
        if member.instance_id is not None:
            del self._static[member.instance_id]
        if self.leader == member.id:
            self.leader = next(iter(self.members), None)
