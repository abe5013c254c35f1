"""The transaction coordinator: who writes under which transactional id, and what is open."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._errors import ErrorCode, RequestRefused

if TYPE_CHECKING:
    from ._cluster import Cluster

__all__ = ["Coordinator", "Transaction", "TransactionState"]

_LONGEST = 900.0
_LAST_EPOCH = 32_766


class TransactionState(enum.StrEnum):
    """How far the transaction of a transactional id is; brokers use the same names."""

    EMPTY = "Empty"
    ONGOING = "Ongoing"
    PREPARE_COMMIT = "PrepareCommit"
    PREPARE_ABORT = "PrepareAbort"
    COMPLETE_COMMIT = "CompleteCommit"
    COMPLETE_ABORT = "CompleteAbort"


_PREPARED = {True: TransactionState.PREPARE_COMMIT, False: TransactionState.PREPARE_ABORT}
_COMPLETE = {True: TransactionState.COMPLETE_COMMIT, False: TransactionState.COMPLETE_ABORT}
_ENDING = frozenset(_PREPARED.values())


class Transaction:
    """The transactions of one transactional id, of which there is one at a time.

    Args:
        name: the transactional id.
        producer: the id of the producer.

    Attributes:
        epoch: that of the producer; a producer with a lower one is fenced.
        timeout: seconds after which the cluster aborts a transaction.
        state: see `TransactionState`.
        partitions: the partitions in the open transaction, in the order in which they were added.
        groups: the groups with offsets in it, likewise.
        timer: aborts it.
    """

    def __init__(self, name: str, producer: int) -> None:
        self.name = name
        self.producer = producer
        self.epoch = -1
        self.timeout: float = 0.0
        self.state: TransactionState = TransactionState.EMPTY
        self.partitions: dict[tuple[str, int], None] = {}
        self.groups: dict[str, None] = {}
        self.timer: asyncio.TimerHandle | None = None

    def enter(self, state: TransactionState) -> None:
        """Go on to another state."""
        self.state = state

    @property
    def open(self) -> bool:
        """Whether there is one that has not ended, markers included."""
        return self.state is TransactionState.ONGOING or self.state in _ENDING


class Coordinator:
    """Coordinates transactions.

    Args:
        cluster: the cluster.

    Attributes:
        transactions: by transactional id, oldest first.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.transactions: dict[str, Transaction] = {}

    def init(self, client: str, name: str, timeout: float) -> tuple[int, int]:
        """Return id and epoch for a new producer, and fence those before it.

        Args:
            client: its client id.
            name: its transactional id.
            timeout: seconds after which its transactions are aborted.

        Raises:
            RequestRefused: something is not allowed, or the transaction of the one before is still
                being aborted.
        """
        if not name:
            raise RequestRefused(ErrorCode.INVALID_REQUEST)
        if not 0 < timeout <= _LONGEST:
            raise RequestRefused(ErrorCode.INVALID_TRANSACTION_TIMEOUT)
        found = self.transactions.get(name)
        if found is None:
            found = Transaction(name, self._cluster.next_producer())
            self.transactions[name] = found
        if found.state is TransactionState.ONGOING:
            self._fence(client, found)
        if found.state in _ENDING:
            raise RequestRefused(ErrorCode.CONCURRENT_TRANSACTIONS)
        if found.epoch >= _LAST_EPOCH:
            found.producer, found.epoch = self._cluster.next_producer(), -1
        found.epoch += 1
        found.timeout = timeout
        found.enter(TransactionState.EMPTY)
        self._cluster.note(client, "init-producer", name, str(found.epoch))
        return found.producer, found.epoch

    def add(
        self,
        client: str,
        name: str,
        producer: int,
        epoch: int,
        partitions: Iterable[tuple[str, int]] = (),
        groups: Iterable[str] = (),
    ) -> None:
        """Add partitions and groups to a transaction; begin it with the first of them.

        Raises:
            RequestRefused: the producer is unknown or fenced, or the transaction before is still
                being ended.
        """
        found = self._known(name, producer, epoch)
        if found.state in _ENDING:
            raise RequestRefused(ErrorCode.CONCURRENT_TRANSACTIONS)
        if found.state is not TransactionState.ONGOING:
            found.enter(TransactionState.ONGOING)
            found.timer = self._cluster.loop.call_later(found.timeout, self._expire, found)
            self._cluster.note(client, "begin", name, str(epoch))
        found.partitions.update(dict.fromkeys(partitions))
        found.groups.update(dict.fromkeys(groups))

    def end(self, client: str, name: str, producer: int, epoch: int, *, commit: bool) -> None:
        """Decide that a transaction is committed or aborted; the markers are written later.

        Raises:
            RequestRefused: the producer is unknown or fenced, or there is nothing to end.
        """
        found = self._known(name, producer, epoch)
        if found.state is _PREPARED[commit]:
            raise RequestRefused(ErrorCode.CONCURRENT_TRANSACTIONS)
        if found.state is TransactionState.ONGOING:
            self._prepare(client, found, commit=commit)
        elif found.state is not _COMPLETE[commit]:
            raise RequestRefused(ErrorCode.INVALID_TXN_STATE)

    def verify(self, name: str, producer: int, epoch: int, place: tuple[str, int] | None) -> None:
        """Check that a partition is in the open transaction; None for any group's offsets.

        Raises:
            RequestRefused: it is not, or the producer is unknown or fenced.
        """
        found = self._known(name, producer, epoch)
        if found.state in _ENDING:
            # What a producer is told, so that it tries again.
            raise RequestRefused(ErrorCode.NOT_ENOUGH_REPLICAS)
        if not (found.groups if place is None else place in found.partitions):
            raise RequestRefused(ErrorCode.INVALID_TXN_STATE)

    def _known(self, name: str, producer: int, epoch: int) -> Transaction:
        found = self.transactions.get(name)
        if found is None or found.producer != producer:
            raise RequestRefused(ErrorCode.INVALID_PRODUCER_ID_MAPPING)
        if found.epoch != epoch:
            raise RequestRefused(ErrorCode.INVALID_PRODUCER_EPOCH)
        return found

    def _expire(self, found: Transaction) -> None:
        self._cluster.note(found.name, "time-out", found.name)
        self._fence(found.name, found)

    def _fence(self, client: str, found: Transaction) -> None:
        """Abort what is open, under an epoch that its producer does not have."""
        found.epoch += 1
        self._prepare(client, found, commit=False)

    def _prepare(self, client: str, found: Transaction, *, commit: bool) -> None:
        found.enter(_PREPARED[commit])
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        self._cluster.note(client, "commit-all" if commit else "abort", found.name)
        self._write_later(found, commit=commit)

    def _write_later(self, found: Transaction, *, commit: bool) -> None:
        cluster = self._cluster
        cluster.loop.call_later(cluster.marker_delay(), self._write_next, found, commit)

    def _write_next(self, found: Transaction, commit: bool) -> None:
        """Write one marker after the other: readers can see a part of a transaction before others.

        In a real cluster partitions with different leaders get theirs at different times.
        """
        if found.partitions:
            topic, partition = next(iter(found.partitions))
            del found.partitions[topic, partition]
            self._cluster.append_marker(topic, partition, found.producer, found.epoch, commit)
        elif found.groups:
            name = next(iter(found.groups))
            del found.groups[name]
            if name in self._cluster.groups:
                self._cluster.groups[name].end_transaction(found.producer, commit=commit)
        if found.partitions or found.groups:
            self._write_later(found, commit=commit)
        else:
            found.enter(_COMPLETE[commit])
            self._cluster.note(found.name, "ended", found.name)
