"""What a message that users send may look like."""

from __future__ import annotations

from collections.abc import Mapping

from .._texts import quoted
from ..errors import ConfigurationError
from ..transports import check_topic
from ._message import OutgoingMessage
from ._specs import is_number

__all__ = ["check_message", "check_response_topic"]

_LONGEST_EXPIRY = 2**32
_WIRE_NAMES = frozenset({"id", "source", "type", "time", "specversion", "key"})


def check_response_topic(address: str) -> None:
    """Raise ConfigurationError when no reply can go there."""
    try:
        check_topic(address)
    except ConfigurationError as error:
        raise ConfigurationError(f"response_topic: {error}") from None


def check_message(message: OutgoingMessage, headers: Mapping[str, str]) -> None:
    """Raise ConfigurationError when an option or a header of a message cannot be sent."""
    if message.qos not in (None, 0, 1):
        raise ConfigurationError(f"qos={message.qos!r}: give 0 (at most once) or 1 (at least once)")
    if not isinstance(message.retain, bool):
        raise ConfigurationError(f"retain={message.retain!r}: give True or False")
    if message.expiry is not None and not (
        is_number(message.expiry) and 0 < message.expiry < _LONGEST_EXPIRY
    ):
        raise ConfigurationError(
            f"expiry={message.expiry!r}: give seconds, more than 0 and less than {_LONGEST_EXPIRY}"
        )
    for option, text in (
        ("key", message.key),
        ("content_type", message.content_type),
        ("response_topic", message.response_topic),
    ):
        if text is not None and not isinstance(text, str):
            raise ConfigurationError(f"{option}={quoted(text)}: give a str or None")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(
                f"header {quoted(name)}: {quoted(value)}: names and values must be str"
            )
        if name.startswith("spa_") or name in _WIRE_NAMES:
            raise ConfigurationError(f"header {name!r} belongs to the runtime; choose another name")
