"""The AsyncAPI document of an application."""

from __future__ import annotations

import enum
import functools
import importlib.metadata
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from ...errors import ConfigurationError
from ...transports import Identity, SocketProvider, TopicFilter
from ..injection._signatures import MISSING
from ..messaging._typed_topic import Topic
from ..payloads._codec import TEXT
from ..payloads._type_readers import bare_type
from ..registration._specs import Handler, Spec
from ._described_buses import DescribedBus, DescribedChannel, Direction, Role, described
from ._named_topics import named_topics, names_in
from ._payload_schemas import DescribedPayload, PayloadSchemas, shown_type, unique

__all__ = ["NOT_SEEN", "asyncapi_document"]

_VERSION = "3.0.0"
_UNKNOWN_VERSION = "0.0.0"
NOT_SEEN = (
    "What handlers publish and request cannot be seen from here, apart from the Topic objects that"
    " their code names: each of them is an operation with the action send."
)
_NO_NAME = "application without a name"
_SENDING = frozenset({"publish", "post", "request", "request_many"})
_ANYTHING: Any = object
_ERROR = DescribedPayload(
    "Error", "an error", TEXT, {"type": "string"}, "In place of a reply: the request has failed."
)
_PACKED = "application/vnd.spa-dat+json"


def asyncapi_document(
    identity: Identity,
    provider: SocketProvider | None,
    specs: Sequence[Spec[Any]],
    *,
    title: str | None = None,
    version: str | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """Return the document; see `DistributedApplication.asyncapi`.

    Args:
        identity: the application's.
        provider: its default bus.
        specs: its actors.
        title: in place of its name.
        version: in place of that of the package with the actors.
        description: in place of that package's summary.
    """
    package = None if version is not None and description is not None else _package_of(specs)
    if package is not None:
        version = package.version if version is None else version
        summary = str(package.metadata.json.get("summary", ""))
        description = summary if description is None else description
    info: dict[str, Any] = {
        "title": (_NO_NAME if identity.ephemeral else identity.application)
        if title is None
        else title,
        "version": _UNKNOWN_VERSION if version is None else version,
    }
    if description:
        info["description"] = description
    info["x-spa-dat-note"] = NOT_SEEN
    document = _Document(identity, provider)
    for spec in specs:
        document.add(spec)
    return {"asyncapi": _VERSION, "info": info, **document.parts()}


class _Document:
    """The parts of the document, which grow with each actor."""

    def __init__(self, identity: Identity, default: SocketProvider | None) -> None:
        self._identity = identity
        self._schemas = PayloadSchemas()
        self._buses: dict[str, DescribedBus] = {}
        self._servers: dict[str, Any] = {}
        self._security: dict[str, Any] = {}
        self._channels: dict[str, dict[str, Any]] = {}
        self._channel_names: dict[tuple[str, str], str] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}
        self._message_names: dict[str, str] = {}
        # How the application reads the levels that it captures, by channel and parameter.
        self._captures: dict[tuple[str, str], list[Any]] = {}
        if default is not None:
            self._bus_of(default)

    def parts(self) -> dict[str, Any]:
        """Return everything but the version and the information about it."""
        for (channel, name), readings in self._captures.items():
            _tell_values(self._channels[channel]["parameters"][name], readings)
        components = {
            "messages": self._messages,
            "schemas": self._schemas.schemas,
            "securitySchemes": self._security,
        }
        # What is referred to several times is not to be the same object.
        whole: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "servers": self._servers,
                    "channels": self._channels,
                    "operations": self._operations,
                    "components": {name: part for name, part in components.items() if part},
                }
            )
        )
        return whole

    def add(self, spec: Spec[Any]) -> None:
        """Add the operations of an actor."""
        provider = spec.options.socket_provider
        if provider is None:
            return
        bus = self._bus_of(provider)
        for handler in spec.handlers:
            self._add_received(spec, bus, handler)
        names = names_in(spec.source)
        if "subscribe" in names and not names & _SENDING:
            return
        for topic in named_topics(spec):
            self._add_sent(spec, bus, topic)

    def _bus_of(self, provider: SocketProvider) -> DescribedBus:
        bus = self._buses.get(provider.address)
        if bus is None:
            kind = provider.address.partition(":")[0].partition("+")[0] or "server"
            name = unique(kind, self._servers)
            bus = self._buses[provider.address] = described(name, provider, self._identity)
            server = bus.server()
            security = bus.security()
            if security:
                server["security"] = [
                    _reference("components", "securitySchemes", one) for one in security
                ]
                self._security |= security
            self._servers[name] = server
        return bus

    # Operations.

    def _add_received(self, spec: Spec[Any], bus: DescribedBus, handler: Handler) -> None:
        decoder = handler.injection.payload_decoder
        annotation = _ANYTHING if decoder is None else decoder.annotation
        contents = self._schemas.contents(annotation, "received", spec.options.codec)
        role: Role = "request" if handler.responder else "event"
        places = {
            self._channel(bus, place): place
            for filter_ in handler.filters
            for place in bus.places(filter_)
        }
        name = f"{spec.name}.{handler.attribute}" if handler.attribute else spec.name
        source = getattr(spec.source, handler.attribute) if handler.attribute else spec.source
        for channel, place in places.items():
            self._note_captures(channel, handler)
            self._add(
                name if len(places) == 1 else f"{name}.{channel}",
                "receive",
                spec,
                bus,
                channel,
                self._add_messages(bus, channel, place, contents, role, spec),
                texts=_documented(source),
                reply=self._reply(spec, bus, handler) if handler.responder else None,
            )

    def _add_sent(self, spec: Spec[Any], bus: DescribedBus, topic: Topic[Any, Any]) -> None:
        try:
            filter_ = TopicFilter.parse(topic.filter)
        except ConfigurationError:
            return
        if any(level in ("+", "#") for level in filter_.text.split("/")):
            # Nobody can publish there.
            return
        untyped = topic.payload is Any and topic.reply is Any
        asks = topic.reply is not None and not untyped
        contents = self._schemas.contents(topic.payload, "sent", spec.options.codec)
        reply = None
        if asks:
            inbox = bus.inbox()
            channel = self._channel(bus, inbox)
            replies = self._schemas.contents(topic.reply, "received", spec.options.codec)
            references = self._add_messages(bus, channel, inbox, replies, "reply", spec)
            references += self._add_messages(bus, channel, inbox, [_ERROR], "error", spec)
            reply = {"channel": _reference("channels", channel), "messages": references}
        verb = "request" if asks else "send"
        producer = spec.kind == "producer"
        for place in bus.places(filter_):
            channel = self._channel(bus, place)
            self._add(
                f"{spec.name}.{verb}.{channel}",
                "send",
                spec,
                bus,
                channel,
                self._add_messages(
                    bus, channel, place, contents, "request" if asks else "event", spec
                ),
                texts=_documented(spec.source)
                if producer
                else {"summary": f"Named in the code of {spec.name}."},
                reply=reply,
            )

    def _add(
        self,
        name: str,
        action: Direction,
        spec: Spec[Any],
        bus: DescribedBus,
        channel: str,
        messages: list[Any],
        *,
        texts: Mapping[str, str],
        reply: dict[str, Any] | None,
    ) -> None:
        operation: dict[str, Any] = {
            "action": action,
            "channel": _reference("channels", channel),
            **texts,
            "tags": [_tag(spec)],
            "messages": messages,
        }
        binding = bus.operation_binding(spec, action, request=reply is not None)
        if binding:
            operation["bindings"] = binding
        if reply is not None:
            operation["reply"] = reply
        self._operations[unique(name, self._operations)] = operation

    def _reply(self, spec: Spec[Any], bus: DescribedBus, handler: Handler) -> dict[str, Any]:
        place = DescribedChannel(
            "replies",
            "replies",
            None,
            "Replies",
            note="The topic that the request names; each has its own.",
        )
        channel = self._channel(bus, place)
        returned = handler.injection.returns
        known = handler.injection.returns_value and not isinstance(returned, str)
        contents = self._schemas.contents(
            returned if known else _ANYTHING, "sent", handler.reply_codec
        )
        references = self._add_messages(bus, channel, place, contents, "reply", spec)
        references += self._add_messages(bus, channel, place, [_ERROR], "error", spec)
        reply: dict[str, Any] = {}
        location = bus.reply_location()
        if location is not None:
            reply["address"] = {"location": location}
        return {**reply, "channel": _reference("channels", channel), "messages": references}

    # Channels and messages.

    def _channel(self, bus: DescribedBus, place: DescribedChannel) -> str:
        """Return the name of the channel for a place, which is added if it is not there."""
        known = self._channel_names.get((bus.name, place.pattern))
        if known is not None:
            return known
        name = unique(place.name, self._channels)
        self._channel_names[bus.name, place.pattern] = name
        channel: dict[str, Any] = {"address": place.address, "title": place.title}
        if place.note is not None:
            channel["description"] = place.note
        channel["servers"] = [_reference("servers", bus.name)]
        if place.parameters:
            channel["parameters"] = {
                name: {"description": text} for name, text in place.parameters.items()
            }
        channel["messages"] = {}
        binding = bus.channel_binding(place)
        if binding:
            channel["bindings"] = binding
        self._channels[name] = channel
        return name

    def _note_captures(self, channel: str, handler: Handler) -> None:
        parameters = self._channels[channel].get("parameters", {})
        by_name = {parameter.name: parameter for parameter in handler.signature.parameters}
        for name in parameters:
            found = by_name.get(name)
            annotation = MISSING if found is None else found.annotation
            self._captures.setdefault((channel, name), []).append(annotation)

    def _add_messages(
        self,
        bus: DescribedBus,
        channel: str,
        place: DescribedChannel,
        contents: Iterable[DescribedPayload],
        role: Role,
        spec: Spec[Any],
    ) -> list[Any]:
        """Add messages to a channel; returns the references to them."""
        found: list[Any] = []
        packed = (spec.options.wire or bus.wire) == "spa-dat"
        for content in contents:
            one = _packed(content) if packed else content
            name = self._message(bus, one, role, place, plain=not packed)
            self._channels[channel]["messages"][name] = _reference("components", "messages", name)
            reference = _reference("channels", channel, "messages", name)
            if reference not in found:
                found.append(reference)
        return found

    def _message(
        self,
        bus: DescribedBus,
        content: DescribedPayload,
        role: Role,
        place: DescribedChannel,
        *,
        plain: bool,
    ) -> str:
        """Return the name of a message, which is added if it is not there."""
        message = self._made(bus, content, role, place, plain=plain)
        if role == "request" and message == self._made(bus, content, "event", place, plain=plain):
            role = "event"
        key = json.dumps([content.name, message])
        name = self._message_names.get(key)
        if name is None:
            wanted = content.name if role in ("event", "error") else f"{content.name}.{role}"
            name = self._message_names[key] = unique(wanted, self._messages)
            self._messages[name] = {"name": name, **message}
        return name

    def _made(
        self,
        bus: DescribedBus,
        content: DescribedPayload,
        role: Role,
        place: DescribedChannel,
        *,
        plain: bool,
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"title": content.title}
        if content.content_type is not None:
            message["contentType"] = content.content_type
        if content.note is not None:
            message["description"] = content.note
        if plain and bus.headers_name:
            message["headers"] = self._headers(bus, role)
            correlation = bus.correlation(role)
            if correlation is not None:
                message["correlationId"] = correlation
        message["payload"] = content.schema
        binding = bus.message_binding(content, role, place)
        if binding:
            message["bindings"] = binding
        return message

    def _headers(self, bus: DescribedBus, role: Role) -> Any:
        """Return the reference to the schema of the headers, which is added if it is not there."""
        more = bus.more_headers(role)
        name = f"{bus.headers_name}.{role if more else 'event'}-headers"
        if name in self._schemas.schemas:
            return _reference("components", "schemas", name)
        schema: dict[str, Any] = {"type": "object", "properties": more or bus.headers}
        if more:
            schema["allOf"] = [self._headers(bus, "event")]
            required = [header for header in ("spa_reply", "spa_error") if header in more]
            if required:
                schema["required"] = required
        return self._schemas.reserve(name, schema)


def _reference(*path: str) -> dict[str, str]:
    # Names have only characters that a reference may have.
    return {"$ref": f"#/{'/'.join(path)}"}


def _packed(content: DescribedPayload) -> DescribedPayload:
    """Return a content as spa-dat 0.4.0 has it, a text in a JSON object."""
    payload: dict[str, Any] = {"type": "string"}
    if content.content_type is not None:
        payload["contentMediaType"] = content.content_type
    if content.schema:
        payload["contentSchema"] = content.schema
    optional = {"type": ["string", "null"]}
    schema = {
        "type": "object",
        "properties": {
            "Payload": payload,
            "Topic": {"type": "string"},
            "ContentType": optional,
            "ClientId": optional,
            "ClientName": optional,
            "QualityOfService": {"type": "integer", "enum": [0, 1, 2]},
            "ResponseTopic": optional,
            "Timestamp": {"type": "integer"},
        },
        "required": ["Payload", "Topic"],
    }
    note = "In the format of spa-dat 0.4.0: the payload is a text inside of a JSON object."
    return DescribedPayload(
        f"{content.name}.packed",
        content.title,
        _PACKED,
        schema,
        note if content.note is None else f"{note} {content.note}",
    )


def _tell_values(parameter: dict[str, Any], readings: Sequence[Any]) -> None:
    """Say which values a parameter may have, if all handlers read it as the same type."""
    first = readings[0]
    bare, optional = (MISSING, False) if first is MISSING else bare_type(first)
    if bare in (MISSING, str, Any, object) or any(one != first for one in readings):
        return
    values: Sequence[object] = ()
    if get_origin(bare) is Literal:
        values = get_args(bare)
    elif isinstance(bare, type) and issubclass(bare, enum.Enum):
        values = [member.value for member in bare]
    if values and not optional and all(isinstance(value, str) for value in values):
        parameter["enum"] = [str.__str__(value) for value in values if isinstance(value, str)]
    else:
        parameter["description"] += f" The application reads it as {shown_type(first)}."


# Texts from the code.


def _bare(source: Any) -> Any:
    while isinstance(source, functools.partial):
        source = source.func
    return source


def _documented(source: Any) -> dict[str, str]:
    """Return the summary and the description that a docstring gives."""
    text = inspect.getdoc(_bare(source)) or ""
    summary, _, rest = text.strip().partition("\n\n")
    found = {"summary": " ".join(summary.split())} if summary else {}
    return {**found, "description": text.strip()} if rest else found


def _tag(spec: Spec[Any]) -> dict[str, str]:
    tag = {"name": spec.name}
    if isinstance(spec.source, type):
        # Not what it inherits, nor what dataclasses write.
        text = inspect.cleandoc(vars(spec.source).get("__doc__") or "")
        if text and not text.startswith(f"{spec.source.__name__}("):
            tag["description"] = text
    return tag


def _package_of(specs: Sequence[Spec[Any]]) -> importlib.metadata.Distribution | None:
    """Return the installed package that all actors are from; None if there is not exactly one."""
    tops = {*_top_modules(specs)}
    if len(tops) != 1:
        return None
    names = {*_packages().get(tops.pop(), ())}
    return importlib.metadata.distribution(names.pop()) if len(names) == 1 else None


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    """Return the installed packages by module, which takes a while to find out."""
    return importlib.metadata.packages_distributions()


def _top_modules(specs: Sequence[Spec[Any]]) -> Iterator[str]:
    for spec in specs:
        source = _bare(spec.source)
        name = getattr(source, "__module__", type(source).__module__) or ""
        yield name.partition(".")[0]
