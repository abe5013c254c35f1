"""Commits of units: transactions with offsets of partitions, and outcomes of their messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ...._limited_log import LimitedLog
from ...._logs import get_logger
from ....errors import ConfigurationError, NotAuthorised, UnknownTopic
from ..._commit_steps import Reached
from .._config import KafkaConfig
from .._errors import describe
from .._offset_notes import offset_note
from .._records import Record
from ..producing._partition_queue import REFUSED_FOR_ALL, UNANSWERED_FOR
from ..producing._transactions import Placed, Refusals, TransactionalProducer, TransactionFailed
from ._assignment import Assignment
from ._changelog import wake_header
from ._snapshot_file import Place
from ._snapshots import PartitionStates, SnapshotLost
from ._unit_tracker import Due, PartitionUnit, records_of, source_of

__all__ = ["UnitCommits"]

_log = get_logger(__name__)

_NEVER = 1 << 62
_INTERVAL = 0.1
# What a transaction costs, so that many partitions do not take all of the time.
_INTERVAL_OF_A_PARTITION = 0.005
_MOST_OUTCOMES = 5_000
# Why a topic takes nothing, whatever it is.
_ABOUT_TOPICS = (*REFUSED_FOR_ALL, ConfigurationError, NotAuthorised, UnknownTopic)


class _Committed:
    """One unit of an assignment, and the producer that commits it.

    Attributes:
        unit: the unit.
        producer: commits it.
        task: the transaction under way; None if there is none.
        began: when the last one began (loop time).
        failed: whether one has failed, so that nothing more of this assignment is committed.
    """

    def __init__(self, unit: PartitionUnit, producer: TransactionalProducer) -> None:
        self.unit = unit
        self.producer = producer
        self.task: asyncio.Task[None] | None = None
        self.began = 0.0
        self.failed = False


class UnitCommits:
    """Commits the settled prefixes of an assignment's units, each in transactions of its own.

    It ends with the assignment, or with the first transaction that fails: then everything begins
    anew at what is committed, as it is not known what that is.

    Args:
        assignment: the assignment, whose trackers are `UnitTracker`s.
        config: says how often to commit.
        stats: counts ``kafka.transactions`` and ``kafka.transactions_failed``.
        group: its id.
        make: makes the producer of a unit with a number.
        on_committed: called after each transaction that has succeeded.
        on_failed: called once with the reason when a transaction has failed.
        changelog: the topic of the states of keys; empty if none are kept.
        log: where failures are logged, of all assignments.
        trouble: returns why transactions of all assignments keep failing; None if they do not.
        now: returns the seconds since 1970.
        epoch_of: returns the epoch of the leader of a partition of the changelog, or of a former
            one; -1 if none is known.
        reached: is told of each step of a transaction with outcomes; None for nobody.
    """

    def __init__(
        self,
        assignment: Assignment,
        config: KafkaConfig,
        stats: Counter[str],
        group: str,
        make: Callable[[int], TransactionalProducer],
        on_committed: Callable[[], None],
        on_failed: Callable[[TransactionFailed], None],
        changelog: str,
        log: LimitedLog,
        trouble: Callable[[], str | None],
        now: Callable[[], float],
        epoch_of: Callable[[int], int],
        reached: Reached | None = None,
    ) -> None:
        self._changelog = changelog
        self._assignment = assignment
        self._config = config
        self._stats = stats
        self._group = group
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._trouble = trouble
        self._now = now
        self._epoch_of = epoch_of
        self._reached = reached
        units: dict[PartitionUnit, None] = {}
        for tracker in assignment.trackers.values():
            assert isinstance(tracker.unit, PartitionUnit)
            units[tracker.unit] = None
        self._units = [_Committed(unit, make(unit.number)) for unit in units]
        self._interval = max(
            min(config.commit_interval, _INTERVAL), _INTERVAL_OF_A_PARTITION * len(self._units)
        )
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._ended = False
        self._finishing: list[asyncio.Future[None]] | None = None
        assignment.on_release = self._on_release

    async def open(self) -> None:
        """Start the producers: what others have begun in these partitions is over then.

        Raises:
            OSError, aiokafka.errors.KafkaError: no connection, or the cluster refuses it.
        """
        starting = [asyncio.ensure_future(it.producer.start()) for it in self._units]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for start in starting:
                start.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            raise

    @property
    def trouble(self) -> str | None:
        """As in `Units`: with the first transaction that fails the assignment is over."""
        for it in self._units:
            # Another thread may look at it.
            if it.task is not None and self._loop.time() - it.began >= UNANSWERED_FOR:
                return (
                    f"nothing is committed of {it.unit.text}: the brokers have not confirmed a"
                    f" transaction for {UNANSWERED_FOR:.0f} s"
                )
        return self._trouble()

    @property
    def pending(self) -> bool:
        """Whether something is settled and not committed."""
        return any(it.task is not None or it.unit.has_due for it in self._units)

    # When.

    def _on_release(self) -> None:
        assignment = self._assignment
        if self._ended:
            assignment.notify_at = _NEVER
        elif assignment.hurried or assignment.released >= _MOST_OUTCOMES:
            assignment.notify_at = _NEVER
            self._commit_soon()
        else:
            assignment.notify_at = _MOST_OUTCOMES
            if self._timer is None:
                self._timer = self._loop.call_later(self._interval, self._commit_all)

    def _commit_soon(self) -> None:
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._commit_all)

    def _commit_all(self) -> None:
        self._soon = False
        self._cancel_timer()
        assignment = self._assignment
        assignment.released, assignment.notify_at, assignment.hurried = 0, 1, False
        for it in self._units:
            self._begin(it)

    def _begin(self, it: _Committed) -> None:
        if self._ended or it.task is not None or it.failed:
            return
        due = it.unit.due(_MOST_OUTCOMES)
        if due is None:
            return
        it.began = self._loop.time()
        it.task = self._loop.create_task(self._commit(it, due))
        it.task.add_done_callback(lambda _: self._done(it))

    def _done(self, it: _Committed) -> None:
        it.task = None
        if it.unit.has_due and not it.failed:
            self._on_release()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def catch_up(self, position: Callable[[TopicPartition], int]) -> None:
        """Commit past records that were read but are not handed out.

        Args:
            position: returns up to where a partition was read and handed out.
        """
        assignment = self._assignment
        news = [
            tracker.pass_to(position(place))
            for place, tracker in assignment.trackers.items()
            if assignment.ids or tracker.first >= 0
        ]
        if any(news):
            self._on_release()

    # Committing.

    async def _commit(self, it: _Committed, due: Due) -> None:
        unit = it.unit
        records, origins = records_of(due)
        placed = [Placed(record) for record in records]
        for key, taken in due.states.items():
            outcome = taken[2]
            headers = wake_header(outcome.wake)
            record = Record(self._changelog, key, outcome.value, headers, None)
            placed.append(Placed(record, unit.number))
            origins.append(taken)
        offsets = {place: self._noted(place, offset) for place, offset in due.offsets.items()}
        # What is known before anything is sent: whatever leads then appends it.
        epoch = self._epoch_of(unit.number)
        reached = self._reached if due.outcomes else None
        try:
            if reached is not None:
                await reached("handled")
            ends = await it.producer.commit(
                placed, offsets, apart=unit.refusals.apart(due), reached=reached
            )
        except TransactionFailed as error:
            it.failed = True
            refusals, why = _of_messages(error, len(records))
            if refusals is not None:
                unit.refusals.add(refusals, [source_of(taken) for taken in origins])
            why.began = it.began
            self._fail(unit, why)
            return
        if reached is not None:
            await reached("committed")
        self._stats["kafka.transactions"] += 1
        self._on_committed()
        unit.has_committed(due)
        for _, _, outcome in due.outcomes:
            for committed in outcome.committed:
                committed()
        if unit.states is not None:
            end = ends.get(TopicPartition(self._changelog, unit.number))
            if end is not None and unit.states.restored:
                if end - len(due.states) < unit.states.position:
                    await self._has_lost_its_end(it, unit.states, end - len(due.states))
                else:
                    await _keep(unit.states, Place(end, self._now(), epoch))

    async def _has_lost_its_end(self, it: _Committed, states: PartitionStates, found: int) -> None:
        """Begin anew with what the changelog has: nobody else appends to it."""
        it.failed = True
        number = states.partition
        why = (
            f"partition {number} of the changelog {self._changelog!r} was known up to offset"
            f" {states.position}, and has lost its end: a record has got offset {found}"
        )
        self._stats["kafka.ends_lost"] += 1
        self._log.warning(
            "group %r: the states of keys are read again, and those that are not there any more are"
            " what they were before: %s",
            self._group,
            why,
        )
        states.forget()
        if states.snapshot is not None:
            # Everything begins anew if it cannot be used, too.
            with contextlib.suppress(SnapshotLost):
                await states.snapshot.forget(number, why)
        if not self._ended:
            self._on_failed(TransactionFailed(SnapshotLost(why)))

    def _noted(self, place: TopicPartition, offset: int) -> OffsetAndMetadata:
        assignment = self._assignment
        claims = assignment.epochs.claims(place, offset)
        note = offset_note(assignment.ids.get(place.topic), assignment.rewound.get(place), claims)
        return OffsetAndMetadata(offset, note)

    def _fail(self, unit: PartitionUnit, error: TransactionFailed) -> None:
        self._stats["kafka.transactions_failed"] += 1
        if self._ended:
            _log.info("group %r: the last transaction has failed: %s", self._group, error)
            return
        self._log.warning(
            "group %r: a transaction of %s has failed, and what was handled since the last one is"
            " handled again: %s",
            self._group,
            unit.text,
            describe(error.__cause__ or error),
        )
        self._on_failed(error)

    async def finish(self, timeout: float, *, lost: bool = False) -> None:
        """Commit what is left, within ``timeout`` seconds, and nothing after that.

        Args:
            timeout: seconds.
            lost: whether the partitions are already gone, so nothing is to be committed.
        """
        self._ended = True
        self._cancel_timer()
        # A rebalance may come while the member is leaving. Of two commits of a partition at once
        # the later one could succeed alone, and what the other one has taken out would be lost.
        if self._finishing is None:
            self._finishing = [
                asyncio.ensure_future(self._finish(it, timeout, lost=lost)) for it in self._units
            ]
        await asyncio.shield(asyncio.gather(*self._finishing))

    async def _finish(self, it: _Committed, timeout: float, *, lost: bool) -> None:
        last = asyncio.ensure_future(self._last(it, lost=lost))
        await asyncio.wait((last,), timeout=0.0 if lost else timeout)
        if not last.done():
            last.cancel()
            await asyncio.wait((last,))
        if it.task is not None:
            it.task.cancel()
        it.unit.give_up()
        await it.producer.close()

    async def _last(self, it: _Committed, *, lost: bool) -> None:
        if it.task is not None:
            await asyncio.wait((it.task,))
        while not lost and not it.failed:
            due = it.unit.due(_MOST_OUTCOMES)
            if due is None:
                return
            await self._commit(it, due)


def _of_messages(error: TransactionFailed, count: int) -> tuple[Refusals | None, TransactionFailed]:
    """Return what was refused that messages are to blame for, and why the transaction has failed.

    No message is to blame if the changelog takes no state at all, as when it may not be written.

    Args:
        error: of the transaction.
        count: how many of its records were published by handlers; states are behind them.
    """
    refusals = error.refusals
    if refusals is None or not isinstance(error.__cause__, _ABOUT_TOPICS):
        return refusals, error
    of_states = [why for at, why in refusals.errors.items() if at >= count]
    if not of_states:
        return refusals, error
    others = {at: why for at, why in refusals.errors.items() if at < count}
    left = Refusals(others, refusals.certain) if others else None
    return left, TransactionFailed(of_states[0], left)


async def _keep(states: PartitionStates, place: Place) -> None:
    """Have what was committed written to the snapshot; wait if there is too much that is not.

    Args:
        states: has it already.
        place: up to where it is known.
    """
    states.position, states.at, states.epoch = place
    if states.snapshot is not None:
        states.snapshot.note(states)
        if states.too_many:
            # Everything begins anew if it cannot be written.
            with contextlib.suppress(SnapshotLost):
                await states.snapshot.write(states)
