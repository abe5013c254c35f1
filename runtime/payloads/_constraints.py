"""Constraints in annotations that msgspec does not know: annotated_types' and pydantic's."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NewType, get_args, get_origin

import msgspec

from ._pydantic import is_pydantic

__all__ = ["foreign_constraint", "has_own_constraints", "is_foreign_default"]

_LIBRARIES = ("annotated_types", "pydantic")
_HARMLESS = ("DocInfo",)


def is_foreign(value: object) -> bool:
    """Return whether a value is a constraint, or anything else, that only pydantic acts upon."""
    kind = type(value)
    if kind.__name__ in _HARMLESS:
        return False
    return any(base.__module__.partition(".")[0] in _LIBRARIES for base in kind.__mro__)


def is_foreign_default(value: object) -> bool:
    """Return whether a value is a ``pydantic.Field(...)`` where a default should be."""
    return type(value).__name__ == "FieldInfo" and is_foreign(value)


def foreign_constraint(annotation: Any) -> str | None:
    """Return the first foreign constraint in an annotation, or in a class in it, as text."""
    return next((text for value, text in _metadata(annotation, "", []) if is_foreign(value)), None)


def has_own_constraints(annotation: Any) -> bool:
    """Return whether an annotation contains a `msgspec.Meta`, which pydantic does not know."""
    return any(isinstance(value, msgspec.Meta) for value, _ in _metadata(annotation, "", []))


def _metadata(annotation: Any, where: str, seen: list[Any]) -> Iterator[tuple[Any, str]]:
    if get_origin(annotation) is Annotated:
        for value in annotation.__metadata__:
            yield value, f"{where}{value!r}"
    if isinstance(annotation, NewType):
        yield from _metadata(annotation.__supertype__, where, seen)
    elif hasattr(annotation, "__value__"):
        yield from _metadata(annotation.__value__, where, seen)
    for part in get_args(annotation):
        yield from _metadata(part, where, seen)
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and not is_pydantic(kind) and kind not in seen:
        seen.append(kind)
        for name, part, default in _fields(kind):
            place = f"{kind.__name__}.{name}: "
            yield default, f"{place}{default!r}"
            yield from _metadata(part, place, seen)


def _fields(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotation and default of each field of a class that payloads are decoded to."""
    known = (
        dataclasses.is_dataclass(kind)
        or issubclass(kind, msgspec.Struct)
        # typing.is_typeddict() does not recognise those of typing_extensions.
        or hasattr(kind, "__total__")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )
    if not known:
        return
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001  (decoding to the type will say what is wrong with it)
        return
    for name, annotation in hints.items():
        default = _default(kind, name)
        yield name, annotation, default if is_foreign_default(default) else None


def _default(kind: type, name: str) -> Any:
    if issubclass(kind, msgspec.Struct):
        by_name = dict(
            zip(kind.__struct_fields__[::-1], kind.__struct_defaults__[::-1], strict=False)
        )
        return by_name.get(name)
    return vars(kind).get(name)
