"""Finding the part of a value that has no place in JSON, for the error that names it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ._pydantic import is_pydantic, to_builtins

__all__ = ["find_unencodable"]

_DEEPEST = 100


def find_unencodable(value: Any, path: str = "$", depth: int = 0) -> tuple[str, str] | None:
    """Path and description of the first part that JSON can not carry; None when there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return path, f"the float {value}, which JSON does not have"
    if depth == _DEEPEST:
        return path, f"a value nested deeper than {_DEEPEST} levels, or one that contains itself"
    parts = _parts(value, path)
    if parts is None:
        return _leaf(value, path)
    for part_path, part in parts:
        found = find_unencodable(part, part_path, depth + 1)
        if found is not None:
            return found
    return None


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return _entries(value, path)
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"{path}[{index}]", part) for index, part in enumerate(value))
    if is_pydantic(type(value)):
        try:
            return iter([(path, to_builtins(value))])
        except ValueError:
            return None
    names: tuple[str, ...] | None = None
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
    if names is None:
        return None
    return ((f"{path}.{name}", getattr(value, name)) for name in names if hasattr(value, name))


def _entries(value: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        yield f"{path}.keys()", key
        yield (f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r:.40}]"), part


def _leaf(value: Any, path: str) -> tuple[str, str] | None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return path, "a str with a lone surrogate, which UTF-8 does not have"
    except Exception:  # noqa: BLE001  (whatever the encoder makes of it, it can not be encoded)
        if inspect.iscoroutine(value):
            return path, f"a coroutine ({value.__qualname__}): an `await` is missing"
        kind = type(value)
        return path, f"a value of type {kind.__module__}.{kind.__qualname__}"
    return None
