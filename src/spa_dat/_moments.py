"""Moments: points in time as users write them down."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["YEAR_1970", "ZONE_MISSING", "milliseconds", "parse_moment", "seconds_back"]

YEAR_1970 = datetime(1970, 1, 1, tzinfo=UTC)
"""The oldest moment that a record can have."""
ZONE_MISSING = "a time needs its zone: end it with 'Z' for UTC, or with '+01:00' or the like"
_LONGEST = 40
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_BACK = re.compile(r"([0-9]{1,9})([smhd])")
_MILLISECOND = timedelta(milliseconds=1)


def parse_moment(text: str) -> datetime:
    """Return the time that a text means: ISO 8601 with ``T``, as in ``2026-11-27T09:00:00Z``.

    Raises:
        ValueError, OverflowError: it means none.
    """
    if len(text) > _LONGEST or "T" not in text:
        raise ValueError(text)
    return datetime.fromisoformat(text)


def seconds_back(text: str) -> int | None:
    """Return the seconds that ``90s``, ``30m``, ``1h``, ``7d`` or the like means, else None."""
    back = _BACK.fullmatch(text)
    return None if back is None else int(back[1]) * _SECONDS[back[2]]


def milliseconds(moment: datetime) -> int:
    """Return a moment in milliseconds since 1970 (UTC).

    It is rounded up: what is a millisecond older is before it.
    """
    return -((YEAR_1970 - moment) // _MILLISECOND)
