"""The format of recordings: one JSON object per line, which is a receipt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from ...transports import Envelope, opened
from ...transports._envelope import MessageFields

__all__ = ["FORMAT", "Receipt"]

FORMAT = 1
"""The version of the format; later ones may add fields, other changes raise the number."""


class Receipt(MessageFields, frozen=True, kw_only=True, omit_defaults=True):
    """One message that reached one actor: one line of a recording.

    A field with its default value is left out of the line. Bytes are written in base64.

    Attributes:
        version: `FORMAT`.
        at: when the message reached the actor, in seconds since 1970 (UTC).
        application: name of the application; None, like the next three, if it was recorded
            without an application.
        instance: the instance of the application.
        actor: name of the actor.
        handler: name of the function that got the message.
        bus: address of the bus that it came from, without user, secrets and options.
        attempt: 1, or 1 more than the number of times that the handler had failed on it before.
        payload: the payload, if it is UTF-8.
        payload_base64: the payload, if it is not. If both are missing, the payload is empty.

    All other attributes are those of the message.
    """

    version: int
    at: float
    application: str | None = None
    instance: str | None = None
    actor: str | None = None
    handler: str | None = None
    bus: str | None = None
    attempt: int = 1
    payload: str = ""
    payload_base64: bytes | None = None
    headers: Mapping[str, str] = {}

    @classmethod
    def of(
        cls,
        envelope: Envelope,
        *,
        at: float,
        attempt: int = 1,
        application: str | None = None,
        instance: str | None = None,
        actor: str | None = None,
        handler: str | None = None,
        bus: str | None = None,
    ) -> Self:
        """Return the receipt of an envelope; see the attributes."""
        payload, binary = "", None
        try:
            payload = envelope.payload.decode()
        except UnicodeDecodeError:
            binary = envelope.payload
        return cls(
            version=FORMAT,
            at=at,
            attempt=attempt,
            application=application,
            instance=instance,
            actor=actor,
            handler=handler,
            bus=bus,
            payload=payload,
            payload_base64=binary,
            **_fields(envelope)
            | {
                "raw_key": None if _is_text(envelope.raw_key) else envelope.raw_key,
                "raw_headers": envelope.raw_headers if _has_more(envelope) else (),
            },
        )

    @property
    def envelope(self) -> Envelope:
        """The message as it reached the actor."""
        binary = self.payload_base64
        envelope = Envelope(
            payload=self.payload.encode() if binary is None else binary, **_fields(self)
        )
        # Only what could not be opened then still is a document, and has its flaw again.
        return opened(envelope)

    def line(self) -> bytes:
        """Return the line, including its line break.

        Raises:
            UnicodeEncodeError: a text contains half of a surrogate pair.
        """
        return _encoder.encode(self) + b"\n"


def _fields(message: MessageFields) -> dict[str, Any]:
    fields = {name: getattr(message, name) for name in MessageFields.__struct_fields__}
    return fields | {"headers": dict(message.headers)}


def _is_text(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _has_more(envelope: Envelope) -> bool:
    """Return whether the raw headers contain more than their texts."""
    raw = envelope.raw_headers
    return len({name for name, _ in raw}) < len(raw) or not all(
        value is not None and _is_text(value) for _, value in raw
    )


_encoder = msgspec.json.Encoder()
