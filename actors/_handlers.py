"""`on` and `on_reminder`, which mark methods as handlers; what they handle is opaque here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ConfigurationError

__all__ = ["handlers_of", "on", "on_reminder", "reminders_of"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__spa_dat_topics__"
_REMINDERS = "__spa_dat_reminders__"
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


def on_reminder(*names: str) -> Callable[[F], F]:
    """Make a method of a durable keyed actor the handler of reminders with these names.

    It gets what handlers of topics get: the payload that was given to `Context.remind`, by
    annotation, the key by the name of its capture, and the name of the reminder as ``reminder``.
    For a function there is `DistributedApplication.on_reminder`.

    Raises:
        ConfigurationError: there is no name, or the decorator was written without parentheses.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(
            "@on_reminder takes the names of reminders, as in @on_reminder('service'), and not"
            f" {names[0] if names else 'nothing'!r}"
        )

    def mark(function: F) -> F:
        setattr(function, _REMINDERS, (*names, *getattr(function, _REMINDERS, ())))
        return function

    return mark


def reminders_of(cls: type) -> list[tuple[tuple[str, ...], str]]:
    """Return the handlers of reminders of a class as (names, attribute name); see `handlers_of`."""
    found: dict[str, tuple[str, ...]] = {}
    for klass in reversed(cls.__mro__):
        for name, value in vars(klass).items():
            names: tuple[str, ...] | None = getattr(value, _REMINDERS, None)
            if names is not None:
                found[name] = names
            elif name in found and not callable(value):
                del found[name]
    return [(names, name) for name, names in found.items()]


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
