"""Dead letters, as tests see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..transports import Envelope

__all__ = ["DeadLetter"]

_OURS = "spa_dead_"
_ORIGINAL = "spa_dead_original"


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up and stored.

    Attributes:
        topic: the topic of the message.
        payload: the bytes of the message.
        actor: the ``application/instance/actor`` that could not handle it.
        attempts: how often its handler was called.
        error: the name of the class of the last error.
        text: the text of that error.
        headers: the headers of the message.
        message_id: the id of the message; None if it had none.
        size: the size in bytes of a payload that is missing because it was too large to be received
            or stored; None if it is there.
    """

    topic: str
    payload: bytes
    actor: str
    attempts: int
    error: str
    text: str
    headers: Mapping[str, str]
    message_id: str | None
    size: int | None = None

    @classmethod
    def of(cls, letter: Envelope) -> DeadLetter:
        """Return the dead letter that is stored on a bus in an envelope."""
        notes = letter.headers
        size = notes.get("spa_dead_size")
        sent = {name: text for name, text in notes.items() if not name.startswith(_OURS)}
        topic = notes["spa_dead_topic"]
        if _ORIGINAL in notes:
            original = json.loads(notes[_ORIGINAL])
            sent, topic = original["headers"], original["topic"]
        return cls(
            topic=topic,
            payload=b"" if size is not None else letter.payload,
            actor=notes["spa_dead_actor"],
            attempts=int(notes["spa_dead_attempts"]),
            error=notes["spa_dead_error"],
            text=notes["spa_dead_text"],
            headers=sent,
            message_id=notes.get("spa_dead_id"),
            size=int(size) if size and size != "0" else None,
        )
