"""The partitioner: which partition a record with a key goes to."""

from __future__ import annotations

import functools

from ._aiokafka_private import murmur2

__all__ = ["hash_of"]

# A long key is hardly the name of something that recurs, and would fill the memory.
_LONGEST_REMEMBERED_KEY = 64


def hash_of(key: bytes) -> int:
    """Return the hash that decides the partition of a record with this key.

    The partition is that modulo the number of partitions, as in all other clients.
    """
    return _remembered(key) if len(key) <= _LONGEST_REMEMBERED_KEY else _hash(key)


def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


_remembered = functools.lru_cache(16_384)(_hash)
