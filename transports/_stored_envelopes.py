"""Envelopes as bytes in files that outlive the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ..errors import ConfigurationError
from ._envelope import Envelope

__all__ = [
    "UNREADABLE",
    "envelopes_from_bytes",
    "envelopes_to_bytes",
    "read_stored",
    "stored_fields",
]

T = TypeVar("T")
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What decoding raises if something was not stored by this version."""
_DECODER = msgspec.msgpack.Decoder(tuple[Envelope, ...])


def envelopes_to_bytes(envelopes: Sequence[Envelope]) -> bytes:
    """Return messages as bytes, to be stored, for `envelopes_from_bytes`."""
    return msgspec.msgpack.encode([stored_fields(envelope) for envelope in envelopes])


def envelopes_from_bytes(data: bytes, where: str = "what is stored") -> tuple[Envelope, ...]:
    """Return the messages that `envelopes_to_bytes` was given.

    Args:
        data: what it has returned.
        where: where that was stored, in words, for the error.

    Raises:
        ConfigurationError: they cannot be read.
    """
    return read_stored(_DECODER, data, where)


def stored_fields(envelope: Envelope) -> dict[str, Any]:
    """Return what there is to store of an envelope, in types that every format has."""
    fields: dict[str, Any] = {
        name: value
        for name, value in msgspec.structs.asdict(envelope).items()
        if value is not None and value is not False
    }
    # A mapping of any kind.
    fields["headers"] = dict(envelope.headers)
    return fields


def read_stored(decoder: msgspec.msgpack.Decoder[T], data: bytes, where: str) -> T:
    """Return what was stored.

    Args:
        decoder: for what it is.
        data: as it was stored.
        where: the file, in words.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise ConfigurationError(
            f"{where} has a message that cannot be read ({error}), and is left as it is:"
            " restore it, or move it away and do without what it contains"
        ) from error
