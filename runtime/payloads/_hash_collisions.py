"""Hash collision attacks: JSON documents with very many keys that have the same hash value.

Python's numbers and UUIDs hash to themselves modulo a prime, so anybody can compute keys that all
collide in a dict or set. Decoding 1 MiB of them takes a minute.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal, DecimalException
from typing import Any

import msgspec

__all__ = ["guarded", "guarded_by_size", "may_collide", "may_collide_in_binary"]

# Documents of up to so many bytes have no room for harm.
_SMALL = 32_768
_MOST_ALIKE = 100
_KEY = re.compile(rb"[0-9A-Fa-f.+-]{15,}")
# A document has room for too few longer ones.
_LONGEST = 400
_ESCAPE = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_UUID_DIGITS = 32
# Their hash values cannot be predicted, or there are only a few of them.
_SAFE = (
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.BoolType,
    msgspec.inspect.NoneType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
)


def may_collide(info: msgspec.inspect.Type) -> bool:
    """Return whether decoding to the type may fill a dict or set with keys of known hashes."""
    return any(map(_has_predictable_keys, _parts(info, [])))


def may_collide_in_binary(info: msgspec.inspect.Type) -> bool:
    """Return whether `may_collide` holds, of any type, in a format where any value may be a key."""
    return any(
        _has_predictable_keys(part)
        or isinstance(part, msgspec.inspect.AnyType | msgspec.inspect.CustomType)
        for part in _parts(info, [])
    )


def _has_predictable_keys(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.DictType):
        return not isinstance(info.key_type, (*_SAFE, msgspec.inspect.AnyType))
    if isinstance(info, msgspec.inspect.SetType | msgspec.inspect.FrozenSetType):
        return not isinstance(info.item_type, _SAFE)
    return False


def _parts(info: msgspec.inspect.Type, seen: list[int]) -> Iterator[msgspec.inspect.Type]:
    """Yield the type and all that it consists of, each once."""
    if id(info) in seen:
        return
    seen.append(id(info))
    yield info
    for name in info.__struct_fields__:
        value = getattr(info, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, msgspec.inspect.Field):
                part = part.type
            if isinstance(part, msgspec.inspect.Type):
                yield from _parts(part, seen)


def guarded_by_size(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a reader of binary documents that accepts none that has room for harm.

    It raises ValueError for larger ones: which of their bytes are keys is known only afterwards.
    """

    def read_guarded(document: bytes) -> Any:
        if len(document) > _SMALL:
            raise ValueError(
                f"it has {len(document)} bytes, and {_SMALL} are allowed for a type that does not"
                " say what all keys are: use a dataclass, a msgspec.Struct or dict[str, ...] with"
                " types all the way down, or send JSON"
            )
        return read(document)

    return read_guarded


def guarded(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a reader of JSON documents that checks large ones first.

    It raises ValueError for very many keys with the same hash value.
    """

    def read_guarded(document: bytes) -> Any:
        if len(document) > _SMALL:
            _check(document)
        return read(document)

    return read_guarded


def _check(document: bytes) -> None:
    if b"\\u00" in document:
        document = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), document)
    alike: Counter[tuple[str, int]] = Counter()
    for key in set(_KEY.findall(document)):
        if len(key) > _LONGEST:
            continue
        text = key.decode()
        try:
            if len(digits := text.replace("-", "")) == _UUID_DIGITS:
                alike["UUID", int(digits, 16) % sys.hash_info.modulus] += 1
            if "-" not in text[1:-1] or "e-" in text.lower():
                alike["number", hash(Decimal(text))] += 1
        except (DecimalException, ValueError):
            continue
    if alike and alike.most_common(1)[0][1] > _MOST_ALIKE:
        raise ValueError(
            f"it has more than {_MOST_ALIKE} keys with the same hash value, which would take very"
            " long to decode"
        )
