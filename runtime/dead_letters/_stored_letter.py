"""Dead letters as they are found on a bus: what they say, and the messages that they keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..._texts import is_cut, quoted
from ...transports import Envelope, dead_letter_name, dead_letter_topic

__all__ = ["LetterFilter", "StoredLetter"]

_OURS = "spa_dead_"
_ORIGINAL = "spa_dead_original"
_VERSION = "1"
_LONGEST_NUMBER = 18
_NOTHING = b"(empty)"
_OF_THE_LETTER = frozenset({"ce_id", "ce_source", "ce_subject"})
"""Headers on Kafka that say of the letter what they would say of the message."""
_TOLD = (
    *("application", "instance", "actor", "topic"),
    *("error", "text", "attempts", "replays"),
)
"""The fields that only a letter has which can be read."""


@dataclass(frozen=True)
class StoredLetter:
    """A dead letter on a bus, or what stands in its place: anybody may have published there.

    Attributes:
        name: tells it from the others of the application, for as long as it is there.
        stored: when it was stored, in seconds since 1970 (UTC); None if it does not say.
        size: of its payload in bytes, also if that is left out.
        flaw: why it cannot be read, which leaves the rest empty; None if it can.
        obstacle: why it cannot be replayed; None if it can.
        application: that of the actor that failed.
        instance: the same.
        actor: the same.
        topic: that of the message.
        error: the name of the class of the last error.
        text: that of the error.
        attempts: how often the handler was called when it was stored last.
        replays: how often it was replayed, and failed again.
        message: the message as it came, for the actor that failed.
        envelope: the dead letter as it is on the bus.
    """

    name: str
    stored: float | None
    size: int
    envelope: Envelope
    flaw: str | None = None
    obstacle: str | None = None
    application: str = ""
    instance: str = ""
    actor: str = ""
    topic: str = ""
    error: str = ""
    text: str = ""
    attempts: int = 0
    replays: int = 0
    message: Envelope | None = None

    @classmethod
    def of(cls, application: str, envelope: Envelope) -> StoredLetter:
        """Return what was found at a topic of the application's dead letters; never raises."""
        # A CloudEvent in structured mode is the payload, and must not be taken for the letter.
        received = envelope.original or envelope
        name = dead_letter_name(application, envelope.topic)
        size = len(received.payload)
        if envelope.left_out is not None:
            size = envelope.left_out.size
        try:
            return _read(application, name, received, envelope)
        except _Unreadable as flaw:
            return cls(name, received.time, size, received, flaw=str(flaw), obstacle=str(flaw))

    @property
    def source(self) -> str:
        """The actor that failed, as ``application/instance/actor``; empty if it is unreadable."""
        return "" if self.flaw else f"{self.application}/{self.instance}/{self.actor}"

    def as_dict(self) -> dict[str, Any]:
        """Return it without its message as texts and numbers, for JSON."""
        read = None if self.flaw else self
        return {
            "letter": self.name,
            "stored": None if self.stored is None else _moment(self.stored),
            "size": self.size,
            "flaw": self.flaw,
            "obstacle": self.obstacle,
            **{name: None if read is None else getattr(read, name) for name in _TOLD},
        }

    def without_message(self) -> StoredLetter:
        """Return what takes little memory, however large the message is."""
        envelope = msgspec.structs.replace(
            self.envelope, payload=b"", headers={}, raw_headers=(), original=None
        )
        return replace(self, envelope=envelope, message=None)


@dataclass(frozen=True)
class LetterFilter:
    """Which dead letters are wanted; what cannot be read only if nothing is said of its content.

    Attributes:
        actor: the name of the actor; None for any.
        error: a part of the error's class name or text, in whichever case; None for any.
        since: stored at this time or later, in seconds since 1970 (UTC).
        until: stored before this time.
    """

    actor: str | None = None
    error: str | None = None
    since: float | None = None
    until: float | None = None

    def wants(self, letter: StoredLetter) -> bool:
        """Return whether it is one of those that are wanted."""
        if self.actor is not None and letter.actor != self.actor:
            return False
        told = f"{letter.error}: {letter.text}".casefold()
        if self.error is not None and (letter.flaw or self.error.casefold() not in told):
            return False
        if self.since is None and self.until is None:
            return True
        stored = letter.stored
        if stored is None or (self.since is not None and stored < self.since):
            return False
        return self.until is None or stored < self.until


class _Unreadable(Exception):
    """It is not a dead letter that this version can read."""


def _read(owner: str, name: str, received: Envelope, envelope: Envelope) -> StoredLetter:
    notes = received.headers
    if envelope.left_out is not None:
        raise _Unreadable(
            f"it has {envelope.left_out.size} bytes, more than the option 'max_received' of the"
            " bus allows"
        )
    version = notes.get("spa_dead_version", _VERSION)
    if version != _VERSION:
        raise _Unreadable(
            f"it was written by a newer version (spa_dead_version {quoted(version, 40)}): use that"
        )
    topic, source = _noted(notes, "topic"), _noted(notes, "actor")
    application, instance, actor = [*source.split("/", 2), "", ""][:3]
    if not (application and instance and actor):
        raise _Unreadable(f"header 'spa_dead_actor' is {quoted(source, 80)}, which names no actor")
    message = msgspec.structs.replace(
        received,
        topic=topic,
        id=notes.get("spa_dead_id"),
        source=notes.get("spa_dead_source"),
        time=_time(notes),
        headers={name: text for name, text in notes.items() if not name.startswith(_OURS)},
        raw_headers=tuple(
            pair
            for pair in received.raw_headers
            if not pair[0].startswith(_OURS) and pair[0] not in _OF_THE_LETTER
        ),
        tombstone="spa_dead_tombstone" in notes,
        retain=False,
        redelivered=False,
        expiry=None,
        partition=_number(notes, "partition", None),
        offset=_number(notes, "offset", None),
        response_topic=None,
        correlation=_correlation(notes),
        # Whether it can be read depends on the format of the actor that failed.
        flaw=None,
    )
    if message.raw_key is not None and message.raw_key == (received.id or "").encode():
        # On Kafka a dead letter without a key gets its id as one.
        message = msgspec.structs.replace(message, key=None, raw_key=None)
    unnamed = msgspec.structs.replace(message, id=None)
    if unnamed.identity == message.id:
        # The message had no id, and its place in the log stood for it.
        message = unnamed
    if received.topic != dead_letter_topic(owner, received.id or ""):
        raise _Unreadable("it is not a dead letter: its id is not the one in its address")
    message, obstacle = _with_original(message, notes)
    size = _number(notes, "size", None)
    if size == 0 and message.payload == _NOTHING:
        message = msgspec.structs.replace(message, payload=b"")
    elif size:
        obstacle = f"its payload of {size} bytes was too large to be stored, or to be received"
    return StoredLetter(
        name=name,
        stored=received.time,
        size=len(message.payload) if size is None else size,
        envelope=received,
        obstacle=obstacle,
        application=application,
        instance=instance,
        actor=actor,
        topic=message.topic,
        error=_noted(notes, "error"),
        text=notes.get("spa_dead_text", ""),
        attempts=_number(notes, "attempts", 0) or 0,
        replays=_number(notes, "replays", 0) or 0,
        message=message,
    )


def _with_original(message: Envelope, notes: Mapping[str, str]) -> tuple[Envelope, str | None]:
    """Return the message with what the bus could not carry, and what of it is missing."""
    document = notes.get(_ORIGINAL)
    if document is None:
        # Only a reduced form has no type.
        lost = "not all of the message was stored: the bus has refused it"
        return message, lost if message.type is None else None
    try:
        original = json.loads(document)
        fields: dict[str, Any] = {
            "topic": original["topic"],
            "headers": dict(original["headers"]),
            **{name: original.get(name) for name in ("key", "content_type", "type")},
        }
        restored = msgspec.convert(
            {"complete": original["complete"], **fields}, _Original, strict=True
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Unreadable(f"header {_ORIGINAL!r} is damaged: {type(error).__name__}") from None
    complete = None if restored.complete else "not all of the message was stored: it was too large"
    return msgspec.structs.replace(message, **fields), complete


class _Original(msgspec.Struct):
    complete: bool
    topic: str
    headers: dict[str, str]
    key: str | None
    content_type: str | None
    type: str | None


def _noted(notes: Mapping[str, str], name: str) -> str:
    text = notes.get(_OURS + name)
    if not text:
        raise _Unreadable(f"it is not a dead letter: it has no header '{_OURS}{name}'")
    return text


def _number(notes: Mapping[str, str], name: str, default: int | None) -> int | None:
    text = notes.get(_OURS + name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise _Unreadable(f"header '{_OURS}{name}' is {quoted(text, 80)}, which is not a number")
    return int(text)


def _correlation(notes: Mapping[str, str]) -> bytes | None:
    text = notes.get("spa_dead_correlation")
    if text is None or is_cut(text):
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise _Unreadable("header 'spa_dead_correlation' is damaged") from None


def _moment(seconds: float) -> str | None:
    """Return a time as ISO 8601; None if no calendar has it."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(notes: Mapping[str, str]) -> float | None:
    text = notes.get("spa_dead_time")
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        # Beyond the range of the calendar.
        return float(text)
    except ValueError:
        raise _Unreadable(
            f"header 'spa_dead_time' is {quoted(text, 80)}, which is no time"
        ) from None
