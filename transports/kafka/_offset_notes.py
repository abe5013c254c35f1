"""Offset notes: what is committed with an offset as its metadata, to be read at the next start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "MOST_CLAIMS",
    "Claim",
    "claims_of",
    "is_of_deleted_topic",
    "is_ours",
    "offset_note",
    "rewound_to",
]

MOST_CLAIMS = 3
"""How many claims are noted with an offset."""

_TOPIC_ID, _REWOUND_TO = "topic-id=", "rewound-to="
_NOTE = re.compile(rf"{_TOPIC_ID}(?P<id>\S*)")
_CLAIMS = re.compile(r"(?:^| )epochs=(?P<all>[0-9]{1,10}:[0-9]{1,19}(?:,[0-9]{1,10}:[0-9]{1,19})*)")
_LARGEST_EPOCH = 2**31 - 1
_REWOUND = re.compile(rf"(?:^| ){_REWOUND_TO}(?P<at>[0-9]{{1,16}})(?: |$)")


class Claim(NamedTuple):
    """What was read of the records of one leader.

    Attributes:
        epoch: the epoch of the leader.
        upto: the offset before which its records, and those of earlier ones, were read.
    """

    epoch: int
    upto: int


def offset_note(
    topic_id: str | None, rewound_to: int | None = None, claims: Sequence[Claim] = ()
) -> str:
    """Return the metadata to commit with an offset.

    Args:
        topic_id: identifies the topic of the offset; None or empty if it is not known.
        rewound_to: the last time to which the partition was rewound, in milliseconds since 1970
            (UTC); None if it never was.
        claims: what was read, to find out later whether the topic has lost its end.
    """
    parts = [f"{_TOPIC_ID}{topic_id}"] if topic_id else []
    if rewound_to is not None:
        parts.append(f"{_REWOUND_TO}{rewound_to}")
    if claims and topic_id:
        parts.append("epochs=" + ",".join(f"{claim.epoch}:{claim.upto}" for claim in claims))
    return " ".join(parts)


def is_ours(note: str) -> bool:
    """Return whether this package has committed the offset, and not a tool or another program."""
    return note.startswith((_TOPIC_ID, _REWOUND_TO))


def is_of_deleted_topic(note: str, topic_id: str) -> bool:
    """Return whether an offset was committed for a deleted topic of this name."""
    match = _NOTE.match(note)
    return match is not None and match["id"] != topic_id


def rewound_to(note: str) -> int | None:
    """Return the last time to which the partition was rewound; None if it never was."""
    match = _REWOUND.search(note)
    return None if match is None else int(match["at"])


def claims_of(note: str) -> list[Claim]:
    """Return what was noted to have been read."""
    match = _CLAIMS.search(note)
    if match is None:
        return []
    pairs = (pair.split(":") for pair in match["all"].split(",")[-MOST_CLAIMS:])
    return [Claim(int(epoch), int(upto)) for epoch, upto in pairs if int(epoch) <= _LARGEST_EPOCH]
