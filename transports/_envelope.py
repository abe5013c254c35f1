"""A message at the edge of a bus."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from .._texts import quoted
from ..errors import ConfigurationError

__all__ = [
    "CORRELATION_ID",
    "DEFAULT_TYPE",
    "REPLY_HEADER",
    "Envelope",
    "LeftOut",
    "MessageFields",
    "Replayed",
    "Tombstone",
    "check_encodable",
    "named_texts",
    "without_payload",
]

CORRELATION_ID = "correlationid"
"""The header with the id of the flow that a message belongs to, an attribute of CloudEvents. Where
other frameworks look for it, a bus sends it as well."""
DEFAULT_TYPE = "spa-dat.message"
"""The type of a message whose sender gives none: CloudEvents 1.0 demands one."""
REPLY_HEADER = "spa_reply"
"""Marks a reply as such, so that it never gets a reply itself."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class LeftOut(msgspec.Struct, frozen=True, gc=False):
    """What is known of a payload that was too large to be accepted.

    Attributes:
        size: its length in bytes.
        sha256: its SHA-256 digest, in hexadecimal.
    """

    size: int
    sha256: str


class Replayed(msgspec.Struct, frozen=True, gc=False):
    """Which dead letter a message comes from.

    Attributes:
        id: the letter's; if the message fails again, it is stored in its place.
        count: how often it has been replayed, this time included.
    """

    id: str
    count: int


class MessageFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of a message on the wire, apart from its payload.

    Names follow CloudEvents 1.0 where it has one (``id``, ``source``, ``type``, ``time``).
    """

    topic: str
    """The concrete topic, levels separated by ``/``."""
    content_type: str | None = None
    """MIME type of the payload; None if the sender gave none."""
    id: str | None = None
    """The same for every redelivery and resending, so that receivers can drop duplicates."""
    source: str | None = None
    """Who sent it: ``application/instance/actor`` for senders of this package."""
    type: str | None = None
    """What kind of event it is, in the sender's terms; `DEFAULT_TYPE` if the sender gave none."""
    time: float | None = None
    """When it was sent, in seconds since 1970 (UTC)."""
    key: str | None = None
    headers: Mapping[str, str] = _NO_HEADERS
    """Everything else the sender attached; the last value of a repeated name counts."""
    response_topic: str | None = None
    """Where a reply is expected. Set by the sender, so never trusted."""
    correlation: bytes | None = None
    expiry: float | None = None
    """Seconds for which the message is worth delivering; on receipt, those that are left."""
    qos: int = 1
    retain: bool = False
    """When sent: keep it as the topic's last value. When received: it was such a kept value."""
    redelivered: bool = False
    """Whether the bus says that it has sent this message before."""
    partition: int | None = None
    offset: int | None = None
    tombstone: bool = False
    """Whether there is no payload at all: the message deletes what its key stands for."""
    raw_key: bytes | None = None
    """When received: the key as bytes, on buses where it is bytes; `key` is its text. When sent:
    used in place of `key`."""
    raw_headers: tuple[tuple[str, bytes | None], ...] = ()
    """When received: all headers in order, including repeated ones and the bus's own, on buses
    where they are bytes; None for a header without a value. When sent: used in place of those of
    the same names in `headers`, except for the bus's own."""


class Envelope(MessageFields, frozen=True, kw_only=True, gc=False):
    """A message at the edge of a bus: its payload as bytes, and its fields."""

    payload: bytes = b""
    left_out: LeftOut | None = None
    """When received: the payload was too large to be accepted, and `payload` is empty instead."""
    original: Envelope | None = None
    """When received: the message as it came, if it was a CloudEvent in structured mode; all other
    fields are those of the event."""
    wire: str | None = None
    """When sent: the format that it is to have on the wire; None for that of the bus."""
    flaw: str | None = None
    """When received: why the message cannot be read, whatever it is to be decoded to."""
    replayed: Replayed | None = None
    """The dead letter that it comes from; None if it comes from a bus."""

    @property
    def identity(self) -> str | None:
        """What distinguishes the message from others, even if its sender gave no id.

        In that case it is its place in the log, on buses that have one.
        """
        if self.id is not None or self.offset is None:
            return self.id
        return f"{self.topic}/{self.partition}/{self.offset}"


def named_texts(envelope: Envelope) -> tuple[tuple[str, str | None], ...]:
    """Return the names and values of text fields on the bus, except topics and headers."""
    return (
        ("content_type", envelope.content_type),
        ("key", envelope.key),
        ("id", envelope.id),
        ("source", envelope.source),
        ("type", envelope.type),
    )


def check_encodable(envelope: Envelope) -> None:
    """Raise ConfigurationError for a text that UTF-8 cannot encode, in headers and other fields.

    Topics have checks of their own. The error names the field, shows its value, and says what to
    do.
    """
    for what, text in named_texts(envelope):
        if text is not None:
            _check_encodable(text, what)
    for name, value in envelope.headers.items() if envelope.headers else ():
        _check_encodable(name, "name of a header")
        _check_encodable(value, f"header {quoted(name)}")


def _check_encodable(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{what}: {quoted(text)} contains half of a surrogate pair, which UTF-8 cannot encode:"
            " use whole characters, or send it in the payload"
        ) from None


def without_payload(envelope: Envelope) -> Envelope:
    """Return a copy with `left_out` in place of a payload that is too large to be handed out."""
    payload = envelope.payload
    left_out = LeftOut(len(payload), hashlib.sha256(payload).hexdigest())
    return msgspec.structs.replace(envelope, payload=b"", left_out=left_out)


class Tombstone:
    """The absence of a payload: it deletes what the message's key stands for.

    On Kafka a record with a null value, which needs a key; elsewhere an empty payload.
    """

    __slots__ = ()
