"""The format of recordings: one JSON object per line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import msgspec

from ..._logs import get_logger
from ..._texts import escaped
from ...errors import ConfigurationError
from ...transports import Envelope, check_topic
from ...transports._envelope import MessageFields

__all__ = ["FORMAT", "Receipt", "read_recording"]

log = get_logger("spa_dat")

FORMAT = 1
"""The version of the format; later ones may add fields, other changes raise the number."""
_LONGEST_TOPIC = 65_535


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
        return Envelope(
            payload=self.payload.encode() if binary is None else binary, **_fields(self)
        )

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
    """Whether the raw headers contain more than their texts."""
    raw = envelope.raw_headers
    return len({name for name, _ in raw}) < len(raw) or not all(
        value is not None and _is_text(value) for _, value in raw
    )


class _Version(msgspec.Struct):
    version: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Receipt)
_version_decoder = msgspec.json.Decoder(_Version)


def read_recording(file: str | PathLike[str]) -> Iterator[tuple[int, Receipt]]:
    """Yield the line number and the message of each line of a recording, in order.

    An incomplete last line, as a killed process leaves it, is skipped.

    Raises:
        ConfigurationError: the file cannot be read, or a line is not a message; says which.
    """
    path = Path(file)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                # Editors on Windows add one.
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    receipt = _read(path, number, line)
                    if receipt is not None:
                        yield number, receipt
    except OSError as error:
        raise ConfigurationError(
            f"recording {str(path)!r} cannot be read: {error.strerror or error}"
        ) from error


def _read(path: Path, number: int, line: bytes) -> Receipt | None:
    try:
        # First, because in another version everything else may be different.
        version = _version_decoder.decode(line).version
        if version != FORMAT:
            raise ValueError(
                f"it has version {version}, but this program reads version {FORMAT}; a newer"
                " program may be able to read it"
            )
        receipt = _decoder.decode(line)
        # Topics of the brokers themselves begin with $. Whatever a broker has delivered is read;
        # whether a simulated broker accepts it is checked when it is published there.
        check_topic(escaped(receipt.topic.removeprefix("$"), _LONGEST_TOPIC))
        if receipt.qos not in (0, 1, 2):
            raise ValueError(f"qos is {receipt.qos}, but must be 0, 1 or 2")
    except RecursionError as error:
        raise ConfigurationError(
            f"recording {str(path)!r}, line {number}: it is nested too deeply; remove the line"
        ) from error
    except (ValueError, ConfigurationError) as error:
        if not line.endswith(b"\n") and _is_cut_short(error):
            log.warning("recording %s: its last line, %d, is incomplete", path, number)
            return None
        raise ConfigurationError(
            f"recording {str(path)!r}, line {number}: {error}; fix the line or remove it"
        ) from error
    return receipt


def _is_cut_short(error: Exception) -> bool:
    """Whether a line is not JSON at all, rather than JSON with wrong content."""
    return isinstance(error, msgspec.DecodeError | UnicodeDecodeError) and not isinstance(
        error, msgspec.ValidationError
    )
