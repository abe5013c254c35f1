"""Leader epochs: noticing that a partition has lost its end, and has other records there by now."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any

import aiokafka.errors as kafka
from aiokafka.structs import TopicPartition

from ...._logs import get_logger
from .._aiokafka_private import EpochEndsRequest
from .._offset_notes import MOST_CLAIMS, Claim

__all__ = ["EndsLost", "LeaderEpochs", "lost_ends", "report_lost_ends"]

_log = get_logger(__name__)

# Of a batch: its offset, its length from here on, its epoch, its format, how many offsets follow.
_HEAD, _BEFORE_LENGTH = struct.Struct(">qiib6xi"), 12
_SECOND_FORMAT = 2
# The answer of a leader whose log ends before the offset that is asked for, or begins after it.
_OUT_OF_RANGE = 1
# Seconds for one answer: less than an assignment may take to begin.
_PATIENCE = 1.0


class EndsLost(Exception):
    """Partitions have less than was read of them.

    Args:
        ends: the offsets up to which they have it.
    """

    def __init__(self, ends: Mapping[TopicPartition, int]) -> None:
        super().__init__(", ".join(f"{place.topic}-{place.partition}" for place in sorted(ends)))
        self.ends = ends


class LeaderEpochs:
    """The leader epochs of what was read, by partition.

    Each record has the epoch of the leader that has appended it. What a group has read of an epoch
    is a claim: that the log has records of it up to some offset. If it has less, what comes after
    that is not what was read there.

    Attributes:
        doubted: the partitions of which the leader has said that it does not have what comes next,
            until it is known whether it has what was read.
    """

    def __init__(self) -> None:
        # What is to be verified, as there is a later epoch: oldest first.
        self._claims: dict[TopicPartition, list[Claim]] = {}
        # What was read last.
        self._current: dict[TopicPartition, Claim] = {}
        self.doubted: set[TopicPartition] = set()

    def begin(
        self,
        noted: Mapping[TopicPartition, Sequence[Claim]],
        lost: Container[TopicPartition],
        unknown: Container[TopicPartition],
    ) -> None:
        """Forget everything but what was committed.

        Args:
            noted: what was noted with the offsets.
            lost: the partitions that have less.
            unknown: the partitions of which that cannot be told yet.
        """
        known = {place: those for place, those in noted.items() if those and place not in lost}
        self._claims = {place: [*those] for place, those in known.items() if place in unknown}
        self._current = {place: those[-1] for place, those in known.items()}
        self.doubted.clear()

    def hear(self, topics: Any) -> list[TopicPartition]:
        """Take notice of an answer to a fetch.

        Returns:
            the partitions that are doubted from now on, of which nothing may be handed out: the
            library begins again at their start.
        """
        news = []
        for name, partitions in topics:
            for number, code, _, *parts in partitions:
                if code == _OUT_OF_RANGE:
                    place = TopicPartition(name, number)
                    if self._doubt(place):
                        news.append(place)
                elif not code and parts[-1]:
                    self._read(TopicPartition(name, number), parts[-1])
        return news

    def _doubt(self, place: TopicPartition) -> bool:
        current = self._current.get(place)
        if current is None or place in self.doubted:
            return False
        self.doubted.add(place)
        self._claim(place, current)
        return True

    def _claim(self, place: TopicPartition, current: Claim) -> None:
        claims = self._claims.setdefault(place, [])
        if claims and claims[-1].epoch == current.epoch:
            claims.pop()
        claims.append(current)
        del claims[:-MOST_CLAIMS]

    def _read(self, place: TopicPartition, data: bytes) -> None:
        current = self._current.get(place)
        for start, end, epoch in _batches(data):
            # Otherwise something is read again.
            if current is not None and epoch != current.epoch and start >= current.upto:
                self._claim(place, current)
            current = Claim(epoch, end)
        if current is not None:
            self._current[place] = current

    def claims(self, place: TopicPartition, offset: int) -> list[Claim]:
        """Return what to note with an offset that is committed."""
        found: list[Claim] = []
        for claim in (*self._claims.get(place, ()), self._current.get(place)):
            if claim is None:
                break
            found.append(Claim(claim.epoch, min(claim.upto, offset)))
            if claim.upto >= offset:
                break
        return found[-MOST_CLAIMS:]

    def forget(self, places: Collection[TopicPartition]) -> None:
        """Forget what was read of partitions."""
        for place in places:
            self._claims.pop(place, None)
            self._current.pop(place, None)
            self.doubted.discard(place)

    async def verify(self, client: Any) -> list[TopicPartition]:
        """Ask the cluster whether it has what was read, if that may have changed.

        Args:
            client: the library's.

        Returns:
            the partitions that are not doubted any more.

        Raises:
            EndsLost: it has less in some partitions.
        """
        if not self._claims:
            return []
        asked = {place: [*claims] for place, claims in self._claims.items()}
        lost, unknown = await lost_ends(client, asked)
        if lost:
            raise EndsLost(lost)
        for place in asked.keys() - unknown:
            left = [claim for claim in self._claims.get(place, ()) if claim not in asked[place]]
            self._claims[place] = left
        self._claims = {place: those for place, those in self._claims.items() if those}
        trusted = sorted(self.doubted.difference(self._claims))
        self.doubted.difference_update(trusted)
        return trusted


def report_lost_ends(name: str, lost: Mapping[TopicPartition, int], stats: Counter[str]) -> None:
    """Log which partitions have lost their end, and count them.

    Args:
        name: who reads them.
        lost: up to where they have what was read.
        stats: counts ``kafka.ends_lost``.
    """
    for place, end in sorted(lost.items()):
        stats["kafka.ends_lost"] += 1
        _log.warning(
            "%s: partition %d of topic %r has lost its end: what was read from offset %d on is not"
            " there any more, and what has come since is read from there",
            name,
            place.partition,
            place.topic,
            end,
        )


async def lost_ends(
    client: Any, claims: Mapping[TopicPartition, Sequence[Claim]]
) -> tuple[dict[TopicPartition, int], set[TopicPartition]]:
    """Find the partitions that have less than somebody has read of them.

    Args:
        client: the library's.
        claims: what was read.

    Returns:
        the offsets up to which they have what was read, and the partitions of which that cannot be
        told now.
    """
    lost: dict[TopicPartition, int] = {}
    unknown: set[TopicPartition] = set()
    for turn in range(max(map(len, claims.values()), default=0)):
        asked = {
            place: those[turn]
            for place, those in claims.items()
            if turn < len(those) and place not in unknown
        }
        by_leader: defaultdict[int, list[TopicPartition]] = defaultdict(list)
        for place in sorted(asked):
            by_leader[_leader(client, place)].append(place)
        unknown.update(by_leader.pop(-1, ()))
        ends = [
            _ends(client, leader, {place: asked[place].epoch for place in places})
            for leader, places in by_leader.items()
        ]
        # One that does not answer must not keep what others lead from being read.
        for answered in await asyncio.gather(*ends):
            if answered is None:
                # Of what this one leads it will never be told.
                continue
            for place, end in answered.items():
                if end is None:
                    unknown.add(place)
                elif 0 <= end < asked[place].upto:
                    lost[place] = min(end, lost.get(place, end))
    return lost, unknown - lost.keys()


async def _ends(
    client: Any, leader: int, epochs: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int | None] | None:
    """Ask a leader where epochs end.

    Returns:
        the offset behind the last record of each epoch, -1 if nobody will ever know it, and None if
        the leader does not say so now; None if such a cluster never does.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            answer = await client.send(leader, EpochEndsRequest(epochs))
    except (NotImplementedError, kafka.IncompatibleBrokerVersion):
        return None
    except (kafka.KafkaError, OSError):
        return dict.fromkeys(epochs)
    ends: dict[TopicPartition, int | None] = {}
    for name, partitions in answer.topics:
        for code, number, _, end in partitions:
            error = kafka.for_code(code)
            said = end if error is kafka.NoError else None if error.retriable else -1
            ends[TopicPartition(name, number)] = said
    return ends


def _leader(client: Any, place: TopicPartition) -> int:
    leader = client.cluster.leader_for_partition(place)
    return -1 if leader is None else int(leader)


def _batches(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield of each batch in an answer to a fetch its offset, the one behind it, and its epoch."""
    at, last_head = 0, len(data) - _HEAD.size
    while at <= last_head:
        start, length, epoch, magic, more = _HEAD.unpack_from(data, at)
        at += _BEFORE_LENGTH + length
        # The last one may be cut off.
        if length < 0 or at > len(data):
            return
        if magic >= _SECOND_FORMAT and epoch >= 0:
            yield start, start + more + 1, epoch
