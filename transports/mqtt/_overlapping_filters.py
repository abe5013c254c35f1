"""Overlapping filters: finding them, and the copies of a message that a broker sends for each."""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Collection, Sequence

from .._envelope import Envelope
from .._topics import FilterIndex

__all__ = ["CopyGuard", "overlapping"]

_REMEMBERED = 128
_LARGEST_IDENTIFIER = 268_435_455


def overlapping(filters: Collection[str]) -> tuple[str, ...]:
    """Return the filters that overlap with another one, in the same order."""
    index = FilterIndex()
    for pattern in filters:
        index.add(pattern)
    return tuple(pattern for pattern in filters if index.overlaps(pattern))


class CopyGuard:
    """Distinguishes copies of one message from separate but equal messages.

    A broker may send a message once for each of several filters that match, each time with the
    identifier of another subscription (MQTT 5, 3.3.4). So a message that equals
    an earlier one, but has an identifier under which that has not come yet, is a copy of it; one
    that comes under the same identifier again is another message.
    """

    def __init__(self) -> None:
        self.filters: tuple[str, ...] = ()
        """The overlapping filters: subscribe to them with their `identifier`."""
        self._identifiers: dict[str, int] = {}
        self._seen: OrderedDict[int, set[int]] = OrderedDict()

    def watch(self, filters: Sequence[str]) -> None:
        """Guard these filters from now on."""
        self.filters = overlapping(filters)
        self._identifiers = {
            pattern: zlib.crc32(pattern.encode()) % _LARGEST_IDENTIFIER + 1
            for pattern in self.filters
        }
        self.forget()

    def forget(self) -> None:
        """Note that subscriptions or the connection have changed: what comes now is not a copy."""
        self._seen.clear()

    def identifier(self, pattern: str) -> int:
        """Return the subscription identifier of a filter, the same in every process; 0 for none."""
        return self._identifiers.get(pattern, 0)

    def is_copy(self, envelope: Envelope, identifiers: tuple[int, ...]) -> bool:
        """Return whether this receipt is a copy of an earlier one."""
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
    # The texts themselves may be long, and are written by strangers.
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
