"""Making a dead letter of a message, with what is needed to handle it later, in forms that fit."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..._environment import Environment
from ..._texts import describe, error_name, escaped
from ...errors import MessageTooLarge
from ...transports import DEFAULT_TYPE, Envelope

__all__ = ["abridged", "dead_letter", "plain", "simpler", "time_text"]

_NAMESPACE = uuid.UUID("c1a2f1f6-8f2f-5d0e-8a8e-3d5a1f6b7c11")
_LONGEST_TEXT = 1000
_OURS = "spa_dead_"
_ORIGINAL = "spa_dead_original"
_LONGEST_ORIGINAL = 30_000
_LONGEST_VALUE = 1_000
_SHORT = 100
# Bytes of a payload for whose sake everything else is reduced first.
_SMALL = 4096
# Bytes. Nobody is answered who sends more, so nobody needs to know.
_LONGEST_CORRELATION = 1_024

_ESSENTIAL = {
    "topic": 100,
    "actor": 60,
    "attempts": 20,
    "replays": 20,
    "error": 60,
    "tombstone": 1,
    "size": 20,
    "sha256": 64,
    "partition": 20,
    "offset": 20,
}
"""The headers of the last form, and how long they may be."""


def dead_letter(
    envelope: Envelope,
    *,
    actor: str,
    attempts: int,
    error: BaseException,
    environment: Environment,
) -> Envelope:
    """Return the message as it is stored: original bytes and headers, and what went wrong.

    Headers ``spa_dead_*`` say what happened. Parking the same message twice gives the same id, if
    its sender gave it an id or the bus numbers its messages.

    Args:
        envelope: the message; of one that was opened, the original is stored.
        actor: ``application/instance/actor`` that failed on it.
        attempts: how often the handler was called.
        error: what it raised last.
        environment: for time and ids.
    """
    received = envelope.original or envelope
    headers = {k: v for k, v in received.headers.items() if not k.startswith(_OURS)}
    headers |= {
        "spa_dead_topic": envelope.topic,
        "spa_dead_actor": actor,
        "spa_dead_attempts": str(attempts),
        "spa_dead_error": error_name(error),
        "spa_dead_text": describe(error),
    }
    if envelope.tombstone:
        headers["spa_dead_tombstone"] = "1"
    digest = None
    if envelope.left_out is not None:
        digest = envelope.left_out.sha256
        headers["spa_dead_size"] = str(envelope.left_out.size)
        headers["spa_dead_sha256"] = digest
    if envelope.partition is not None:
        headers["spa_dead_partition"] = str(envelope.partition)
    if envelope.offset is not None:
        # Where the original can still be found.
        headers["spa_dead_offset"] = str(envelope.offset)
    identity = envelope.identity
    if identity is not None:
        headers["spa_dead_id"] = identity
        # Senders that give every message the same id must not overwrite one letter with the next.
        digest = digest or hashlib.sha256(received.payload).hexdigest()
        name = "\0".join((identity, actor, envelope.topic, digest))
        identifier = str(uuid.uuid5(_NAMESPACE, name.encode("utf-8", "backslashreplace").decode()))
    else:
        identifier = environment.new_id()
    if envelope.replayed is not None:
        # It stays one letter, whichever instance has failed on it this time.
        identifier = envelope.replayed.id
        headers["spa_dead_replays"] = str(envelope.replayed.count)
    if envelope.time is not None:
        headers["spa_dead_time"] = time_text(envelope.time)
    if envelope.source is not None:
        headers["spa_dead_source"] = envelope.source
    if envelope.response_topic is not None:
        headers["spa_dead_response_topic"] = envelope.response_topic
    if envelope.correlation is not None and len(envelope.correlation) <= _LONGEST_CORRELATION:
        headers["spa_dead_correlation"] = envelope.correlation.hex()
    return Envelope(
        topic=envelope.topic,
        payload=received.payload,
        content_type=received.content_type,
        id=identifier,
        source=actor,
        type=envelope.type or DEFAULT_TYPE,
        time=environment.now(),
        key=received.key,
        headers=headers,
        raw_key=envelope.raw_key,
        raw_headers=tuple(pair for pair in envelope.raw_headers if not pair[0].startswith(_OURS)),
    )


def time_text(time: float) -> str:
    """Return a time in seconds since 1970 as ISO 8601 in UTC, to the millisecond.

    A time beyond the range of the calendar stays a number.
    """
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return str(time)


def simpler(letter: Envelope, refusal: BaseException, complete: Envelope) -> Envelope | None:
    """Return a form of the dead letter that the bus may accept; None if there is none left.

    If it was too large, the headers are reduced first, unless the payload is larger and not small;
    the last form takes a few hundred bytes. Otherwise what the sender has chosen is escaped first,
    then left out, and the payload is dropped last.

    Args:
        letter: the form that was refused.
        refusal: why.
        complete: the form with everything in it.
    """
    if not isinstance(refusal, MessageTooLarge):
        return plain(letter) or _without_fields(letter) or abridged(letter)
    smaller: Envelope | None = None
    if _is_mostly_headers(letter) or len(letter.payload) <= _SMALL:
        smaller = plain(letter) or _without_fields(letter) or _curt(letter)
    if smaller is None and len(letter.payload) <= _SMALL:
        smaller = _essential(letter)
    if smaller is None and letter.payload:
        smaller = abridged(complete)
    return smaller


def _curt(letter: Envelope) -> Envelope | None:
    """Return the dead letter with short texts; None if they are short. The topic stays whole."""
    headers = {
        name: text if name == "spa_dead_topic" else escaped(text, _SHORT)
        for name, text in letter.headers.items()
    }
    return None if headers == letter.headers else msgspec.structs.replace(letter, headers=headers)


def _essential(letter: Envelope) -> Envelope | None:
    """Return the dead letter with nothing but what tells it from others; None if it has no more."""
    headers = {
        f"{_OURS}{name}": escaped(ascii_, length)
        for name, length in _ESSENTIAL.items()
        if (text := letter.headers.get(f"{_OURS}{name}")) is not None
        and (ascii_ := text.encode("ascii", "backslashreplace").decode())
    }
    bare = msgspec.structs.replace(_bare(letter, headers), source=None, time=None)
    return None if bare == letter else bare


def _without_fields(letter: Envelope) -> Envelope | None:
    """Return the dead letter without the sender's own fields; None if it has none."""
    bare = _bare(letter, _plain_headers(letter))
    return None if bare == letter else bare


def _is_mostly_headers(letter: Envelope) -> bool:
    sent = (letter.key, letter.content_type, letter.type, *letter.headers, *letter.headers.values())
    return sum(len(text) for text in sent if text is not None) > len(letter.payload)


def plain(letter: Envelope) -> Envelope | None:
    """Return the dead letter with nothing in it, except the payload, that a bus could refuse.

    What the sender has chosen is moved to the header ``spa_dead_original``, as JSON in ASCII; the
    runtime's own headers stay, escaped and shortened. None if the letter has this form already.
    """
    headers = _plain_headers(letter)
    if _ORIGINAL in letter.headers or (
        headers == letter.headers
        and letter.key is letter.content_type is letter.type is None
        and not letter.raw_headers
    ):
        return None
    headers[_ORIGINAL] = _original(letter)
    return _bare(letter, headers)


def _bare(letter: Envelope, headers: dict[str, str]) -> Envelope:
    return msgspec.structs.replace(
        letter,
        headers=headers,
        key=None,
        content_type=None,
        type=None,
        raw_key=None,
        raw_headers=(),
    )


def _plain_headers(letter: Envelope) -> dict[str, str]:
    return {
        name: escaped(text, _LONGEST_TEXT)
        for name, text in letter.headers.items()
        if name.startswith(_OURS) and name != _ORIGINAL
    }


def _original(letter: Envelope) -> str:
    """Return as much of what the sender has chosen as fits, as JSON; ``complete`` if it is all."""
    fields = {
        "topic": letter.headers.get("spa_dead_topic"),
        "key": letter.key,
        "content_type": letter.content_type,
        "type": letter.type,
    }
    given = {name: text for name, text in fields.items() if text is not None}
    original: dict[str, Any] = {name: text[:_LONGEST_VALUE] for name, text in given.items()}
    headers: dict[str, str] = {}
    room = _LONGEST_ORIGINAL - len(json.dumps(original))
    complete = all(len(text) <= _LONGEST_VALUE for text in given.values())
    for name, text in letter.headers.items():
        if name.startswith(_OURS):
            continue
        room -= len(json.dumps((name, text)))
        if room < 0:
            complete = False
            break
        headers[name] = text
    return json.dumps(original | {"headers": headers, "complete": complete})


def abridged(letter: Envelope) -> Envelope | None:
    """Return a shorter form of the dead letter, for a bus that found it too large.

    First the payload is replaced by its size and SHA-256, then what the sender attached is left
    out. None if there is nothing left to leave out.
    """
    if letter.payload:
        headers = {
            **letter.headers,
            "spa_dead_size": str(len(letter.payload)),
            "spa_dead_sha256": hashlib.sha256(letter.payload).hexdigest(),
        }
        return msgspec.structs.replace(letter, payload=b"", headers=headers)
    headers = _plain_headers(letter)
    bare = _bare(letter, headers)
    return None if bare == letter else bare
