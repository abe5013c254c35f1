"""Parts of the topic as handler arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import ConfigurationError, DecodeError
from ._type_readers import type_name, type_readers

__all__ = ["capture_converter"]

_LONGEST_QUOTED = 100


def capture_converter(name: str, annotation: Any) -> Callable[[str], Any] | None:
    """What turns the text of a capture into the annotated type; None when a str is asked for.

    It raises DecodeError when the text does not fit.

    Raises:
        ConfigurationError: a part of a topic can not become that type.
    """
    if annotation in (str, Any, object):
        return None
    try:
        if not _is_written_as_text(msgspec.inspect.type_info(annotation)):
            raise TypeError("it is not written as one word")
        _, convert = type_readers(annotation)
    except Exception as error:
        raise ConfigurationError(
            f"capture {name!r} can not be a {type_name(annotation)}: {error}; use str, int, float,"
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


def _is_written_as_text(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.UnionType):
        return all(_is_written_as_text(part) for part in info.types)
    return isinstance(info, _WORDS)
