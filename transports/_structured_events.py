"""CloudEvents in structured mode: one JSON document that holds an event's attributes and data."""

from __future__ import annotations

import binascii
import re
from datetime import datetime
from typing import Any

import msgspec

from .._texts import quoted
from ._envelope import Envelope

__all__ = ["is_structured", "opened"]

_FORMAT = "application/cloudevents+json"
_LENGTH_OF_FORMAT = len(_FORMAT)
_JSON = "application/json"
_VERSION = "1.0"
_REQUIRED = ("id", "source", "type")
# What becomes a field of the envelope, or part of its payload; all others become headers.
_TAKEN = frozenset({*_REQUIRED, "specversion", "time", "datacontenttype", "key"})
_NAME = re.compile(r"[a-z0-9]{1,100}")
_INTEGER = re.compile(rb"-?[0-9]{1,19}")
_WORDS = {b"true": "true", b"false": "false"}
_MOST_ATTRIBUTES = 200
_MOST_CHARACTERS = 131_072

_read_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_text = msgspec.json.Decoder(str).decode


class _Flaw(Exception):
    """What is wrong with a document."""


def is_structured(content_type: str | None) -> bool:
    """Return whether this content type is that of a CloudEvent in structured mode, in JSON."""
    return (
        content_type is not None
        # Hardly any other is that long.
        and len(content_type) >= _LENGTH_OF_FORMAT
        and content_type[:_LENGTH_OF_FORMAT].lower() == _FORMAT
        and content_type[_LENGTH_OF_FORMAT:].lstrip()[:1] in ("", ";")
    )


def opened(envelope: Envelope) -> Envelope:
    """Return the event in a received message, as if it had come in binary mode.

    Its payload is the event's data, and attributes of the event replace the fields and headers of
    the same names; the message as it came is `Envelope.original`. If the document cannot be read,
    the message is returned as it came, and `Envelope.flaw` says what is wrong. So is one whose
    payload was left out, and one with any other content type, without a flaw.
    """
    if envelope.left_out is not None or not is_structured(envelope.content_type):
        return envelope
    try:
        return _event(envelope)
    except _Flaw as flaw:
        why = f"the payload is not a readable CloudEvent, as its content type says: {flaw}"
        return msgspec.structs.replace(envelope, flaw=why)


def _event(envelope: Envelope) -> Envelope:
    members = _members_of(envelope.payload)
    data, encoded = members.pop("data", None), members.pop("data_base64", None)
    attributes = _attributes_of(members)
    version = attributes.get("specversion")
    if version != _VERSION:
        given = "none" if version is None else quoted(version, 20)
        raise _Flaw(f"it has the specversion {given}; {_VERSION!r} is understood")
    for name in _REQUIRED:
        if not attributes.get(name):
            raise _Flaw(f"it has no {name!r}, which every CloudEvent needs")
    payload, content_type = _payload_of(data, encoded, attributes.get("datacontenttype"))
    key = envelope.key
    if key is None:
        key = attributes.get("key", attributes.get("partitionkey"))
    more = {name: text for name, text in attributes.items() if name not in _TAKEN}
    return msgspec.structs.replace(
        envelope,
        payload=payload,
        content_type=content_type,
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        time=_time_of(attributes.get("time"), envelope.time),
        key=key,
        headers={**envelope.headers, **more} if more else envelope.headers,
        original=envelope,
    )


def _members_of(document: bytes) -> dict[str, msgspec.Raw]:
    try:
        members = _read_members(document)
    except RecursionError:
        raise _Flaw("it is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _Flaw(f"it is not a JSON object ({error})") from None
    # An attribute that is null is one that is not there.
    return {name: raw for name, raw in members.items() if bytes(raw) != b"null"}


def _attributes_of(members: dict[str, msgspec.Raw]) -> dict[str, str]:
    if len(members) > _MOST_ATTRIBUTES:
        raise _Flaw(f"it has {len(members)} attributes; {_MOST_ATTRIBUTES} are allowed")
    attributes: dict[str, str] = {}
    size = 0
    for name, raw in members.items():
        if _NAME.fullmatch(name) is None:
            raise _Flaw(f"{quoted(name, 40)} is not the name of an attribute: use a-z and 0-9")
        text = attributes[name] = _text_of(name, bytes(raw))
        size += len(name) + len(text)
    if size > _MOST_CHARACTERS:
        raise _Flaw(f"its attributes have {size} characters; {_MOST_CHARACTERS} are allowed")
    return attributes


def _text_of(name: str, raw: bytes) -> str:
    """Return an attribute's value as the text that it is in binary mode."""
    if raw[:1] == b'"':
        return _string(name, raw)
    if raw in _WORDS:
        return _WORDS[raw]
    if _INTEGER.fullmatch(raw):
        return raw.decode("ascii")
    raise _Flaw(f"the attribute {name!r} is neither a string, an integer nor a boolean")


def _string(name: str, raw: bytes) -> str:
    try:
        text = _read_text(raw)
        text.encode()
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _Flaw(f"the text of {name!r} cannot be read ({error})") from None
    return text


def _payload_of(
    data: msgspec.Raw | None, encoded: msgspec.Raw | None, stated: str | None
) -> tuple[bytes, str | None]:
    if encoded is not None:
        if data is not None:
            raise _Flaw("it has both 'data' and 'data_base64'")
        try:
            text: Any = _read_text(bytes(encoded))
            return binascii.a2b_base64(text, strict_mode=True), stated
        except (msgspec.MsgspecError, ValueError) as error:
            raise _Flaw(f"its 'data_base64' is not in base64 ({error})") from None
    if data is None:
        return b"", stated
    raw = bytes(data)
    if _is_json(stated):
        return raw, stated or _JSON
    if raw[:1] != b'"':
        raise _Flaw(f"its 'data' must be a string, as its datacontenttype is {quoted(stated, 80)}")
    return _string("data", raw).encode(), stated


def _is_json(content_type: str | None) -> bool:
    if not content_type:
        return True
    essence = content_type.partition(";")[0].strip().lower()
    return essence in (_JSON, "text/json") or essence.endswith("+json")


def _time_of(text: str | None, otherwise: float | None) -> float | None:
    try:
        return otherwise if text is None else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return otherwise
