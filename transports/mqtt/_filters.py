"""Filters in sessions: overlapping ones, and ones that nobody wants any more."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from .._envelope import Envelope

__all__ = ["CopyGuard", "candidates", "overlapping"]

_REMEMBERED = 128
_MOST_CANDIDATES = 512
_MOST_BYTES = 100_000
_LARGEST_IDENTIFIER = 268_435_455


def overlap(one: str, other: str) -> bool:
    """Whether a topic can match both plain filters."""
    for left, right in itertools.zip_longest(one.split("/"), other.split("/")):
        if left == "#" or right == "#":
            return True
        if left is None or right is None:
            return False
        if left != right and left != "+" and right != "+":
            return False
    return True


def overlapping(filters: Sequence[str]) -> tuple[str, ...]:
    """Those of the filters that overlap with another one, in the same order."""
    found = {
        pattern
        for one, other in itertools.combinations(filters, 2)
        if overlap(one, other)
        for pattern in (one, other)
    }
    return tuple(pattern for pattern in filters if pattern in found)


class CopyGuard:
    """Tells the copies of one message from several messages that are equal.

    A broker may send a message once for each of several filters that match, each time with the
    identifier of another subscription (MQTT 5, 3.3.4). So what is equal to something that came,
    under an identifier under which that has not come yet, is a copy of it; what comes under the
    same identifier again is another message.
    """

    def __init__(self) -> None:
        self.filters: tuple[str, ...] = ()
        """The filters that overlap: subscribe to them with their `identifier`."""
        self._seen: OrderedDict[int, set[int]] = OrderedDict()

    def watch(self, filters: Sequence[str]) -> None:
        """Guard these filters from now on."""
        self.filters = overlapping(filters)
        self.forget()

    def forget(self) -> None:
        """Subscriptions or the connection have changed: what comes now is no copy."""
        self._seen.clear()

    def identifier(self, pattern: str) -> int:
        """The subscription identifier of a filter, the same in every process; 0 for none."""
        if pattern not in self.filters:
            return 0
        return zlib.crc32(pattern.encode()) % _LARGEST_IDENTIFIER + 1

    def is_copy(self, envelope: Envelope, identifiers: tuple[int, ...]) -> bool:
        """Whether this receipt is a copy of an earlier one."""
        key = _fingerprint(envelope)
        seen = self._seen.get(key)
        if seen is not None and seen.isdisjoint(identifiers):
            seen.update(identifiers)
            return True
        self._seen[key] = set(identifiers)
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False


def _fingerprint(envelope: Envelope) -> int:
    # The texts themselves may be long, and strangers write them.
    everything = (
        envelope.topic,
        hashlib.blake2b(envelope.payload, digest_size=16).digest(),
        envelope.left_out and envelope.left_out.sha256,
        envelope.retain,
        envelope.id,
        envelope.time,
        envelope.key,
        envelope.content_type,
        envelope.response_topic,
        envelope.correlation,
        tuple(envelope.headers.items()),
    )
    return hash(everything)


def candidates(topic: str, wanted: Iterable[str]) -> list[str]:
    """Filters that match the topic and may be in force without being wanted.

    All of them for topics of up to seven levels; for longer ones those with the fewest wildcards,
    a bounded number.

    Args:
        topic: what came.
        wanted: filters to leave out.
    """
    keep = set(wanted)
    most = min(_MOST_CANDIDATES, _MOST_BYTES // (len(topic) + 1))
    found = (pattern for pattern in _matching(topic.split("/")) if pattern not in keep)
    return list(itertools.islice(found, most))


def _matching(levels: list[str]) -> Iterator[str]:
    first = 1 if levels[0].startswith("$") else 0
    for wildcards in range(len(levels) + 1):
        for places in itertools.combinations(range(first, len(levels)), wildcards):
            pattern = ["+" if index in places else level for index, level in enumerate(levels)]
            yield "/".join(pattern)
            # Each cut after the last '+' belongs to this combination, so none comes twice.
            for end in range(max(places, default=first - 1) + 1, len(levels) + 1):
                yield "/".join([*pattern[:end], "#"])
