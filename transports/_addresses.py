"""Where the runtime's own messages go."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import msgspec

from ._envelope import REPLY_HEADER, Envelope
from ._topics import RESERVED, is_reserved

__all__ = ["dead_letter_topic", "is_foreign_reply", "parked", "reply_prefix"]

_LONGEST_ID = 256
_NOTHING = b"(empty)"


def reply_prefix(application: str, token: str) -> str:
    """What the reply addresses of one bus start with; the correlation follows."""
    return f"{RESERVED}/reply/{application}/{token}/"


def is_foreign_reply(envelope: Envelope) -> bool:
    """Whether it is a reply to a topic that whoever asks has made up."""
    return REPLY_HEADER in envelope.headers and not is_reserved(envelope.topic)


def dead_letter_topic(application: str, identifier: str) -> str:
    """Where the dead letter of this id is stored; any id makes one level of a valid topic."""
    level = quote(identifier, safe="", errors="replace")[:_LONGEST_ID]
    return f"{RESERVED}/dead-letter/{application}/{level}"


def parked(application: str, envelope: Envelope, new_id: Callable[[], str]) -> Envelope:
    """The dead letter as a retained message that never expires and asks for no reply.

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
