"""The format of recordings: one JSON object a line."""

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
"""The version of the format; a later one adds fields, or has a higher number."""
_LONGEST_TOPIC = 65_535


class Receipt(MessageFields, frozen=True, kw_only=True, omit_defaults=True):
    """One message that reached one actor: one line of a recording.

    A field that has its default is left out of the line. Bytes are written in base64.

    Attributes:
        version: `FORMAT`.
        at: when the message reached the actor, in seconds since 1970 (UTC).
        application: name of the application; None, as the three that follow, in what was recorded
            without one.
        instance: which copy of it.
        actor: name of the actor.
        handler: name of the function that got it.
        bus: address of the bus that it came from, without user, secrets and options.
        attempt: 1, or how often the handler had failed on it before, plus 1.
        payload: the payload, where it is UTF-8.
        payload_base64: the payload, where it is not. None and no ``payload`` is an empty one.

    All others are those of the message.
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
        """Return the line, with its end.

        Raises:
            UnicodeEncodeError: a text has half of a surrogate pair in it.
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
    """Whether there is more in the headers than their texts say."""
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
    """Return the messages of a recording with the numbers of their lines, in order.

    A last line that is cut short, as a process leaves it that was killed, is passed over.

    Raises:
        ConfigurationError: the file cannot be read, or a line is no message; says which.
    """
    path = Path(file)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                # Editors on Windows put it there.
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
        # First: in another version all else may be different.
        version = _version_decoder.decode(line).version
        if version != FORMAT:
            raise ValueError(
                f"it is of version {version}, and this program reads version {FORMAT}; a newer one"
                " may read it"
            )
        receipt = _decoder.decode(line)
        # Brokers have topics of their own, which begin so. What a broker has let through is read;
        # whether a simulated one does is seen when it is put in.
        check_topic(escaped(receipt.topic.removeprefix("$"), _LONGEST_TOPIC))
        if receipt.qos not in (0, 1, 2):
            raise ValueError(f"qos is {receipt.qos}, and can be 0, 1 or 2")
    except RecursionError as error:
        raise ConfigurationError(
            f"recording {str(path)!r}, line {number}: it is nested too deeply; remove the line"
        ) from error
    except (ValueError, ConfigurationError) as error:
        if not line.endswith(b"\n") and _is_cut_short(error):
            log.warning("recording %s: its last line, %d, is cut short", path, number)
            return None
        raise ConfigurationError(
            f"recording {str(path)!r}, line {number}: {error}; mend the line or remove it"
        ) from error
    return receipt


def _is_cut_short(error: Exception) -> bool:
    """Whether it is no JSON, and not only JSON that is wrong."""
    return isinstance(error, msgspec.DecodeError | UnicodeDecodeError) and not isinstance(
        error, msgspec.ValidationError
    )
