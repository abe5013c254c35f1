"""Payload types of pydantic, which is imported only when such a type is used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from ..._texts import summary

if TYPE_CHECKING:
    import pydantic

__all__ = ["is_pydantic", "json_reader", "mentions_pydantic", "to_builtins", "validate_builtins"]


def is_pydantic(kind: object) -> bool:
    """Return whether a type is a pydantic model or a pydantic dataclass."""
    return isinstance(kind, type) and "__pydantic_validator__" in kind.__dict__


def mentions_pydantic(annotation: Any) -> bool:
    """Return whether a pydantic type is part of the annotation, as in ``list[Model] | None``."""
    return any(is_pydantic(part) for part in _parts(annotation))


def to_builtins(value: Any) -> Any:
    """Return a pydantic object as built-in types for JSON; nan and infinities are left in.

    Raises:
        TypeError: it is not a pydantic object.
    """
    serialiser = getattr(type(value), "__pydantic_serializer__", None)
    if serialiser is None:
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    return serialiser.to_python(value, mode="json", by_alias=True)


def json_reader(annotation: Any) -> Callable[[bytes], Any]:
    """Return a function that decodes a JSON document to the annotated type.

    Nothing is coerced, as everywhere, unless a model in it sets ``strict`` in its configuration:
    then the models decide. The function raises ValueError, which says what is wrong and where,
    without the offending values.
    """
    import pydantic

    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
    strict = None if any(_states_strictness(part) for part in _parts(annotation)) else True

    def read(document: bytes) -> Any:
        # pydantic accepts NaN, and turns numbers out of range into infinity; neither is JSON.
        msgspec.json.decode(document)
        try:
            return adapter.validate_json(document, strict=strict)
        except pydantic.ValidationError as error:
            problem = summary(error) or _first_problem(error)
        raise ValueError(problem)

    return read


def _first_problem(error: pydantic.ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in first["loc"])
    return f"{first['msg']} - at `${place}`"


def validate_builtins(kind: type, value: Any) -> Any:
    """Return a pydantic object from its built-in types; raises as `json_reader` does."""
    # In strict mode pydantic reads dates, enums and the like from JSON, not from Python strings.
    return _cached_reader(kind)(msgspec.json.encode(value))


@functools.lru_cache(maxsize=256)
def _cached_reader(kind: type) -> Callable[[bytes], Any]:
    return json_reader(kind)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _states_strictness(kind: Any) -> bool:
    config = getattr(kind, "model_config", None) or getattr(kind, "__pydantic_config__", None)
    return is_pydantic(kind) and "strict" in (config or {})
