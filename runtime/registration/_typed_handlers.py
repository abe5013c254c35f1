"""Handlers of typed topics: what type checkers and registration compare their signatures with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, get_args, overload

from ...actors import on as mark
from ...errors import ConfigurationError
from ..injection._injection import Injection
from ..messaging._message import Message
from ..messaging._typed_topic import P, R, Topic, filter_meant
from ..payloads._type_readers import bare_type, is_union, type_name

__all__ = [
    "FunctionDecorator",
    "MethodDecorator",
    "Topics",
    "check_types",
    "on",
    "topic_texts",
    "typed_topics",
]

Topics: TypeAlias = str | Topic[Any, Any] | Sequence[str | Topic[Any, Any]]
"""What an actor is registered for: one topic or several."""

A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])
S = ParamSpec("S")


class FunctionDecorator(Protocol[P, R]):
    """Takes functions whose first parameter is the payload or message, and that return the reply.

    With ``batch=`` the first parameter is a list of them.
    """

    @overload
    def __call__(
        self, function: Callable[Concatenate[P, S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[P, S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Message[P], S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[Message[P], S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[list[P], S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[list[P], S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[list[Message[P]], S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[list[Message[P]], S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[P, S], R], /
    ) -> Callable[Concatenate[P, S], R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Message[P], S], R], /
    ) -> Callable[Concatenate[Message[P], S], R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[list[P], S], R], /
    ) -> Callable[Concatenate[list[P], S], R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[list[Message[P]], S], R], /
    ) -> Callable[Concatenate[list[Message[P]], S], R]: ...


class MethodDecorator(Protocol[P, R]):
    """The same as `FunctionDecorator` for methods, whose first parameter is the actor."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[A, P, S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[A, P, S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[A, Message[P], S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[A, Message[P], S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[A, list[P], S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[A, list[P], S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[A, list[Message[P]], S], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[A, list[Message[P]], S], Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[A, P, S], R], /
    ) -> Callable[Concatenate[A, P, S], R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[A, Message[P], S], R], /
    ) -> Callable[Concatenate[A, Message[P], S], R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[A, list[P], S], R], /
    ) -> Callable[Concatenate[A, list[P], S], R]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[A, list[Message[P]], S], R], /
    ) -> Callable[Concatenate[A, list[Message[P]], S], R]: ...


@overload
def on(topic: Topic[P, R], /) -> MethodDecorator[P, R]: ...


@overload
def on(*topics: str) -> Callable[[F], F]: ...


@overload
def on(
    topic: str | Topic[Any, Any], second: str | Topic[Any, Any], /, *more: str | Topic[Any, Any]
) -> Callable[[F], F]: ...


def on(*topics: str | Topic[Any, Any]) -> Any:
    """Make a method of an `Actor` the handler of messages that match ``topics``.

    The first declared handler that matches a message gets it. Several decorators on one method add
    up, the topmost first. A method that overrides a handler remains one without being decorated
    again; if it is decorated again, it has the new topics only.

    Args:
        topics: filters such as ``plant/+/temperature`` or ``plant/{machine}/temperature``, or a
            `Topic`; type checkers then compare the method with its types.

    Raises:
        ConfigurationError: there is no topic, or one is neither a str nor a `Topic`.
    """
    for topic in topics:
        if not isinstance(topic, str | Topic):
            raise ConfigurationError(
                f"@on takes topics as strings, not {topic!r}; write @on('plant/temperature')"
            )
    return mark(*topics)


def topic_texts(topics: Any) -> Any:
    """Return the topics of a registration as filters; whatever is no topic stays as it is."""
    if isinstance(topics, Iterable) and not isinstance(topics, str):
        return [filter_meant(topic) for topic in topics]
    return filter_meant(topics)


def typed_topics(topics: object) -> list[Topic[Any, Any]]:
    """Return those of the topics of a registration that have types."""
    several = topics if isinstance(topics, Iterable) and not isinstance(topics, str) else (topics,)
    return [topic for topic in several if isinstance(topic, Topic)]


def check_types(topics: Sequence[Topic[Any, Any]], injection: Injection) -> None:
    """Compare what a handler takes and returns with the types of its topics.

    What it does not annotate is not compared, and every payload can be taken as bytes.

    Raises:
        ConfigurationError: names the topic and both types.
    """
    decoder = injection.payload_decoder
    wanted = Any if decoder is None or decoder.is_identity else decoder.annotation
    for topic in topics:
        if not _takes(wanted, topic.payload):
            raise ConfigurationError(
                f"{injection.name} takes {type_name(wanted)}, but {topic!r} carries"
                f" {type_name(topic.payload)}"
            )
        returned = injection.returns
        if topic.reply is not None and returned is not None and not _takes(topic.reply, returned):
            raise ConfigurationError(
                f"{injection.name} returns {type_name(returned)}, but a reply on {topic!r} is"
                f" {type_name(topic.reply)}"
            )


def _takes(wanted: Any, given: Any) -> bool:
    """Return whether a value of type ``given`` is one of type ``wanted``, as far as can be seen."""
    if isinstance(wanted, str | TypeVar) or isinstance(given, str | TypeVar):
        return True
    if wanted in (Any, object) or given is Any or wanted == given:
        return True
    if is_union(given):
        return all(_takes(wanted, part) for part in get_args(given))
    if is_union(wanted):
        return any(_takes(part, given) for part in get_args(wanted))
    wanted, given = bare_type(wanted)[0], bare_type(given)[0]
    if isinstance(wanted, type) and isinstance(given, type):
        return issubclass(given, wanted)
    return bool(wanted == given)
