"""Dead letters as tests look at them."""

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
        topic: of the message.
        payload: its bytes.
        actor: ``application/instance/actor`` that could not handle it.
        attempts: how often its handler was called.
        error: name of the class of what was raised last.
        text: what it said.
        headers: of the message.
        message_id: of the message; None when it had none.
        size: bytes of a payload that was too large to be taken or stored, and is not there; None
            when it is.
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
        """The dead letter in an envelope, as it is stored on a bus."""
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
