"""From keys to partitions."""

from __future__ import annotations

import functools

from aiokafka.partitioner import murmur2

__all__ = ["hash_of"]

# A long key is no name of a thing that comes again, and would fill the memory.
_LONGEST_REMEMBERED = 64


def hash_of(key: bytes) -> int:
    """What decides the partition of a record with this key: its remainder by the number of
    partitions, as all other clients have it."""
    return _remembered(key) if len(key) <= _LONGEST_REMEMBERED else _hash(key)


def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


_remembered = functools.lru_cache(16_384)(_hash)
