"""The arguments of a call: where they come from, and how each is fetched."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, get_args, get_origin

import msgspec

from ...errors import ConfigurationError, DecodeError
from ...transports import Envelope
from ..messaging._message import Message
from ..payloads._type_readers import bare_type, type_name, type_readers
from ._signatures import MISSING

__all__ = [
    "PARTS",
    "PAYLOAD",
    "Getter",
    "MessagePart",
    "Scope",
    "capture_converter",
    "capture_getter",
    "decoded_message",
    "raw_message",
    "resource_getter",
]

_ANYTHING = (MISSING, Any, object)
_LONGEST_QUOTED = 100
_WORDS = (
    msgspec.inspect.StrType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.BoolType,
    msgspec.inspect.NoneType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.DateType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.TimeType,
)


class Scope(Protocol):
    """Where the arguments of one call come from.

    Only what the handler asks for is looked up, so an implementation may compute things on demand.
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
        """Return the message, its payload decoded with the injection's ``payload_decoder``."""


Getter = Callable[[Scope], Any]
"""Returns one argument."""

PAYLOAD: Getter = operator.attrgetter("payload")
"""Fetches the payload."""


def decoded_message(scope: Scope) -> Message[Any]:
    """Return the message as the scope gives it."""
    return scope.message()


def raw_message(scope: Scope) -> Message[bytes]:
    """Return the message with its payload undecoded, for when another parameter has it decoded."""
    message = scope.message()
    return msgspec.structs.replace(message, payload=message.raw)


def resource_getter(name: str) -> Getter:
    """Return a function that fetches a resource."""
    return lambda scope: scope.resources[name]


def capture_getter(name: str, convert: Callable[[str], Any] | None, default: Any) -> Getter:
    """Return a function that fetches a capture, converted, or ``default`` if there is none."""

    def get(scope: Scope) -> Any:
        text = scope.captures.get(name)
        if text is None:
            return default
        return text if convert is None else convert(text)

    return get


class _MessageScope(Protocol):
    """The scope of a handler that gets messages."""

    @property
    def envelope(self) -> Envelope: ...


@dataclass(frozen=True)
class MessagePart:
    """A part of a message that a parameter can ask for by name.

    Attributes:
        read: takes it from the envelope.
        kinds: its types.
        written: how its type is written, for errors.
        always: whether every message has it.
    """

    read: Callable[[Any], Any]
    kinds: tuple[type, ...]
    written: str
    always: bool

    def takes(self, annotation: Any, *, required: bool) -> bool:
        """Return whether a parameter with this annotation can get it."""
        if annotation in _ANYTHING:
            return True
        bare, optional = bare_type(annotation)
        kind = get_origin(bare) or bare
        texts = all(argument in (str, Any) for argument in get_args(bare))
        return kind in self.kinds and texts and (optional or self.always or not required)

    def getter(self, default: Any) -> Getter:
        """Return a function that fetches it, or ``default`` if a message does not have it."""
        read = self.read

        def get(scope: Scope) -> Any:
            value = read(cast(_MessageScope, scope).envelope)
            return default if value is None else value

        return get


PARTS: Mapping[str, MessagePart] = {
    "topic": MessagePart(lambda envelope: envelope.topic, (str,), "str", True),
    "headers": MessagePart(
        lambda envelope: dict(envelope.headers), (dict, Mapping), "Mapping[str, str]", True
    ),
    "key": MessagePart(lambda envelope: envelope.key, (str,), "str | None", False),
}
"""By the name of the parameter."""


def capture_converter(name: str, annotation: Any) -> Callable[[str], Any] | None:
    """Return a function that converts the text of a capture to the annotated type; None for a str.

    The function raises DecodeError if the text does not fit.

    Raises:
        ConfigurationError: a level of a topic cannot be converted to that type.
    """
    if annotation in (str, Any, object):
        return None
    try:
        if not _is_written_as_text(msgspec.inspect.type_info(annotation)):
            raise TypeError("it is not written as one word")
        _, convert = type_readers(annotation)
    except Exception as error:
        raise ConfigurationError(
            f"capture {name!r} cannot be a {type_name(annotation)}: {error}; use str, int, float,"
            " bool, UUID, an Enum or a Literal, or rename the parameter if it is meant to be"
            " something else"
        ) from error

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            quoted = text[:_LONGEST_QUOTED]
            raise DecodeError(
                f"capture {name!r} of the topic is {quoted!r}, which is not a"
                f" {type_name(annotation)}"
            ) from error

    return converted


def _is_written_as_text(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.UnionType):
        return all(_is_written_as_text(part) for part in info.types)
    return isinstance(info, _WORDS)
