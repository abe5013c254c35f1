"""Rebalances: how a member takes over partitions, and what it finishes before it gives them up."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from ..._contract import Receiver
from .._aiokafka_private import is_lost, rejoin, watch_topics
from .._bus_context import BusContext
from .._takeovers import Takeovers
from ..producing._transactions import TransactionFailed
from ._assignment import Assignment
from ._commits import Committer
from ._committable_offsets import PartitionTracker
from ._consumer_sessions import unless
from ._dispatcher import Dispatcher
from ._leader_epochs import report_lost_ends
from ._partition_guard import PartitionGuard
from ._partition_tenures import PartitionTenures
from ._start_positions import compare
from ._unit_commits import UnitCommits
from ._units import Units

__all__ = ["COMMIT_TIMEOUT", "MemberState", "Rebalances"]

_log = get_logger(__name__)

COMMIT_TIMEOUT = 5.0
"""Seconds that the last commit of an assignment may take."""
_SHARE_FOR_RUNNING = 0.8
_MOST_NAMED = 10


class MemberState(enum.Enum):
    """What a member has in its group.

    Attributes:
        JOINING: nothing; it has never been assigned anything.
        ASSIGNED: the partitions of the last assignment.
        REVOKED: its membership, while the partitions are reassigned.
        LOST: nothing; the group has dropped it, or another program has taken its name.
        REJOINING: nothing; it has left, to return as another member.
    """

    JOINING = enum.auto()
    ASSIGNED = enum.auto()
    REVOKED = enum.auto()
    LOST = enum.auto()
    REJOINING = enum.auto()


_PUT_OUT = (MemberState.LOST, MemberState.REJOINING)


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    """Takes over the partitions that a group assigns to a member, and gives them up again.

    Before they are given up, what was not started is given back, what is running is waited for, and
    what is settled is committed.

    It listens to each of the library's consumers of a member, one after another, as the
    membership outlives them.

    Args:
        context: that of the bus.
        identifier: of the consumer.
        group: its id.
        dispatcher: knows what was handed out.
        receiver: is told when to hold and to resume.
        rewind_to: the time to which partitions are rewound once, in milliseconds since 1970 (UTC);
            None for none.
        remembers: whether what was handed out has to be recognised when it comes again.
        on_room: called when a partition that was full no longer is.
        on_positions: called with the topics that were deleted and recreated, when the positions of
            a new assignment are known.
        closed: set when the consumer is closed.
        units: makes what commits the partitions in transactions; None if they are committed
            without.

    Attributes:
        assignment: the current one; None between two.
        committer: that of the current assignment.
        misplaced: why the positions of the current assignment are not known; None if they are.
    """

    def __init__(
        self,
        context: BusContext,
        identifier: str,
        group: str,
        dispatcher: Dispatcher,
        receiver: Receiver,
        *,
        rewind_to: int | None,
        remembers: bool,
        on_room: Callable[[TopicPartition], None],
        on_positions: Callable[[Collection[str]], None],
        closed: asyncio.Event,
        units: Units | None = None,
    ) -> None:
        self.assignment: Assignment | None = None
        self.committer: Committer | UnitCommits | None = None
        self.misplaced: Exception | None = None
        self._identifier = identifier
        self._group = group
        self._config = context.config
        self._stats = context.surroundings.stats
        self._dispatcher = dispatcher
        self._receiver = receiver
        self._rewind_to = rewind_to
        self._remembers = remembers
        self._on_room = on_room
        self._on_positions = on_positions
        self._closed = closed
        self._takeovers = Takeovers(context.contest, context.surroundings, identifier, group)
        self._state = MemberState.JOINING
        self._epoch = 0
        self._joining_since = self._joined_at = 0.0
        # Whether the receiver was told to hold.
        self._held = False
        self._reassigned = asyncio.Event()
        # Set once the positions are known, or it is known why not.
        self._placed = asyncio.Event()
        self._consumer: Any = None
        self._guard: PartitionGuard | None = None
        self._units = units
        # What was begun and not ended: a rebalance may begin it while the member is leaving.
        self._open: set[UnitCommits] = set()
        self._tenures = PartitionTenures()
        # A rebalance and a rollback have to wait for each other.
        self._changing = asyncio.Lock()
        self._rolling_back: asyncio.Task[None] | None = None

    def _become(self, state: MemberState) -> None:
        """Change the state; the only place where it changes."""
        self._state = state

    # Called by the member.

    @property
    def trouble(self) -> str | None:
        """Why what is settled is not committed, as text; None if that does not keep failing."""
        commits = self.committer or self._units
        return None if commits is None else commits.trouble

    def use(self, consumer: Any, guard: PartitionGuard) -> None:
        """Listen to this consumer of the library from now on."""
        self._consumer = consumer
        self._guard = guard
        self._placed.clear()

    async def placed(self) -> None:
        """Wait until the positions of the assignment are known, or it is known why not."""
        await self._placed.wait()

    async def rejoin(self) -> None:
        """Leave the group and return as another member, to get partitions that nobody has."""
        self._become(MemberState.REJOINING)
        self._reassigned.clear()
        await rejoin(self._consumer, self._reassigned)

    def resume(self) -> None:
        """Let the receiver continue, unless it is the end."""
        if self._held and not self._closed.is_set():
            self._held = False
            self._receiver.resume(redelivered=True)

    async def leave(self, *, wait: bool, commit_within: Callable[[], float]) -> None:
        """Finish with the assignment, as the consumer of the library is to be stopped.

        Args:
            wait: whether to wait for what is running.
            commit_within: returns how many seconds the last commit may take.
        """
        if self.assignment is not None:
            # A transaction that fails from now on begins nothing anew.
            self.assignment.end()
        await self._stop_rolling_back()
        if self._units is not None:
            await self._units.stop_restoring()
            self._units.flush()
        try:
            assignment, committer = self.assignment, self.committer
            if assignment is None or committer is None:
                return
            assignment.end()
            if not self._closed.is_set():
                self._hold()
                if wait:
                    await unless(self._closed, self._running_finished(assignment))
            if self.committer is not None:
                await self._finish(self.committer, commit_within(), lost=is_lost(self._consumer))
        finally:
            self._forget()

    async def left(self) -> None:
        """End what a rebalance has begun meanwhile, as the consumer of the library is stopped."""
        for commits in [*self._open]:
            await self._finish(commits, 0.0, lost=True)

    async def _finish(
        self, committer: Committer | UnitCommits, seconds: float, *, lost: bool
    ) -> None:
        await committer.finish(seconds, lost=lost)
        if isinstance(committer, UnitCommits):
            self._open.discard(committer)

    # Called by the library, which would swallow errors.

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        try:
            async with self._changing:
                await self._give_up()
        except Exception:  # noqa: BLE001 (nobody else would say so)
            _log.exception("consumer %r could not give back partitions", self._identifier)
        # The library joins again as soon as this returns.
        self._joining_since = asyncio.get_running_loop().time()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        async with self._changing:
            await self._take_over(assigned)

    async def _give_up(self) -> None:
        """Give up the partitions, which are being reassigned."""
        assignment, committer = self.assignment, self.committer
        if assignment is None or committer is None:
            return
        assignment.end()
        self._hold()
        if self._units is not None:
            await self._units.stop_restoring()
        lost = is_lost(self._consumer)
        if self._state is not MemberState.REJOINING:
            self._become(MemberState.LOST if lost else MemberState.REVOKED)
        if not lost:
            await self._running_finished(assignment)
        await self._finish(committer, COMMIT_TIMEOUT, lost=lost)
        self._forget()
        self._stats["kafka.rebalances"] += 1
        if self._state is MemberState.LOST:
            now = asyncio.get_running_loop().time()
            self._takeovers.lost(
                now - self._joined_at,
                expired=now - self._joining_since >= self._config.session_timeout,
            )
            if self._takeovers.given_up:
                # The library would take the place again as soon as this returns, and the other
                # program might then give way, too. Closing cancels this.
                await asyncio.get_running_loop().create_future()

    async def _take_over(self, partitions: Collection[TopicPartition]) -> None:
        """Take over the assigned partitions, or note why that cannot be done."""
        self.misplaced = None
        self._placed.clear()
        try:
            await self._begin(partitions)
        except Exception as error:  # noqa: BLE001 (raised where the session ends over it)
            self.misplaced = error
        self._placed.set()
        self._reassigned.set()
        self.resume()

    async def _begin(self, partitions: Collection[TopicPartition]) -> None:
        """Begin an assignment with these partitions, and find out what is committed in them."""
        self._epoch += 1
        self._joined_at = asyncio.get_running_loop().time()
        assignment = Assignment(self._epoch)
        assignment.open = False
        if self.assignment is not None:
            self._tenures.leave(self.assignment)
        for partition in sorted(partitions):
            assignment.trackers[partition] = self._tracker_of(assignment, partition)
        self._dispatcher.keep(assignment.trackers)
        assert self._guard is not None
        self._guard.reassigned(partitions)
        if self._units is not None:
            # Before anybody is fenced who may have them.
            self._units.check_assignment(self._consumer, partitions)
        self.assignment = assignment
        self.committer = self._committer_of(assignment)
        if self._state in _PUT_OUT:
            watch_topics(self._consumer)
        self._become(MemberState.ASSIGNED)
        # Until it is known what is committed, what is fetched would be put back again and again.
        self._consumer.pause(*assignment.trackers)
        if isinstance(self.committer, UnitCommits):
            self._open.add(self.committer)
            await self.committer.open()
            assert self._units is not None
            await self._units.prepare(self._consumer, assignment)
        async with asyncio.timeout(self._config.connect_timeout):
            gone = await compare(self._consumer, assignment, self._rewind_to)
        self._tenures.take_over(assignment)
        if self._units is not None:
            self._units.take_first_places(self._consumer, assignment, gone)
        self._on_positions(gone)
        self._dispatcher.forget_topics({place.topic for place in assignment.lost})
        self._say_what_comes_again(assignment)
        assignment.open = True
        if self._units is not None and not assignment.ended:
            # The group does not wait for that.
            self._units.begin_restoring(self._on_room)
        for partition in assignment.trackers:
            self._on_room(partition)

    def _tracker_of(self, assignment: Assignment, partition: TopicPartition) -> PartitionTracker:
        if self._units is None:
            return PartitionTracker(assignment, partition, self._on_room)
        return self._units.tracker(assignment, partition, self._on_room)

    def _committer_of(self, assignment: Assignment) -> Committer | UnitCommits:
        if self._units is None:
            return Committer(self._consumer, assignment, self._config, self._stats, self._group)
        return self._units.commits(assignment, partial(self._transaction_failed, assignment))

    # Transactions that fail.

    def _transaction_failed(self, assignment: Assignment, error: TransactionFailed) -> None:
        if assignment is not self.assignment or assignment.ended:
            return
        assignment.end()
        if self._rolling_back is not None:
            # It is that of an earlier assignment, which was given up meanwhile.
            self._rolling_back.cancel()
        self._rolling_back = asyncio.ensure_future(self._roll_back(assignment, error))
        self._rolling_back.add_done_callback(self._rolled_back)

    def _rolled_back(self, task: asyncio.Task[None]) -> None:
        if self._rolling_back is task:
            self._rolling_back = None
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, Exception):
            self.misplaced = failure

    async def _roll_back(self, assignment: Assignment, error: TransactionFailed) -> None:
        """Drop everything that is not committed, and begin again at what is."""
        assert self._units is not None
        self._hold()
        # What is fetched meanwhile would be put back again and again.
        assigned = self._consumer.assignment()
        self._consumer.pause(*(place for place in assignment.trackers if place in assigned))
        delay = self._units.has_failed(error)
        if error.fenced:
            # Another member may have the partitions, and must not be fenced in turn: this one is
            # told so within that time.
            delay = max(delay, 2 * self._config.heartbeat_interval)
        if delay:
            await asyncio.sleep(delay)
        async with self._changing:
            if self.assignment is not assignment or self.committer is None:
                return
            await self._units.stop_restoring()
            lost = is_lost(self._consumer)
            await self._finish(self.committer, COMMIT_TIMEOUT, lost=lost)
            self._units.leave(assignment)
            await self._take_over([*assignment.trackers])

    async def _stop_rolling_back(self) -> None:
        if self._rolling_back is not None:
            self._rolling_back.cancel()
            await asyncio.wait((self._rolling_back,))

    def _say_what_comes_again(self, assignment: Assignment) -> None:
        report_lost_ends(f"group {self._group!r}", assignment.lost, self._stats)
        if assignment.again:
            self._stats["kafka.partitions_rewound"] += len(assignment.again)
            _log.warning(
                "group %r: rewind_to: reading again from that time: %s",
                self._group,
                _named(assignment.again),
            )
        if assignment.kept:
            _log.warning(
                "group %r: rewind_to has no effect where a tool or another program has set the"
                " offset: %s; set it to that time in the same way",
                self._group,
                _named(assignment.kept),
            )

    async def _running_finished(self, assignment: Assignment) -> None:
        """Wait for the handlers that are at work on what came from these partitions."""
        patience = _SHARE_FOR_RUNNING * self._config.rebalance_timeout
        await assignment.finished(assignment.running(), patience)

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._receiver.hold()

    def _forget(self) -> None:
        assignment, self.assignment, self.committer = self.assignment, None, None
        if assignment is None:
            return
        self._tenures.leave(assignment)
        if self._remembers:
            self._dispatcher.remember(assignment)


def _named(partitions: Collection[TopicPartition]) -> str:
    names = [f"{place.topic}-{place.partition}" for place in sorted(partitions)]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
