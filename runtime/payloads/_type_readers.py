"""Annotated types: the codec that they name, and what reads JSON documents and texts as them."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Annotated, Any, NewType, Union, get_args, get_origin

import msgspec

from ...errors import ConfigurationError
from ..options._custom_codecs import Codec, check_codec
from ._constraints import foreign_constraint, has_own_constraints
from ._hash_collisions import (
    guarded,
    guarded_by_size,
    may_collide,
    may_collide_in_binary,
)
from ._pydantic import is_pydantic, json_reader, mentions_pydantic, validate_builtins

__all__ = [
    "bare_type",
    "check_codec_inside",
    "codec_in",
    "constrained_reader",
    "is_read_by_pydantic",
    "is_union",
    "messagepack_reader",
    "type_name",
    "type_readers",
]

_SWITCHES = {"on": True, "off": False}


def type_name(annotation: Any) -> str:
    """Return an annotation as errors show it."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        text = annotation.__qualname__.rpartition("<locals>.")[2]
    else:
        text = str(annotation).replace("typing.", "")
    return text if len(text) <= 100 else text[:97] + "..."


def is_union(annotation: Any) -> bool:
    """Return whether an annotation is ``A | B``, in either spelling."""
    return get_origin(annotation) in (Union, types.UnionType)


def bare_type(annotation: Any) -> tuple[Any, bool]:
    """Return an annotation without None, Annotated, NewType and aliases, and if it allows None."""
    optional = False
    while True:
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        elif is_union(annotation) and type(None) in get_args(annotation):
            optional = True
            rest = tuple(part for part in get_args(annotation) if part is not type(None))
            annotation = Union[rest]  # noqa: UP007  (built from a tuple)
        elif annotation is None:
            return type(None), True
        else:
            return annotation, optional or annotation is type(None)


def codec_in(annotation: Any) -> Codec | None:
    """Return the codec that an annotation names; None if it names none.

    Raises:
        ConfigurationError: it names a class, or a codec without content type.
    """
    while True:
        if get_origin(annotation) is Annotated:
            for value in annotation.__metadata__:
                if isinstance(value, type) and issubclass(value, Codec):
                    check_codec("Annotated[...]", value)
                elif isinstance(value, Codec):
                    check_codec("Annotated[...]", value)
                    return value
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        elif is_union(annotation):
            rest = [part for part in get_args(annotation) if part is not type(None)]
            if len(rest) != 1:
                return None
            annotation = rest[0]
        else:
            return None


def check_codec_inside(annotation: Any) -> None:
    """Raise ConfigurationError if a part of a type that names no codec does: nothing would use it.

    Args:
        annotation: a type for which `codec_in` returns None.
    """
    for part in get_args(annotation):
        codec = codec_in(part)
        if codec is not None:
            raise ConfigurationError(
                f"{type_name(annotation)}: {type(codec).__name__} is named for a part of the"
                " payload, and a codec decodes all of it: name it for the whole, as in"
                " Annotated[list[Order], codec]"
            )
        check_codec_inside(part)


def type_readers(annotation: Any) -> tuple[Callable[[bytes], Any], Callable[[str], Any]]:
    """Return functions that decode a JSON document and a text to the type.

    JSON is not coerced. A text has no types, so it is parsed: numbers; ``true``, ``1``, ``on``
    and their opposites for bool; ``null``; and the written forms of enums, literals, UUIDs and
    dates. Surrounding whitespace is ignored in these. Both functions may raise anything.

    Raises:
        Exception: of any kind, with a text that says why the type is not supported.
    """
    bare = bare_type(annotation)[0]
    if foreign_constraint(annotation) is not None:
        read = guarded(constrained_reader(annotation))
        return read, functools.partial(_parse, _constrained_converter(annotation, read), bare)
    if mentions_pydantic(annotation) or not _is_served(msgspec.inspect.type_info(annotation), []):
        read = guarded(json_reader(annotation))
        return read, lambda text: _parse(lambda part: read(msgspec.json.encode(part)), bare, text)
    convert = functools.partial(
        msgspec.convert, type=annotation, strict=False, dec_hook=_from_builtins
    )
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(
        annotation, dec_hook=_from_builtins
    ).decode
    if may_collide(msgspec.inspect.type_info(annotation)):
        decode = guarded(decode)
    return decode, functools.partial(_parse, convert, bare)


def is_read_by_pydantic(annotation: Any) -> bool:
    """Return whether only pydantic can check values of the type; msgspec reads all others.

    Raises:
        Exception: of any kind, if nothing can.
    """
    return (
        foreign_constraint(annotation) is not None
        or mentions_pydantic(annotation)
        or not _is_served(msgspec.inspect.type_info(annotation), [])
    )


def messagepack_reader(annotation: Any) -> Callable[[bytes], Any]:
    """Return a function that decodes MessagePack to the type; it may raise anything.

    Args:
        annotation: a type that `type_readers` supports.
    """
    if is_read_by_pydantic(annotation):
        # It reads JSON.
        read_json = type_readers(annotation)[0]

        def read(document: bytes) -> Any:
            return read_json(msgspec.json.encode(msgspec.msgpack.decode(document)))

        return guarded_by_size(read)
    decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(
        annotation, dec_hook=_from_builtins
    ).decode
    if may_collide_in_binary(msgspec.inspect.type_info(annotation)):
        return guarded_by_size(decode)
    return decode


def constrained_reader(annotation: Any) -> Callable[[bytes], Any]:
    """Return what `json_reader` does, for a type with constraints that only pydantic can check.

    Raises:
        TypeError: pydantic cannot check them.
    """
    constraint = foreign_constraint(annotation)
    instead = "write the constraint with msgspec.Meta, as in Annotated[int, msgspec.Meta(gt=0)]"
    if has_own_constraints(annotation):
        raise TypeError(
            f"{constraint} is checked by pydantic, which does not know the msgspec.Meta next to"
            f" it; {instead}"
        )
    try:
        return json_reader(annotation)
    except ImportError as error:
        raise TypeError(
            f"{constraint} needs pydantic, which is not installed; {instead}"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise TypeError(f"pydantic cannot check {constraint}: {reason}; {instead}") from error


def _constrained_converter(annotation: Any, read: Callable[[bytes], Any]) -> Callable[[str], Any]:
    try:
        parses = _is_served(msgspec.inspect.type_info(annotation), [])
    except Exception:  # noqa: BLE001  (what only pydantic knows is read as a JSON string)
        parses = False

    def convert(text: str) -> Any:
        value: Any = text
        if parses:
            value = msgspec.convert(text, annotation, strict=False, dec_hook=_from_builtins)
        return read(msgspec.json.encode(value))

    return convert


def _parse(convert: Callable[[str], Any], bare: Any, text: str) -> Any:
    try:
        value = convert(text)
    except ValueError:
        stripped = text.strip()
        if bare is bool and stripped.lower() in _SWITCHES:
            return _SWITCHES[stripped.lower()]
        if stripped == text:
            raise
        value = convert(stripped)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("nan and the infinities are not accepted as numbers")
    return value


def _from_builtins(kind: type, value: Any) -> Any:
    return value if kind is object else validate_builtins(kind, value)


def _is_served(info: msgspec.inspect.Type, seen: list[int]) -> bool:
    """Return whether msgspec can decode all of the type, with the help of `_from_builtins`."""
    if id(info) in seen:
        return True
    seen.append(id(info))
    if isinstance(info, msgspec.inspect.CustomType) and info.cls is not object:
        if not is_pydantic(info.cls):
            raise TypeError(f"{type_name(info.cls)} is not a type that JSON can be read as")
        return True
    # msgspec would fill a pydantic dataclass without running its validators.
    served = not is_pydantic(getattr(info, "cls", None))
    for name in info.__struct_fields__:
        value = getattr(info, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, msgspec.inspect.Field):
                part = part.type
            if isinstance(part, msgspec.inspect.Type) and not _is_served(part, seen):
                served = False
    return served
