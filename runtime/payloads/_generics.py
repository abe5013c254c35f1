"""Type variables of generic classes, and what they stand for."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

__all__ = ["arguments_in", "substituted", "type_variable_in"]


def arguments_in(cls: type, name: str) -> Mapping[Any, Any]:
    """Return what type variables stand for in an attribute of a class, as seen from the class.

    In ``class Boiler(Base[Reading])`` the ``T`` of ``class Base(Actor, Generic[T])`` is a
    ``Reading``. Variables that no class determines are left out.
    """
    for owner in cls.__mro__:
        if name in vars(owner):
            return _arguments(cls, owner, {}) or {}
    return {}


def _arguments(cls: type, owner: type, known: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    if cls is owner:
        return known
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, owner):
            given = tuple(substituted(part, known) for part in get_args(base))
            parameters = getattr(origin, "__parameters__", ())
            found = _arguments(origin, owner, dict(zip(parameters, given, strict=False)))
            if found is not None:
                return found
    return None


def substituted(annotation: Any, arguments: Mapping[Any, Any]) -> Any:
    """Return an annotation with its type variables replaced, as far as they are known."""
    if isinstance(annotation, TypeVar):
        return arguments.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation
    if not any(parameter in arguments for parameter in parameters):
        return annotation
    return annotation[tuple(arguments.get(parameter, parameter) for parameter in parameters)]


def type_variable_in(annotation: Any) -> TypeVar | None:
    """Return the first type variable left in an annotation; None if there is none."""
    if isinstance(annotation, TypeVar):
        return annotation
    for part in get_args(annotation):
        for one in part if isinstance(part, list) else (part,):
            found = type_variable_in(one)
            if found is not None:
                return found
    return None
