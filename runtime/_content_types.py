"""What the content type of a message says about its payload."""

from __future__ import annotations

import enum
import functools

__all__ = ["BINARY", "JSON", "TEXT", "PayloadFormat", "format_of"]

BINARY = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

# Longer ones, which strangers may invent without end, would fill the memory.
_LONGEST_REMEMBERED = 256


class PayloadFormat(enum.Enum):
    """The formats that payloads are told apart by."""

    UNSTATED = "no content type"
    JSON = "JSON"
    TEXT = "text"
    BINARY = "binary"
    OTHER = "something else"


def format_of(content_type: str | None) -> PayloadFormat:
    """The format that a content type stands for; its parameters and its case do not matter."""
    if content_type is not None and len(content_type) > _LONGEST_REMEMBERED:
        return _read(content_type)
    return _remembered(content_type)


def _read(content_type: str | None) -> PayloadFormat:
    essence = "" if content_type is None else content_type.partition(";")[0].strip().lower()
    if not essence:
        return PayloadFormat.UNSTATED
    if essence in (JSON, "text/json") or essence.endswith("+json"):
        return PayloadFormat.JSON
    if essence.startswith("text/"):
        return PayloadFormat.TEXT
    return PayloadFormat.BINARY if essence == BINARY else PayloadFormat.OTHER


_remembered = functools.lru_cache(maxsize=256)(_read)
