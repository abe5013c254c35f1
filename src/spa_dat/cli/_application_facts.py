"""What is registered with an application, and what it is called on its buses."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

from .._texts import bracketed, quoted
from ..actors import RestartPolicy
from ..runtime import DistributedApplication, RetryPolicy, Spec
from ..runtime.application._application import runs_of
from ..runtime.description._named_topics import named_topics
from ..runtime.description._payload_schemas import shown_type
from ..runtime.hosting._application_settings import Settings
from ..runtime.messaging._middleware import handles, publishes
from ..runtime.options._actor_options import ActorOptions
from ..runtime.payloads._type_readers import type_name
from ..runtime.registration._specs import Handler
from ..transports import Identity, KafkaConfig, MqttConfig, SocketProvider
from ..transports._dead_letter_topics import dead_letter_filter
from ..transports._topics import reply_filter
from ..transports.kafka._topic_names import Names, owner_of_topics

__all__ = [
    "ActorFacts",
    "ApplicationFacts",
    "BusFacts",
    "HandlerFacts",
    "MiddlewareFacts",
    "NamedTopic",
    "facts_of",
]

_DEFAULTS = ActorOptions()
_PLAIN = inspect.signature(DistributedApplication).parameters
# From arguments to attributes of the settings.
_SETTINGS = {
    argument: (attribute, _PLAIN[argument].default)
    for argument, attribute in (
        ("stop_timeout", "stop_timeout"),
        ("dead_letter_limit", "dead_letter_limit"),
        ("restart", "restart"),
        ("slow_after", "slow"),
        ("blocked_after", "blocked"),
    )
}
# They have places of their own, or say nothing to others.
_NOT_SHOWN = ("socket_provider", "every")


@dataclass(frozen=True)
class HandlerFacts:
    """One handler of an actor.

    Attributes:
        name: of the function or method.
        topics: its filters, as written.
        payload: the type that it takes; None if it takes none.
        reply: the type of its replies; None if it does not answer.
    """

    name: str
    topics: tuple[str, ...]
    payload: str | None
    reply: str | None


@dataclass(frozen=True)
class NamedTopic:
    """A topic with a type.

    Attributes:
        topic: as written.
        payload: the type of what is sent there.
        reply: the type of the replies; None if there are none.
    """

    topic: str
    payload: str
    reply: str | None


@dataclass(frozen=True)
class ActorFacts:
    """One registered actor.

    Attributes:
        name: its name.
        kind: ``actor`` or ``producer``.
        source: the function or class, as ``module:name``.
        bus: the address of its bus; None if it has none.
        every: seconds from one call of a producer to the next; None for a single one.
        handlers: its handlers.
        options: those that do not have their defaults, as written.
        names: what the broker knows it by: of its session or group and the like, by kind.
        topics_named: those `Topic` objects that its code names, besides its own filters. It may
            publish there, or request, or subscribe.
    """

    name: str
    kind: str
    source: str
    bus: str | None
    every: float | None
    handlers: tuple[HandlerFacts, ...]
    options: dict[str, str]
    names: dict[str, list[str]]
    topics_named: tuple[NamedTopic, ...]


@dataclass(frozen=True)
class BusFacts:
    """One bus.

    Attributes:
        address: its URL without secrets.
        is_default: whether it is the bus of actors that name none.
        names: as for `ActorFacts`, of what all actors share.
    """

    address: str
    is_default: bool
    names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class MiddlewareFacts:
    """One piece of middleware.

    Attributes:
        source: its class, as ``module:name``.
        handles: whether handlers are called through it.
        publishes: whether it sees what is published.
    """

    source: str
    handles: bool
    publishes: bool


@dataclass(frozen=True)
class ApplicationFacts:
    """One application.

    Attributes:
        application: its name; None if it has none.
        instance: which copy of it.
        settings: its arguments that do not have their defaults, as written.
        middleware: in the order of registration: the first one is outermost.
        buses: those in use.
        resources: the names of those that all actors may use.
        actors: in the order of registration.
    """

    application: str | None
    instance: str
    settings: dict[str, str]
    middleware: tuple[MiddlewareFacts, ...]
    buses: tuple[BusFacts, ...]
    resources: tuple[str, ...]
    actors: tuple[ActorFacts, ...]


def facts_of(application: DistributedApplication) -> ApplicationFacts:
    """Return what is registered with an application; connects to nothing."""
    runs = runs_of(application)
    identity = application.identity
    default = runs.settings.provider
    return ApplicationFacts(
        application=None if identity.ephemeral else identity.application,
        instance=identity.instance,
        settings=_settings(runs.settings),
        middleware=tuple(
            MiddlewareFacts(_place(type(one)), handles(one), publishes(one))
            for one in runs.settings.middleware
        ),
        buses=tuple(
            BusFacts(provider.address, provider is default, _names_of_bus(provider, identity))
            for provider in {one.address: one for one in runs.providers}.values()
        ),
        resources=runs.resources,
        actors=tuple(_actor(spec, identity) for spec in runs.specs),
    )


def _actor(spec: Spec[Any], identity: Identity) -> ActorFacts:
    provider = spec.options.socket_provider
    return ActorFacts(
        name=spec.name,
        kind="producer" if spec.kind == "producer" else "actor",
        source=_place(spec.source),
        bus=None if provider is None else provider.address,
        every=spec.options.every,
        handlers=tuple(_handler(spec, handler) for handler in spec.handlers),
        options=_options(spec.options),
        names={} if provider is None else _names_of_actor(spec, provider, identity),
        topics_named=tuple(
            NamedTopic(
                str(topic),
                shown_type(topic.payload),
                None if topic.reply is None else shown_type(topic.reply),
            )
            for topic in named_topics(spec)
        ),
    )


def _handler(spec: Spec[Any], handler: Handler) -> HandlerFacts:
    decoder = handler.injection.payload_decoder
    reply = None
    if handler.responder:
        returned = handler.injection.returns
        reply = "of any type" if returned is None else shown_type(returned)
    return HandlerFacts(
        name=handler.attribute or spec.name,
        topics=tuple(filter_.text for filter_ in handler.filters),
        payload=None if decoder is None else shown_type(decoder.annotation),
        reply=reply,
    )


def _place(source: object) -> str:
    while isinstance(source, functools.partial):
        source = source.func
    name = getattr(source, "__qualname__", type(source).__qualname__)
    return f"{getattr(source, '__module__', type(source).__module__)}:{name}"


# Options.


def _settings(settings: Settings) -> dict[str, str]:
    found = {
        argument: _as_written(getattr(settings, attribute))
        for argument, (attribute, default) in _SETTINGS.items()
        if getattr(settings, attribute) != default
    }
    if settings.reply_topics is not None:
        found["reply_topics"] = ", ".join(filter_.text for filter_ in settings.reply_topics)
    if settings.codec is not None:
        found["codec"] = type_name(type(settings.codec))
    if settings.admin is not None:
        # Without its token.
        found["admin"] = quoted(f"{bracketed(str(settings.admin.ip))}:{settings.admin.port}")
    return found


def _options(options: ActorOptions) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in dataclasses.fields(options):
        value, default = getattr(options, entry.name), getattr(_DEFAULTS, entry.name)
        if entry.name in _NOT_SHOWN or value is default:
            continue
        if entry.name == "state":
            found["state"] = _of_state(value)
        elif entry.name == "codec":
            found["codec"] = type_name(type(value))
        elif entry.name == "ressources":
            if value:
                found["ressources"] = ", ".join(value)
        elif value != default:
            found[entry.name] = _as_written(value)
    return found


def _of_state(state: object) -> str:
    # Not its value, which may be anything, and secret.
    if callable(state):
        return _place(state)
    return f"a value of type {type_name(type(state))}"


def _as_written(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, RetryPolicy | RestartPolicy):
        plain = type(value)()
        changed = (
            f"{entry.name}={_as_written(getattr(value, entry.name))}"
            for entry in dataclasses.fields(value)
            if getattr(value, entry.name) != getattr(plain, entry.name)
        )
        return f"{type(value).__name__}({', '.join(changed)})"
    return quoted(value)


# Names on brokers.


def _names_of_bus(provider: SocketProvider, identity: Identity) -> dict[str, list[str]]:
    config, own = provider.config, identity.client_id
    if isinstance(config, MqttConfig):
        return {
            "client id": [own],
            "replies": [reply_filter(identity.application)],
            "dead letters": [dead_letter_filter(identity.application)],
        }
    if isinstance(config, KafkaConfig):
        names = Names(config)
        shared = owner_of_topics(identity)
        return {
            "client id": [own],
            "replies": [names.replies(shared)],
            "dead letters": [names.dead_letters(shared)],
        }
    return {}


def _names_of_actor(
    spec: Spec[Any], provider: SocketProvider, identity: Identity
) -> dict[str, list[str]]:
    if not spec.filters:
        return {}
    name = spec.options.subscription or spec.name
    own, shared = identity.client_id_of(name), identity.group_of(name)
    shares = (spec.options.deliver or provider.default_deliver) == "share"
    patterns = [*dict.fromkeys(filter_.pattern for filter_ in spec.filters)]
    config = provider.config
    if isinstance(config, MqttConfig):
        prefix = f"$share/{shared}/" if shares else ""
        kind = "client id" if identity.ephemeral else "session"
        return {kind: [own], "filters": [prefix + pattern for pattern in patterns]}
    if isinstance(config, KafkaConfig):
        names = Names(config)
        topics: dict[str, None] = {}
        for pattern in patterns:
            selection = names.selection((pattern,))
            topics |= dict.fromkeys(selection.names)
            if selection.pattern is not None:
                topics[config.prefix + pattern.replace("/", ".")] = None
        if identity.ephemeral:
            return {"client id": [own], "topics": [*topics]}
        group = names.group(shared if shares else own)
        return {"group": [group], "member": [names.group(own)], "topics": [*topics]}
    return {}
