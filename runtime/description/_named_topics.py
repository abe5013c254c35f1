"""Which `Topic` objects the code of an actor names: what it sends cannot be seen otherwise."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from ...actors import Actor
from ..messaging._typed_topic import Topic
from ..registration._specs import Spec

__all__ = ["named_topics", "names_in"]


def named_topics(spec: Spec[Any]) -> list[Topic[Any, Any]]:
    """Return the topics that an actor's code names besides its own filters, each once."""
    own = {filter_.text for filter_ in spec.filters}
    found = dict.fromkeys(topic for topic in _topics_in(spec.source) if str(topic) not in own)
    return sorted(found, key=lambda topic: (str(topic), repr(topic)))


def names_in(source: Any) -> frozenset[str]:
    """Return the names of attributes and globals in the code of a function or of a class."""
    return frozenset(
        name for code in _code_of(source) for part in _parts(code) for name in part.co_names
    )


def _functions_of(source: Any) -> Iterator[Any]:
    if isinstance(source, type):
        for one in source.__mro__:
            if issubclass(one, Actor) and one is not Actor:
                yield from (getattr(value, "__func__", value) for value in vars(one).values())
    else:
        yield source


def _bare(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function) if callable(function) else None


def _code_of(source: Any) -> Iterator[types.CodeType]:
    for function in _functions_of(source):
        code = getattr(_bare(function), "__code__", None)
        if isinstance(code, types.CodeType):
            yield code


def _topics_in(source: Any) -> Iterator[Topic[Any, Any]]:
    for function in _functions_of(source):
        yield from _topics_in_function(_bare(function))


def _topics_in_function(function: Any) -> Iterator[Topic[Any, Any]]:
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType):
        return
    names = [*dict.fromkeys(name for part in _parts(code) for name in part.co_names)]
    values = [function.__globals__.get(name) for name in names]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:
            continue  # it has no value yet
    for value in values:
        if isinstance(value, Topic):
            yield value
        elif isinstance(value, types.ModuleType | type):
            # As in topics.readings
            members = vars(value)
            found = (members[name] for name in names if name in members)
            yield from (member for member in found if isinstance(member, Topic))


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of a function and of those inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _parts(constant)
