"""Messages as the command line shows them: to people as text, to programs as JSON.

All of it comes from others. A terminal obeys control characters, so they are shown as escapes; and
lines that look like the beginning of another message are indented.
"""

from __future__ import annotations

import base64
import codecs
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from .._texts import escaped, quoted
from ..errors import DecodeError
from ..runtime import Message
from ..runtime.payloads._codec import JSON, MESSAGEPACK, Decoder, PayloadFormat, format_of
from ..transports import Envelope
from ._terminal import HEADING, QUIET, styled

__all__ = [
    "envelope_as_json",
    "envelope_as_text",
    "json_line",
    "message_as_json",
    "moment_text",
    "payload_as_text",
    "received_as_entries",
]

_INDENT = "    "
_LONGEST_TOPIC = 1_000
_LONGEST_TEXT = 200
_MOST_HEADERS = 50
# What is longer is neither decoded nor laid out: that would take longer than reading it.
_LONGEST_LAID_OUT = 65_536
_LONGEST_PAYLOAD = 4_000
_MOST_LINES = 100
_BYTES_IN_A_LINE = 32
_PLAIN = Decoder.of(Any)
# What json and msgspec raise over values that JSON does not have, such as nan.
_NOT_IN_JSON = (TypeError, ValueError, OverflowError, RecursionError)


def envelope_as_text(envelope: Envelope) -> str:
    """Return a message that has arrived, as lines to read; cut where nobody would read on."""
    sent = time.time() if envelope.time is None else envelope.time
    moment = moment_text(sent) or f"{sent:g} s after 1970"
    head = f"{styled(moment, QUIET)}  {styled(escaped(envelope.topic, _LONGEST_TOPIC), HEADING)}\n"
    return head + "".join(f"{_INDENT}{line}\n" for line in _details(envelope))


def envelope_as_json(envelope: Envelope) -> str:
    """Return a message that has arrived as one line of JSON, complete."""
    return json_line(received_as_entries(envelope))


def received_as_entries(envelope: Envelope) -> dict[str, Any]:
    """Return a message that has arrived for JSON, complete."""
    entries = _entries(Message.of(envelope, envelope.payload))
    entries["flaw"] = envelope.flaw
    if envelope.left_out is not None:
        entries |= {"format": "left out", "size": envelope.left_out.size}
    return entries


def message_as_json(message: Message[bytes]) -> str:
    """Return a message as one line of JSON, complete."""
    return json_line(_entries(message))


def payload_as_text(message: Message[bytes]) -> str:
    """Return a payload as lines to read, complete."""
    return "".join(f"{line}\n" for line in _laid_out(message.raw, message.content_type)[1])


def _decoded(payload: bytes, content_type: str | None) -> tuple[str, Any]:
    """Return the format that a payload really has, and its value as JSON has it.

    That of text is a str; that of anything else than JSON, MessagePack and text is None.
    """
    if not payload:
        return "empty", None
    stated = format_of(content_type)
    if stated is PayloadFormat.MESSAGEPACK:
        try:
            value = _PLAIN.decode(payload, MESSAGEPACK)
            return "MessagePack", msgspec.to_builtins(value, str_keys=True)
        except (DecodeError, *_NOT_IN_JSON):
            return "bytes", None
    if stated in (PayloadFormat.JSON, PayloadFormat.UNSTATED):
        try:
            return "JSON", _PLAIN.decode(payload, JSON)
        except DecodeError:
            pass
    if stated in (PayloadFormat.JSON, PayloadFormat.UNSTATED, PayloadFormat.TEXT):
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return "bytes", None
        if stated is PayloadFormat.TEXT or _reads_well(text):
            return "text", text
    return "bytes", None


def _reads_well(text: str) -> bool:
    return text.translate({ord(letter): None for letter in "\t\n\r"}).isprintable()


def moment_text(seconds: float) -> str | None:
    """Return a time for people and programs; None if no calendar has it."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# For programs.


def _entries(message: Message[bytes]) -> dict[str, Any]:
    form, value = _decoded(message.raw, message.content_type)
    try:
        json.dumps(value, allow_nan=False)
    except _NOT_IN_JSON:
        form = "bytes"
    payload: dict[str, Any] = {"payload": value}
    if form == "bytes":
        payload = {"payload_base64": base64.b64encode(message.raw).decode()}
    return {
        "topic": message.topic,
        "time": None if message.time is None else moment_text(message.time),
        "id": message.id,
        "key": message.key,
        "headers": _headers(message),
        "source": message.source,
        "type": message.type,
        "correlation_id": message.correlation_id,
        "response_topic": message.response_topic,
        "retained": message.retained,
        "partition": message.partition,
        "offset": message.offset,
        "tombstone": message.tombstone,
        "content_type": message.content_type,
        "format": form,
        "size": len(message.raw),
        **payload,
    }


def _headers(message: Message[bytes]) -> dict[str, str | None]:
    """Return the headers, with None for those of Kafka that have no value."""
    empty = {name for name, value in message.raw_headers if value is None}
    return {name: text or (None if name in empty else "") for name, text in message.headers.items()}


def json_line(entries: dict[str, Any]) -> str:
    """Return an object as a line of JSON."""
    # In ASCII: nothing in it ends the line or moves a cursor.
    return json.dumps(entries, allow_nan=False) + "\n"


# For people.


def _details(envelope: Envelope) -> Iterator[str]:
    payload, left_out = envelope.payload, envelope.left_out
    size = len(payload) if left_out is None else left_out.size
    if len(payload) > _LONGEST_LAID_OUT:
        form, lines = "not laid out", _beginning(payload)
    else:
        form, lines = _laid_out(payload, envelope.content_type)
    if left_out is not None:
        form, lines = "left out", ["(more than the option 'max_received' of the bus allows)"]
    yield ", ".join(_marks(envelope, form, size))
    for name, text in (
        ("id", envelope.id),
        ("source", envelope.source),
        ("key", envelope.key),
        ("reply to", envelope.response_topic),
    ):
        if text is not None:
            yield f"{name}: {escaped(text, _LONGEST_TEXT)}"
    headers = list(envelope.headers.items())
    for name, text in headers[:_MOST_HEADERS]:
        yield f"header {quoted(name)}: {escaped(text, _LONGEST_TEXT)}"
    if len(headers) > _MOST_HEADERS:
        yield f"(and {len(headers) - _MOST_HEADERS} more headers)"
    if envelope.flaw is not None:
        yield f"it cannot be read: {escaped(envelope.flaw, _LONGEST_TOPIC)}"
    yield from _cut(lines, size)


def _marks(envelope: Envelope, form: str, size: int) -> Iterator[str]:
    stated = envelope.content_type
    yield f"{form} ({'no content type' if stated is None else escaped(stated, _LONGEST_TEXT)})"
    yield f"{size} bytes"
    if envelope.retain:
        yield "retained"
    if envelope.tombstone:
        yield "tombstone"
    if envelope.offset is not None:
        yield f"partition {envelope.partition}, offset {envelope.offset}"


def _laid_out(payload: bytes, content_type: str | None) -> tuple[str, list[str]]:
    """Return the format that a payload really has, and the lines to show for it."""
    form, value = _decoded(payload, content_type)
    if form == "text":
        return form, _lines_of(value)
    if form in ("JSON", "MessagePack"):
        try:
            text = json.dumps(value, indent=2, ensure_ascii=False)
            return form, [_harmless_json(line) for line in text.split("\n")]
        except _NOT_IN_JSON:
            form = "bytes"
    return form, _hex(payload)


def _beginning(payload: bytes) -> list[str]:
    """Return lines that show how a payload begins: more than are shown."""
    part = payload[: 2 * _LONGEST_PAYLOAD]
    try:
        # Its last character may be cut off.
        return _lines_of(codecs.getincrementaldecoder("utf-8")().decode(part))
    except UnicodeDecodeError:
        return _hex(part)


def _lines_of(text: str) -> list[str]:
    lines = text.removesuffix("\n").split("\n")
    return [escaped(line.removesuffix("\r").expandtabs(), sys.maxsize) for line in lines]


def _harmless_json(line: str) -> str:
    """Return a line of JSON with escapes of its own for what a terminal would obey."""
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


def _hex(payload: bytes) -> list[str]:
    starts = range(0, len(payload), _BYTES_IN_A_LINE)
    return [payload[start : start + _BYTES_IN_A_LINE].hex(" ") for start in starts]


def _cut(lines: list[str], size: int) -> Iterator[str]:
    left = _LONGEST_PAYLOAD
    for number, line in enumerate(lines):
        if len(line) > left or number == _MOST_LINES:
            yield f"{line[:left]}... ({size} bytes)"
            return
        left -= len(line)
        yield line
