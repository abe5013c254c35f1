"""Names that do not exist, such as keywords that a call does not take: which one may be meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["keywords_of", "nearest_or_all", "suggests_keywords", "unexpected_keyword"]

C = TypeVar("C")


def unexpected_keyword(call: str, name: str, known: Iterable[str]) -> str:
    """Return what is wrong with a keyword that a call does not take, as Python says it, and more.

    Args:
        call: the name of the function.
        name: the keyword.
        known: those that it takes.
    """
    hint = nearest_or_all(name, known)
    return f"{call}() got an unexpected keyword argument {name!r}; {hint}"


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Return which name may be meant by one that does not exist, or else which ones there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"


def keywords_of(call: Callable[..., object]) -> list[str]:
    """Return the names of the parameters that a call can be given by name."""
    return [
        one.name
        for one in inspect.signature(call).parameters.values()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]


def suggests_keywords(cls: type[C]) -> type[C]:
    """Have the TypeErrors over arguments that a dataclass does not take say what it takes."""
    initialise: Callable[..., None] = cls.__init__
    parameters = list(inspect.signature(initialise).parameters.values())[1:]
    known = frozenset(one.name for one in parameters)
    first = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **given: Any) -> None:  # noqa: N807
        if not given.keys() <= known:
            wrong = min(given.keys() - known)
            raise TypeError(unexpected_keyword(cls.__name__, wrong, known))
        if len(args) > len(first):
            raise TypeError(
                f"{cls.__name__}() takes by position {', '.join(first) or 'nothing'}, and not"
                f" {len(args)} values: options are given by name"
            )
        initialise(self, *args, **given)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls
