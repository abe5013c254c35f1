"""The group member: joining a consumer group, its sessions, and leaving it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Awaitable, Collection
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from ...._moments import milliseconds
from ..._contract import Receiver, Subscription
from .._aiokafka_private import (
    client_of,
    end_tasks,
    keep_connections,
    knows_coordinator,
    leave,
    overhear,
    separate_fetches,
    stop_consumer,
    watch_topics,
)
from .._bus_context import BusContext
from .._errors import GroupRefused
from .._reachability import Brokers
from .._throttling import Throttling
from .._topic_facts import TopicsRecreated
from ._assignment import Assignment
from ._commits import Committer
from ._consumer_sessions import ConsumerSessions, SessionState, unless
from ._fetching import Fetched
from ._group_requests import NO_COORDINATOR, join_refusal, misassigned
from ._lag import lag_of
from ._number_assignor import NumberAssignor
from ._partition_guard import PartitionGuard
from ._partition_pauses import PartitionPauses
from ._rebalances import COMMIT_TIMEOUT, Rebalances
from ._start_positions import recreated_since, take_places
from ._units import Units

__all__ = ["GroupMember"]

_log = get_logger(__name__)

# When no broker could be reached before.
_LAST_CHANCE = 0.5
_STOP_TIMEOUT = 3.0
_LOOK_AGAIN = 0.05
_MOST_LOOKS_IN_VAIN = 10
# How many times `topic_refresh` the library may wait before it looks at the cluster unasked.
_METADATA_AGE = 100
# A timer may fire a little before its time: what is meant for that moment is due already.
_EARLY = 0.05


class GroupMember(ConsumerSessions):
    """Shares the partitions of its topics with the other members of its group.

    It gets partitions, and gives them up, as `Rebalances` says. What is settled is committed.
    """

    def __init__(self, context: BusContext, subscription: Subscription, receiver: Receiver) -> None:
        super().__init__(context, subscription, receiver)
        moment = subscription.rewind_to
        self._rewind_to = None if moment is None else milliseconds(moment)
        self._units: Units | None = None
        if subscription.transactional:
            self._units = Units(context, subscription, self._group)
            self._units.check(self._selection)
        self._rebalances = Rebalances(
            context,
            self.identifier,
            self._group,
            self._dispatcher,
            receiver,
            rewind_to=self._rewind_to,
            # In transactions only what was committed counts.
            remembers=not (self._at_most_once or subscription.transactional),
            on_room=self._on_room,
            on_positions=self._positions_known,
            closed=self._closed,
            units=self._units,
        )
        self._next_look = 0.0
        self._looks_in_vain = 0
        # The broker that coordinates the group, while that cannot be reached.
        self._unreachable = ""
        self._throttling = Throttling(f"consumer {self.identifier!r}", self._stats)

    @property
    def assignment(self) -> Assignment | None:
        return self._rebalances.assignment

    @property
    def lag(self) -> int | None:
        return lag_of(self.assignment, self._consumer)

    @property
    def _group(self) -> str:
        group = self._surroundings.identity.group_of(self._subscription.name)
        return self._names.group(group if self._subscription.share else self.identifier)

    # One consumer of the library after another.

    async def _session(self) -> None:
        changes = [*self._changes]
        if not await self._unless_interrupted(self._reach()):
            return
        if not self._filters:
            self._rebalances.resume()
            self._in_force(changes)
            await self._interrupt.wait()
            return
        consumer = self._consumer = self._make()
        guard = self._guard = PartitionGuard(consumer, self._troubles)
        self._rebalances.use(consumer, guard)
        pauses = self._pauses = self._pauses_for(consumer, guard)
        self._looks_in_vain, self._unreachable = 0, ""
        stalled: Assignment | None = None
        try:
            if not await self._unless_interrupted(self._join(consumer, guard)):
                return
            self._in_force(changes)
            if not await self._fetching(consumer, guard, pauses).run(self._interrupt):
                stalled = self.assignment
        finally:
            await self._leave(consumer, for_good=stalled is not None or bool(self._changes))
        if stalled is not None:
            self._enter(
                SessionState.AWAY, "it has left its group because nothing was settled for too long"
            )
            # Until then it would only take from others what it cannot handle.
            running = stalled.running()
            one_less = max(len(running) - 1, 0)
            await self._unless_interrupted(stalled.finished(running, math.inf, one_less))

    async def close(self, seconds: float = math.inf) -> None:
        """As in `ConsumerSessions`."""
        await super().close(seconds)
        if self._units is not None:
            await self._units.close()

    def _make(self) -> Any:
        config = self._config
        options = self._options()
        names, pattern, _ = self._selection
        if pattern is None:
            # Changes of topics known by name are noticed in `_check_topics`.
            options["metadata_max_age_ms"] *= _METADATA_AGE
        if self._units is not None:
            options["partition_assignment_strategy"] = (NumberAssignor,)
        consumer = AIOKafkaConsumer(
            **options,
            group_id=self._group,
            group_instance_id=self._names.group(self.identifier),
            auto_offset_reset="earliest",
            session_timeout_ms=int(config.session_timeout * 1000),
            heartbeat_interval_ms=int(config.heartbeat_interval * 1000),
            rebalance_timeout_ms=int(config.rebalance_timeout * 1000),
            max_poll_interval_ms=int(config.max_poll_interval * 1000),
        )
        keep_connections(client_of(consumer), self._renewed_options, self._config.connect_timeout)
        separate_fetches(client_of(consumer))
        overhear(client_of(consumer), fetched=self._hear, throttled=self._throttling.hear)
        if pattern is None:
            consumer.subscribe(topics=list(names), listener=self._rebalances)
        else:
            # The library accepts either names or a pattern.
            every = [*(re.escape(name) for name in names), pattern.pattern]
            whole = "|".join(f"(?:{part})" for part in every)
            consumer.subscribe(pattern=rf"(?:{whole})\Z", listener=self._rebalances)
        return consumer

    async def _join(self, consumer: Any, guard: PartitionGuard) -> None:
        # A group that is rebalancing lets nobody in until that is done.
        patience = self._config.start_timeout
        async with asyncio.timeout(patience + self._config.rebalance_timeout) as limit:
            give_up = self._give_up_without_coordinator
            timer = asyncio.get_running_loop().call_later(patience, give_up, limit)
            try:
                await consumer.start()
            except kafka.KafkaError:
                # A known name gets what it had before, and the library fails if that is no longer
                # wanted. The next attempt has to be as another member.
                await end_tasks(consumer, _STOP_TIMEOUT)
                await leave(consumer)
                raise
            finally:
                timer.cancel()
            guard.start()
            await self._check_rights(client_of(consumer))
            if await misassigned(consumer, self._group):
                await self._rebalances.rejoin()
            watch_topics(consumer)
            while True:
                await self._rebalances.placed()
                if self._subscription.transactional and self._rebalances.misplaced is not None:
                    # What does not fit is to be told at the start.
                    raise self._rebalances.misplaced
                try:
                    reset, now = self._config.offset_reset, self._surroundings.environment.now()
                    await take_places(consumer, self.assignment, reset, now, self._rewind_to)
                    return
                except (kafka.IllegalStateError, kafka.CommitFailedError):
                    # The partitions were reassigned meanwhile.
                    await asyncio.sleep(_LOOK_AGAIN)

    def _give_up_without_coordinator(self, limit: asyncio.Timeout) -> None:
        if not self._has_coordinator():
            limit.reschedule(asyncio.get_running_loop().time())

    def _has_coordinator(self) -> bool:
        guard = self._guard
        assert guard is not None
        self._unreachable = "" if knows_coordinator(self._consumer) else guard.coordinator
        return guard.join_code != NO_COORDINATOR and not self._unreachable

    async def _leave(self, consumer: Any, *, for_good: bool) -> None:
        """Stop using this consumer of the library: commit, and give back what it had."""
        try:
            await self._rebalances.leave(
                wait=bool(self._changes), commit_within=self._time_for_last_commit
            )
        finally:
            if for_good:
                # The name would get what it had before, whatever it wants now. The tasks would
                # rejoin at once.
                await end_tasks(consumer, _STOP_TIMEOUT)
                await unless(self._closed, leave(consumer))
            await stop_consumer(consumer, _STOP_TIMEOUT)
            await self._rebalances.left()
            self._consumer = self._pauses = None

    def _explained(self, error: Exception) -> Exception:
        return self._refusal_of(error) or error

    def _refusal_of(self, error: Exception) -> GroupRefused | ConnectionError | None:
        code = 0 if self._guard is None else self._guard.join_code
        return join_refusal(error, code, self._group, self._config, self._unreachable)

    def _time_for_last_commit(self) -> float:
        brokers = Brokers.ANSWERING if self._latest is None else self._latest.brokers
        if self.closed and brokers is not Brokers.ANSWERING:
            return _LAST_CHANCE
        left = self._close_by - asyncio.get_running_loop().time()
        return min(COMMIT_TIMEOUT, max(left, _LAST_CHANCE))

    def _positions_known(self, gone: Collection[str]) -> None:
        """Note that the positions of a new assignment are known, and which topics are new ones."""
        self._forget_recreated(gone)
        self._reported.clear()
        self._next_look = self._moment_to_look()

    @property
    def trouble(self) -> str | None:
        trouble = super().trouble or self._rebalances.trouble
        if trouble is None and self._looks_in_vain >= _MOST_LOOKS_IN_VAIN:
            return str(self._refusal_of(TimeoutError()))
        return trouble

    async def _look(self) -> None:
        self._looks_in_vain = 0 if self._has_coordinator() else self._looks_in_vain + 1
        if self._rebalances.misplaced is not None:
            raise self._rebalances.misplaced
        await super()._look()
        assignment = self.assignment
        if assignment is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.connect_timeout):
                    trusted = await assignment.epochs.verify(client_of(self._consumer))
                assert self._pauses is not None
                self._pauses.resume(*trusted)
        now = asyncio.get_running_loop().time()
        if assignment is None or now < self._next_look:
            return
        self._next_look = self._moment_to_look()
        try:
            # It must not keep others from seeing that nobody answers.
            async with asyncio.timeout(self._config.connect_timeout):
                gone = await self._check_topics(assignment)
        except (OSError, kafka.KafkaError) as error:
            _log.debug("consumer %r: its topics could not be checked: %s", self.identifier, error)
            return
        if gone and not assignment.ended:
            raise TopicsRecreated(gone)

    def _moment_to_look(self) -> float:
        """Return the next moment at which all consumers look at their topics (loop time)."""
        now, refresh = asyncio.get_running_loop().time(), self._config.topic_refresh
        return ((now + _EARLY) // refresh + 1) * refresh - _EARLY

    async def _check_topics(self, assignment: Assignment) -> list[str]:
        """Have the library look again if topics have changed; return those that were recreated.

        A leader that is cut off from the other brokers does not know that it is none any more, and
        answers as if nothing new had come.
        """
        client = client_of(self._consumer)
        names = {*assignment.ids, *self._selection.names}
        units = self._units
        facts = await self._facts.look_up(
            client, names if units is None else names.union(units.topics_to_watch)
        )
        if units is not None and facts is not None:
            units.hear(facts)
        cluster = client.cluster
        if facts is None or any(
            name not in facts
            or facts[name].leaders
            != {
                number: cluster.leader_for_partition(TopicPartition(name, number))
                for number in cluster.partitions_for_topic(name) or ()
            }
            for name in names
        ):
            await client.force_metadata_update()
        return recreated_since(assignment, facts or {})

    def _handed_out(self) -> None:
        assignment, committer, guard = self.assignment, self._rebalances.committer, self._guard
        if assignment is None or committer is None or guard is None:
            return
        if assignment.open and not assignment.ended and self._state is SessionState.RECEIVING:
            known = self._troubles.known
            committer.catch_up(lambda tp: -1 if tp in known else guard.position(tp))

    # Records.

    def _take(self, fetched: Fetched) -> Awaitable[None] | None:
        assignment, pauses = self.assignment, self._pauses
        assert pauses is not None
        if assignment is None:
            raise self._rebalances.misplaced or kafka.KafkaError("the library reported nothing")
        receiving = self._state is SessionState.RECEIVING
        if not receiving or assignment.ended or not assignment.open:
            self._put_back(fetched, pauses)
            return None
        if self._at_most_once:
            return self._take_at_most_once(assignment, fetched)
        for partition, records in fetched.items():
            self._dispatcher.hand_out(assignment, partition, records)
            pauses.pause_if_full(assignment.trackers[partition])
        return None

    def _put_back(self, fetched: Fetched, pauses: PartitionPauses) -> None:
        """Rewind to records that come again: the library must not count them as handed out.

        They are not to come before the next assignment.
        """
        consumer = self._consumer
        for partition, records in fetched.items():
            consumer.seek(partition, records[0].offset)
            pauses.pause(partition)

    async def _take_at_most_once(self, assignment: Assignment, fetched: Fetched) -> None:
        committer = self._rebalances.committer
        assert isinstance(committer, Committer)
        offsets = {partition: records[-1].offset + 1 for partition, records in fetched.items()}
        confirmed = await committer.commit(offsets)
        if assignment.ended:
            return
        if not confirmed:
            raise kafka.KafkaError("what was fetched could not be committed")
        for records in fetched.values():
            self._dispatcher.hand_out_untracked(assignment, records)

    def _on_room(self, partition: TopicPartition) -> None:
        if self._pauses is not None:
            self._pauses.resume(partition)
