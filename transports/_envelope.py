"""A message at the edge of a bus."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

__all__ = [
    "REPLY_HEADER",
    "Envelope",
    "LeftOut",
    "MessageFields",
    "Tombstone",
    "named_texts",
    "without_payload",
]

REPLY_HEADER = "spa_reply"
"""On a reply: marks it as one, so that it never gets a reply itself."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class LeftOut(msgspec.Struct, frozen=True, gc=False):
    """What is known of a payload that was too large to be taken.

    Attributes:
        size: its bytes.
        sha256: its digest, in hexadecimal.
    """

    size: int
    sha256: str


class MessageFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the wire says about a message besides its payload.

    The names follow CloudEvents 1.0 where it has one (``id``, ``source``, ``type``, ``time``).
    """

    topic: str
    """The concrete topic, levels separated by ``/``."""
    content_type: str | None = None
    """MIME type of the payload; None when the sender gave none."""
    id: str | None = None
    """Stable over redelivery and resending, so that receivers can drop duplicates."""
    source: str | None = None
    """Who sent it: ``application/instance/actor`` for senders of this package."""
    type: str | None = None
    time: float | None = None
    """When it was sent, in seconds since 1970 (UTC)."""
    key: str | None = None
    headers: Mapping[str, str] = _NO_HEADERS
    """Everything else the sender attached; of a repeated name the last value counts."""
    response_topic: str | None = None
    """Where a reply is expected. Comes from the sender: never trusted."""
    correlation: bytes | None = None
    expiry: float | None = None
    """Seconds for which the message is worth delivering; on receipt what is left of them."""
    qos: int = 1
    retain: bool = False
    """Sent: keep it as the topic's last value. Received: it was such a kept value."""
    redelivered: bool = False
    """The bus says that it has sent this message before."""
    partition: int | None = None
    offset: int | None = None
    tombstone: bool = False
    """There is no payload at all: the message deletes what its key stands for."""
    raw_key: bytes | None = None
    """Received: the key's bytes, on buses where it is bytes; of which `key` is the text. Sent in
    place of `key`."""
    raw_headers: tuple[tuple[str, bytes | None], ...] = ()
    """Received: all headers in order, repeated ones and the bus's own included, on buses where they
    are bytes; None for one without a value. Sent in place of those of these names in `headers`, but
    for the bus's own."""


class Envelope(MessageFields, frozen=True, kw_only=True, gc=False):
    """A message at the edge of a bus: bytes and what the wire says about them."""

    payload: bytes = b""
    left_out: LeftOut | None = None
    """Received: the payload was too large to be taken, and `payload` is empty in its place."""

    @property
    def identity(self) -> str | None:
        """What tells the message from others, also if its sender gave no id.

        That is its place in the log then, on buses that have one.
        """
        if self.id is not None or self.offset is None:
            return self.id
        return f"{self.topic}/{self.partition}/{self.offset}"


def named_texts(envelope: Envelope) -> tuple[tuple[str, str | None], ...]:
    """Return the fields that go to the bus as texts, but for topics and headers, with names."""
    return (
        ("content_type", envelope.content_type),
        ("key", envelope.key),
        ("id", envelope.id),
        ("source", envelope.source),
        ("type", envelope.type),
    )


def without_payload(envelope: Envelope) -> Envelope:
    """Return what is handed out of a message whose payload is too large to be handed out."""
    payload = envelope.payload
    left_out = LeftOut(len(payload), hashlib.sha256(payload).hexdigest())
    return msgspec.structs.replace(envelope, payload=b"", left_out=left_out)


class Tombstone:
    """A payload that stands for none: it deletes what the message's key stands for.

    On Kafka a record with a null value, which needs a key; elsewhere an empty payload.
    """

    __slots__ = ()
