"""What the content type of a message says about its payload."""

from __future__ import annotations

import enum
import functools

__all__ = ["BINARY", "JSON", "TEXT", "PayloadFormat", "format_of"]

BINARY = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class PayloadFormat(enum.Enum):
    """The formats that payloads are told apart by."""

    UNSTATED = "no content type"
    JSON = "JSON"
    TEXT = "text"
    BINARY = "binary"
    OTHER = "something else"


@functools.lru_cache(maxsize=256)
def format_of(content_type: str | None) -> PayloadFormat:
    """The format that a content type stands for; its parameters and its case do not matter."""
    essence = "" if content_type is None else content_type.partition(";")[0].strip().lower()
    if not essence:
        return PayloadFormat.UNSTATED
    if essence in (JSON, "text/json") or essence.endswith("+json"):
        return PayloadFormat.JSON
    if essence.startswith("text/"):
        return PayloadFormat.TEXT
    return PayloadFormat.BINARY if essence == BINARY else PayloadFormat.OTHER
