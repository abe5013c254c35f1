"""Dead letters: messages that could not be handled, with what is needed to handle them later."""

from __future__ import annotations

import hashlib
import uuid

import msgspec

from .._environment import Environment
from ..transports import Envelope

__all__ = ["abridged", "dead_letter", "describe"]

_NAMESPACE = uuid.UUID("c1a2f1f6-8f2f-5d0e-8a8e-3d5a1f6b7c11")
_LONGEST_TEXT = 1000
_OURS = "spa_dead_"


def dead_letter(
    envelope: Envelope,
    *,
    actor: str,
    attempts: int,
    error: BaseException,
    environment: Environment,
) -> Envelope:
    """The message as it is stored: original bytes and headers, and what went wrong.

    What happened stands in headers ``spa_dead_*``. Parking the same message twice gives the same
    id, if its sender gave it one or the bus has a place for it.

    Args:
        envelope: the message as it was received.
        actor: ``application/instance/actor`` that failed on it.
        attempts: how often the handler was called.
        error: what it raised last.
        environment: for time and ids.
    """
    headers = {k: v for k, v in envelope.headers.items() if not k.startswith(_OURS)}
    headers |= {
        "spa_dead_topic": envelope.topic,
        "spa_dead_actor": actor,
        "spa_dead_attempts": str(attempts),
        "spa_dead_error": type(error).__name__,
        "spa_dead_text": describe(error)[:_LONGEST_TEXT],
    }
    if envelope.tombstone:
        headers["spa_dead_tombstone"] = "1"
    digest = None
    if envelope.left_out is not None:
        digest = envelope.left_out.sha256
        headers["spa_dead_size"] = str(envelope.left_out.size)
        headers["spa_dead_sha256"] = digest
    if envelope.offset is not None:
        # Where the original still is.
        headers["spa_dead_partition"] = str(envelope.partition)
        headers["spa_dead_offset"] = str(envelope.offset)
    identity = envelope.identity
    if identity is not None:
        headers["spa_dead_id"] = identity
        # Senders that give every message the same id must not overwrite one letter with the next.
        digest = digest or hashlib.sha256(envelope.payload).hexdigest()
        name = "\0".join((identity, actor, envelope.topic, digest))
        identifier = str(uuid.uuid5(_NAMESPACE, name))
    else:
        identifier = environment.new_id()
    if envelope.source is not None:
        headers["spa_dead_source"] = envelope.source
    if envelope.response_topic is not None:
        headers["spa_dead_response_topic"] = envelope.response_topic
    return Envelope(
        topic=envelope.topic,
        payload=envelope.payload,
        content_type=envelope.content_type,
        id=identifier,
        source=actor,
        type=envelope.type,
        time=environment.now(),
        key=envelope.key,
        headers=headers,
    )


def abridged(letter: Envelope) -> Envelope | None:
    """The dead letter with less in it, for a bus that found it too large.

    First the payload goes, represented by its size and SHA-256, then what the sender attached.
    None when there is nothing left to leave out.
    """
    if letter.payload:
        headers = {
            **letter.headers,
            "spa_dead_size": str(len(letter.payload)),
            "spa_dead_sha256": hashlib.sha256(letter.payload).hexdigest(),
        }
        return msgspec.structs.replace(letter, payload=b"", headers=headers)
    ours = {name: text for name, text in letter.headers.items() if name.startswith(_OURS)}
    bare = msgspec.structs.replace(letter, headers=ours, key=None, content_type=None, type=None)
    return None if bare == letter else bare


def describe(error: BaseException) -> str:
    """The error's text, in a form that every bus can carry."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 (the user's class)
        text = f"(its text can not be had: {type(broken).__name__})"
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
