"""Dead-letter topics: where a bus keeps dead letters, as which message, and their names."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote, unquote

import msgspec

from ._envelope import Envelope
from ._topics import RESERVED

__all__ = [
    "dead_letter_filter",
    "dead_letter_name",
    "dead_letter_topic",
    "named_topic",
    "parked",
    "removal",
]

_LONGEST_ID = 256
_NOTHING = b"(empty)"


def dead_letter_topic(application: str, identifier: str) -> str:
    """Return the topic of the dead letter with this id; any id makes one level of a valid topic."""
    level = quote(identifier, safe="", errors="replace")[:_LONGEST_ID]
    return f"{RESERVED}/dead-letter/{application}/{level}"


def dead_letter_filter(application: str) -> str:
    """Return the filter for all dead letters of an application."""
    return f"{RESERVED}/dead-letter/{application}/#"


def dead_letter_name(application: str, topic: str) -> str:
    """Return what users call the dead letter at a topic: its id, if this package has stored it.

    Anybody may have published there, so whatever else is there has a name as well, in ASCII.
    """
    rest = topic.removeprefix(f"{RESERVED}/dead-letter/{application}/")
    return quote(rest, safe="", errors="backslashreplace")


def named_topic(application: str, name: str) -> str:
    """Return the topic of the dead letter with this name."""
    return f"{RESERVED}/dead-letter/{application}/{unquote(name)}"


def removal(letter: Envelope) -> Envelope:
    """Return what takes a stored dead letter back: nothing, retained in its place."""
    return Envelope(topic=letter.topic, retain=True)


def parked(application: str, envelope: Envelope, new_id: Callable[[], str]) -> Envelope:
    """Return the dead letter as a retained message that never expires and requests no reply.

    A retained message without payload would clear the topic instead of being kept, so an empty
    payload is replaced, and the header ``spa_dead_size`` says 0.
    """
    identifier = envelope.id or new_id()
    headers = envelope.headers
    if not envelope.payload:
        headers = {"spa_dead_size": "0", **headers}
    return msgspec.structs.replace(
        envelope,
        topic=dead_letter_topic(application, identifier),
        payload=envelope.payload or _NOTHING,
        id=identifier,
        headers=headers,
        response_topic=None,
        correlation=None,
        expiry=None,
        qos=1,
        retain=True,
    )
