"""Specifications from code: what a function or a class says about its actor."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ...actors import Actor, handlers_of, reminders_of
from ...errors import ConfigurationError
from ...transports import RESERVED, TopicFilter, is_reserved
from ..injection._handler_context import Context
from ..injection._injection import Injection
from ..injection._signatures import read_signature
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..options._actor_options import ActorOptions, merge_options
from ..options._option_checks import parse_filters
from ..payloads._generics import arguments_in
from ..payloads._type_readers import bare_type, codec_in
from ._class_options import class_options
from ._specs import Handler, Kind, Spec
from ._typed_handlers import Topics, check_types, topic_texts, typed_topics

__all__ = ["FunctionActor", "check_arguments", "class_spec", "function_spec"]

A = TypeVar("A", bound=Actor)

_NOT_OF_KEYS = {
    "on_start": "use on_activate, which is called when the state of a key is there",
    "on_stop": "use on_passivate, which is called before the state of a key goes",
    "on_receive": "no references lead to keys, so write a handler for a topic",
    "on_failure": "no references lead to keys, so write a handler for a topic",
}
_SPECIAL: dict[type, str] = {Socket: "socket", SyncSocket: "socket", Context: "context"}


class FunctionActor(Actor):
    """The actor behind a decorated function."""


def function_spec(
    function: Callable[..., Any],
    name: str | None,
    kind: Kind,
    topics: Topics,
    options: ActorOptions,
    shared_resources: Sequence[str],
) -> Spec[FunctionActor]:
    """Return the specification of a function; raises ConfigurationError if anything is wrong."""
    if not callable(function):
        raise ConfigurationError(f"{function!r} is not a function")
    owner = str(getattr(function, "__name__", type(function).__name__)) if name is None else name
    filters = _checked_filters(owner, topics, options) if kind == "application" else ()

    added: list[tuple[tuple[str, ...], Callable[..., Any]]] = []

    def analyse(changed: ActorOptions) -> tuple[Handler, ...]:
        main = (
            _handler(
                function,
                topics,
                filters,
                kind,
                changed,
                shared_resources,
                lambda instance: function,
                attribute="",
            ),
        )
        return main + _reminder_handlers(
            owner,
            [(names, one, "", lambda instance, one=one: one) for names, one in added],
            changed,
            shared_resources,
        )

    spec = Spec(owner, kind, function, FunctionActor, options, analyse)
    spec.reminder_functions = added
    return spec


def class_spec(
    cls: Callable[..., A],
    factory: Callable[[], A],
    options: ActorOptions,
    shared_resources: Sequence[str],
) -> Spec[A]:
    """Return the specification of an actor class; raises ConfigurationError if it is wrong."""
    if not (isinstance(cls, type) and issubclass(cls, Actor)):
        raise ConfigurationError(f"{cls!r} is not a class derived from Actor")
    if getattr(getattr(cls, "__dataclass_params__", None), "frozen", False):
        raise ConfigurationError(
            f"actor class {cls.__name__} is a frozen dataclass, but the runtime sets attributes of"
            " its own on an actor: remove frozen=True"
        )
    given = class_options(cls)
    name = given.pop("name", cls.__name__)
    merged = merge_options(f"actor {name!r}", options, given)

    def analyse(changed: ActorOptions) -> tuple[Handler, ...]:
        handlers = tuple(
            _handler(
                getattr(cls, attribute),
                topics,
                _checked_filters(f"{cls.__name__}.{attribute}", topics, changed),
                "application",
                changed,
                shared_resources,
                operator.attrgetter(attribute),
                attribute=attribute,
                has_self=not isinstance(
                    inspect.getattr_static(cls, attribute), staticmethod | classmethod
                ),
                variables=arguments_in(cls, attribute),
            )
            for topics, attribute in _declared(cls)
        )
        _refuse_shadowed(cls.__name__, handlers)
        return handlers + _reminder_handlers(
            cls.__name__,
            [
                (names, getattr(cls, attribute), attribute, operator.attrgetter(attribute))
                for names, attribute in reminders_of(cls)
            ],
            changed,
            shared_resources,
        )

    def analyse_hooks(changed: ActorOptions) -> dict[str, Handler]:
        if changed.per is not None:
            return _hooks_of_keys(cls, changed, shared_resources)
        return {
            hook: _hook(cls, hook, changed, shared_resources)
            for hook in ("on_start", "on_stop")
            if len(inspect.signature(getattr(cls, hook)).parameters) > 1
        }

    return Spec(name, "application", cls, factory, merged, analyse, analyse_hooks)


def _reminder_handlers(
    owner: str,
    functions: Sequence[tuple[tuple[str, ...], Callable[..., Any], str, Any]],
    options: ActorOptions,
    shared_resources: Sequence[str],
) -> tuple[Handler, ...]:
    if not options.durable or options.per is None:
        if functions:
            raise ConfigurationError(
                f"{owner}: reminder {functions[0][0][0]!r} is a part of what is kept of a key: give"
                " per= and durable=True"
            )
        return ()
    # Not at the top: most applications have no durable actors.
    from ._reminder_handlers import ANY_REMINDER, check_reminders, no_handler, reminder_filter

    seen: set[str] = set()
    handlers = []
    every = ((ANY_REMINDER,), no_handler, "", lambda instance: no_handler)
    for names, function, attribute, bind in (*functions, every):
        if function is not no_handler:
            check_reminders(owner, names)
        for name in names:
            if name in seen:
                raise ConfigurationError(
                    f"{owner}: reminder {name!r} has two handlers: remove one of them"
                )
            seen.add(name)
        handler = _handler(
            function,
            (),
            (reminder_filter(options.per),),
            "application",
            options,
            shared_resources,
            bind,
            attribute=attribute,
            has_self=bool(attribute),
        )
        # Nobody subscribes to their topics.
        handlers.append(replace(handler, filters=(), responder=False, reminders=names))
    return tuple(handlers)


def check_arguments(
    cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise ConfigurationError if the class cannot be called with these arguments."""
    if not isinstance(cls, type) and isinstance(cls, Actor):
        name = type(cls).__name__
        raise ConfigurationError(
            f"add() creates the actor itself: give the class and its arguments, add({name}, ...),"
            " not an instance"
        )
    if not callable(cls):
        raise ConfigurationError(
            f"add({cls!r:.200}): give a class that is derived from Actor, and its arguments"
        )
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(cls, "__name__", repr(cls))
        raise ConfigurationError(f"add({name}, ...): {error}; it takes {signature}") from error


def _declared(cls: type[Actor]) -> list[tuple[tuple[Any, ...], str]]:
    declared = handlers_of(cls)
    short = cls.topics
    if not short:
        if not declared:
            raise ConfigurationError(
                f"actor class {cls.__name__} has no handlers: decorate methods with @on(...), or"
                " set topics = (...) and define on_message"
            )
        return declared
    if declared:
        raise ConfigurationError(
            f"actor class {cls.__name__} has both topics and @on handlers; use only one of these"
        )
    if not callable(getattr(cls, "on_message", None)):
        raise ConfigurationError(f"actor class {cls.__name__} has topics but no on_message")
    return [(tuple(short) if isinstance(short, list | tuple) else (short,), "on_message")]


def _checked_filters(owner: str, topics: Topics, options: ActorOptions) -> tuple[TopicFilter, ...]:
    filters = parse_filters(owner, topic_texts(topics))
    for filter_ in filters:
        if is_reserved(filter_.pattern):
            raise ConfigurationError(
                f"{owner}: filter {filter_.text!r}: everything under {RESERVED}/ belongs to the"
                " runtime; choose another first level"
            )
        if options.socket_provider is not None:
            options.socket_provider.check_filter(filter_.pattern)
    return filters


def _refuse_shadowed(owner: str, handlers: Sequence[Handler]) -> None:
    seen: dict[str, str] = {}
    for handler in handlers:
        for filter_ in handler.filters:
            if filter_.pattern in seen:
                raise ConfigurationError(
                    f"{owner}: filter {filter_.text!r} is never reached, because"
                    f" {seen[filter_.pattern]!r} comes first; remove one of them"
                )
            seen[filter_.pattern] = filter_.text


def _check_socket(injection: Injection, function: Callable[..., Any], *, has_self: bool) -> None:
    wrong, right, kind = (
        (SyncSocket, Socket, "async def") if injection.is_async else (Socket, SyncSocket, "def")
    )
    for parameter in read_signature(function, has_self=has_self).parameters:
        if bare_type(parameter.annotation)[0] is wrong:
            raise ConfigurationError(
                f"{injection.name}: parameter {parameter.name!r} is a {wrong.__name__}, but the"
                f" handler is written with {kind}; use {right.__name__} there"
            )


def _hooks_of_keys(
    cls: type[Actor], options: ActorOptions, shared_resources: Sequence[str]
) -> dict[str, Handler]:
    for name, instead in _NOT_OF_KEYS.items():
        if getattr(cls, name) is not getattr(Actor, name):
            raise ConfigurationError(
                f"actor class {cls.__name__} has per={options.per!r}, so each key has an instance"
                f" of its own, and {name} is never called: {instead}"
            )
    # They get the key by the name of its capture.
    captures = (TopicFilter.parse(f"{{{options.per}}}"),)
    return {
        hook: _hook(cls, hook, options, shared_resources, captures)
        for hook in ("on_activate", "on_passivate")
        if callable(getattr(cls, hook, None))
    }


def _hook(
    cls: type[Actor],
    hook: str,
    options: ActorOptions,
    shared_resources: Sequence[str],
    captures: tuple[TopicFilter, ...] = (),
) -> Handler:
    function = getattr(cls, hook)
    handler = _handler(
        function,
        (),
        captures,
        "producer",
        options,
        shared_resources,
        operator.attrgetter(hook),
        attribute=hook,
        has_self=True,
    )
    wanted = (parameter.name for parameter in read_signature(function, has_self=True).parameters)
    if not handler.injection.is_async and "socket" in wanted:
        raise ConfigurationError(
            f"{cls.__name__}.{hook} asks for a socket and runs on the event loop; write it with"
            " async def"
        )
    return handler


def _handler(
    function: Callable[..., Any],
    topics: Topics,
    filters: tuple[TopicFilter, ...],
    kind: Kind,
    options: ActorOptions,
    shared_resources: Sequence[str],
    bind: Callable[[Any], Callable[..., Any]],
    *,
    attribute: str,
    has_self: bool = False,
    variables: Mapping[Any, Any] | None = None,
) -> Handler:
    injection = Injection.analyse(
        function,
        topics=filters,
        resources=tuple(dict.fromkeys((*options.ressources, *shared_resources))),
        kind=kind,
        has_self=has_self,
        has_state=options.state is not None,
        special=_SPECIAL,
        batch=options.batch is not None and kind == "application",
        variables=variables,
        codec=options.codec,
    )
    _check_socket(injection, function, has_self=has_self)
    check_types(typed_topics(topics), injection)
    if options.batch is not None and injection.is_responder(options.replies):
        raise ConfigurationError(
            f"{injection.name}: it answers requests, but with batch={options.batch} one call gets"
            " several messages; remove batch=, or what makes it reply (return annotation,"
            " message_builder, replies=True)"
        )
    signature = read_signature(function, has_self=has_self, variables=variables)
    return Handler(
        filters=filters,
        injection=injection,
        bind=bind,
        responder=injection.is_responder(options.replies),
        returns_reply=options.replies or injection.returns_value,
        reply_codec=codec_in(signature.returns) or options.codec,
        attribute=attribute,
        signature=signature,
    )
