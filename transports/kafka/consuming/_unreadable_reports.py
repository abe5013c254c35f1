"""Reports of topics and partitions that cannot be read: what is known of them, said and logged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import aiokafka.errors as kafka
import msgspec
from aiokafka.structs import TopicPartition

from ...._limited_log import LimitedLog
from ...._logs import get_logger
from .._errors import describe

__all__ = ["LeaderUnreachable", "Troubles", "Unreadable"]

_log = get_logger(__name__)

_LONGEST_REASON = 200
_ABSENT_AFTER = 10.0
_CODEC = re.compile(r"Libraries for (\w+) compression codec")


class LeaderUnreachable(Exception):
    """The leader of a partition has long answered no fetch, while another broker answers."""


class Unreadable(msgspec.Struct, frozen=True):
    """What is wrong with a partition.

    Attributes:
        error: the error of the library or the cluster.
        offset: the offset from which on nothing can be read.
        beyond: the offset after the unreadable batch; None if it is not known.
    """

    error: Exception
    offset: int
    beyond: int | None = None

    @property
    def forbidden(self) -> bool:
        """Whether we are not authorised to read the topic."""
        return isinstance(self.error, kafka.TopicAuthorizationFailedError)

    def __str__(self) -> str:
        error = self.error
        if self.forbidden:
            return f"{describe(error)}; allow Read in the cluster's access rules"
        if isinstance(error, kafka.UnsupportedCodecError):
            codec = _CODEC.search(str(error))
            if codec is not None:
                return (
                    f"it is compressed with {codec[1]}, which needs the package cramjam: install"
                    " spa-dat[compression] and restart"
                )
        if isinstance(error, kafka.LeaderNotAvailableError):
            return "it has no leader: check which of the brokers with its replicas are down"
        if isinstance(error, LeaderUnreachable):
            return (
                f"{error}, while others can be reached: check whether that can be reached from here"
                " (advertised.listeners), and max.connections.per.ip"
            )
        if isinstance(error, kafka.CorruptRecordException):
            text = "it is damaged"
        else:
            text = f"{type(error).__name__}: {error}"
        if self.beyond is not None:
            text += f"; it is readable again from offset {self.beyond} on"
        return "".join(c if c.isprintable() else " " for c in text)[:_LONGEST_REASON]


class Troubles:
    """What one subscription cannot read, whatever consumer it has.

    These are partitions, and topics that are gone. Logs when a problem is new and when it is over.

    Args:
        name: of the consumer, for log messages.
        stats: counts ``kafka.partitions_held``, ``kafka.records_removed`` and
            ``messages.malformed``.

    Attributes:
        known: the known problems, by partition.
    """

    def __init__(self, name: str, stats: Counter[str]) -> None:
        self.known: dict[TopicPartition, Unreadable] = {}
        self._name = name
        self._log = LimitedLog(_log)
        self._stats = stats
        self._misnamed: set[TopicPartition] = set()
        # The last gap in each partition.
        self._removed: dict[TopicPartition, tuple[int, int]] = {}
        # Topics that are not visible: since when (loop time), and why.
        self._absent: dict[str, tuple[float, str]] = {}
        self._said_absent: set[str] = set()

    def add(self, partition: TopicPartition, problem: Unreadable) -> None:
        """Note that a partition cannot be read, or still cannot."""
        before = self.known.get(partition)
        told = problem.forbidden and any(
            other.forbidden and place.topic == partition.topic
            for place, other in self.known.items()
        )
        self.known[partition] = problem
        if before is None:
            self._stats["kafka.partitions_held"] += 1
        if told or (before is not None and _same(before, problem)):
            return
        if problem.forbidden:
            _log.error(
                "%s: topic %r cannot be read, and is left out until it can be: %s",
                self._name,
                partition.topic,
                problem,
            )
        else:
            _log.error(
                "%s: partition %d of topic %r cannot be read from offset %d on, and is held until"
                " it can be, while the others go on: %s",
                self._name,
                partition.partition,
                partition.topic,
                problem.offset,
                problem,
            )

    def misnamed(self, partition: TopicPartition, problem: Unreadable) -> None:
        """Log, once for each partition, that it has names of headers that are not text."""
        self._stats["messages.malformed"] += 1
        if partition not in self._misnamed:
            self._misnamed.add(partition)
            _log.warning(
                "%s: partition %d of topic %r: the name of a header is not text: %s",
                self._name,
                partition.partition,
                partition.topic,
                problem.error,
            )

    def in_transaction(self, partition: TopicPartition, offset: int, seconds: float) -> None:
        """Log that a transaction has long been open at the offset and blocks what is after it."""
        self._log.warning(
            "%s: partition %d of topic %r cannot be read from offset %d on: a transaction has been"
            " open there for %.0f s, of this application or another program; the cluster ends it"
            " after the transaction timeout of whoever began it, and kafka-transactions.sh at once",
            self._name,
            partition.partition,
            partition.topic,
            offset,
            seconds,
        )

    def over(self, partition: TopicPartition) -> None:
        """Note that a partition can be read again."""
        del self.known[partition]
        _log.warning(
            "%s: partition %d of topic %r can be read again",
            self._name,
            partition.partition,
            partition.topic,
        )

    def look_for_topics(self, absent: Mapping[str, str], now: float) -> None:
        """Note which topics are not visible now, unlike all others; log it if it lasts.

        Args:
            absent: why, and what to do, by name.
            now: loop time.
        """
        before = self._absent
        self._absent = {
            name: (before[name][0] if name in before else now, why) for name, why in absent.items()
        }
        for name in sorted(self._said_absent.difference(absent)):
            self._said_absent.remove(name)
            _log.warning("%s: topic %r is available again", self._name, name)
        for name, (since, why) in self._absent.items():
            if now - since >= _ABSENT_AFTER and name not in self._said_absent:
                self._said_absent.add(name)
                _log.error(
                    "%s: nothing is received from topic %r, while the others go on: %s",
                    self._name,
                    name,
                    why,
                )

    def removed(self, partition: TopicPartition, offset: int, goes_on: int) -> None:
        """Log, once, that the records to be read next no longer exist."""
        if self._removed.get(partition) == (offset, goes_on):
            # A member that takes its positions while the library fetches goes there twice.
            return
        self._removed[partition] = offset, goes_on
        if goes_on > offset:
            self._stats["kafka.records_removed"] += goes_on - offset
            why = "retention, or somebody, has removed the records in between"
        else:
            why = "the topic was recreated, or has lost its end"
        self._log.warning(
            "%s: offset %d of partition %d of topic %r no longer exists, and it is read from"
            " offset %d on: %s",
            self._name,
            offset,
            partition.partition,
            partition.topic,
            goes_on,
            why,
        )

    def keep(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget all other partitions, which belong to other members now."""
        ours = set(partitions)
        self.known = {place: it for place, it in self.known.items() if place in ours}

    def serious(self, names: Iterable[str]) -> str | None:
        """Return what keeps the subscription from some of its messages; None if nothing does.

        Args:
            names: of the topics that are wanted by name. What only a wildcard matches may be meant
                for others.
        """
        named = set(names)
        for name in sorted(self._said_absent & named):
            return f"nothing is received from topic {name!r}: {self._absent[name][1]}"
        for place, problem in self.known.items():
            if not problem.forbidden or place.topic in named:
                return (
                    f"partition {place.partition} of topic {place.topic!r} cannot be read:"
                    f" {problem}"
                )
        return None


def _same(one: Unreadable, other: Unreadable) -> bool:
    return type(one.error) is type(other.error) and one.offset == other.offset
