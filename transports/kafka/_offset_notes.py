"""Offset notes: what is committed with an offset as its metadata, to be read at the next start."""

from __future__ import annotations

import re

__all__ = ["is_of_deleted_topic", "is_ours", "offset_note", "rewound_to"]

_TOPIC_ID, _REWOUND_TO = "topic-id=", "rewound-to="
_NOTE = re.compile(rf"{_TOPIC_ID}(?P<id>\S*)")
_REWOUND = re.compile(rf"(?:^| ){_REWOUND_TO}(?P<at>[0-9]{{1,16}})(?: |$)")


def offset_note(topic_id: str | None, rewound_to: int | None = None) -> str:
    """Return the metadata to commit with an offset.

    Args:
        topic_id: identifies the topic of the offset; None or empty if it is not known.
        rewound_to: the last time to which the partition was rewound, in milliseconds since 1970
            (UTC); None if it never was.
    """
    parts = [f"{_TOPIC_ID}{topic_id}"] if topic_id else []
    if rewound_to is not None:
        parts.append(f"{_REWOUND_TO}{rewound_to}")
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
