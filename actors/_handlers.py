"""`on`, which marks methods as handlers of topics; topics are opaque strings here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ConfigurationError

__all__ = ["handlers_of", "on"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__spa_dat_topics__"
_WRAPPERS = (staticmethod, classmethod)


def on(*topics: object) -> Callable[[F], F]:
    """Make a method of an `Actor` the handler of messages that match ``topics``.

    The first declared handler that matches a message gets it. Several decorators on one method add
    up, the topmost first. A method that overrides a handler remains one without being decorated
    again; if it is decorated again, it has the new topics only.

    Args:
        topics: whatever the runtime takes as topics.

    Raises:
        ConfigurationError: there is no topic, or the decorator was written without parentheses.
    """
    if not topics:
        raise ConfigurationError("@on needs at least one topic, as in @on('plant/temperature')")
    if callable(topics[0]):
        raise ConfigurationError(
            f"@on takes topics, not {topics[0]!r}; write @on('plant/temperature')"
        )

    def mark(function: F) -> F:
        earlier: tuple[object, ...] = getattr(function, _MARK, ())
        try:
            setattr(function, _MARK, (*topics, *earlier))
        except AttributeError as error:
            raise ConfigurationError(
                f"@on cannot mark {function!r}; it is for functions defined with def"
            ) from error
        return function

    return mark


def handlers_of(cls: type) -> list[tuple[tuple[Any, ...], str]]:
    """Return the handlers of a class as (topics, attribute name), in declared order.

    Handlers of base classes come first, and keep their place when overridden.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for klass in reversed(cls.__mro__):
        for name, value in vars(klass).items():
            marked = value.__func__ if isinstance(value, _WRAPPERS) else value
            topics: tuple[Any, ...] | None = getattr(value, _MARK, getattr(marked, _MARK, None))
            if topics is not None:
                found[name] = topics
            elif name in found and not callable(value) and not isinstance(value, _WRAPPERS):
                del found[name]
    return [(topics, name) for name, topics in found.items()]
