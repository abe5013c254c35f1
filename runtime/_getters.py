"""Where the arguments of a call come from, and how one of them is fetched."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from ._message import Message

__all__ = [
    "PAYLOAD",
    "Getter",
    "Scope",
    "capture_getter",
    "decoded_message",
    "raw_message",
    "resource_getter",
]


class Scope(Protocol):
    """Where the arguments of one call come from.

    Only what the handler asks for is looked up, so an implementation may make things on demand.
    """

    @property
    def payload(self) -> Any:
        """The payload, decoded with the injection's ``payload_decoder``."""

    @property
    def socket(self) -> Any: ...

    @property
    def context(self) -> Any: ...

    @property
    def state(self) -> Any: ...

    @property
    def message_builder(self) -> Any: ...

    @property
    def resources(self) -> Mapping[str, object]: ...

    @property
    def captures(self) -> Mapping[str, str]: ...

    def message(self) -> Message[Any]:
        """The message, its payload decoded with the injection's ``payload_decoder``."""


Getter = Callable[[Scope], Any]
"""Gives one argument."""

PAYLOAD: Getter = operator.attrgetter("payload")
"""Fetches the payload."""


def decoded_message(scope: Scope) -> Message[Any]:
    """The message as the scope gives it."""
    return scope.message()


def raw_message(scope: Scope) -> Message[bytes]:
    """The message with its payload undecoded, beside a decoded payload in another parameter."""
    message = scope.message()
    return msgspec.structs.replace(message, payload=message.raw)


def resource_getter(name: str) -> Getter:
    """Fetches a resource."""
    return lambda scope: scope.resources[name]


def capture_getter(name: str, convert: Callable[[str], Any] | None, default: Any) -> Getter:
    """Fetches a capture, converted; ``default`` where the topic does not have it."""

    def get(scope: Scope) -> Any:
        text = scope.captures.get(name)
        if text is None:
            return default
        return text if convert is None else convert(text)

    return get
