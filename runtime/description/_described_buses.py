"""Buses as an AsyncAPI document has them: servers, channels, headers and bindings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from ..._texts import bracketed
from ...errors import ConfigurationError
from ...transports import (
    Identity,
    KafkaConfig,
    MemoryConfig,
    MqttConfig,
    SocketProvider,
    TopicFilter,
)
from ...transports._topics import RESERVED, reply_filter
from ...transports.kafka._topic_names import Names, owner_of_topics
from ..registration._specs import Spec
from ._payload_schemas import DescribedPayload, name_of, unique

__all__ = ["DescribedBus", "DescribedChannel", "Direction", "Role", "described"]

Direction: TypeAlias = Literal["receive", "send"]
"""The ``action`` of an operation."""
Role: TypeAlias = Literal["event", "request", "reply", "error"]
"""What a message is: they differ in their headers."""

_MQTT_BINDING = {"bindingVersion": "0.2.0"}
_KAFKA_BINDING = {"bindingVersion": "0.5.0"}
_HIDDEN = f"Topics whose first level is {RESERVED} or begins with {{}} are not among them."
_TEXT: Mapping[str, Any] = {"type": "string"}
_CORRELATION = "What names the flow that the message belongs to."
_ANSWERED = "The correlation of the request, as it came."


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {**_TEXT, **more, "description": description}


_ATTRIBUTES: Mapping[str, dict[str, Any]] = {
    "specversion": _text("The version of CloudEvents.", const="1.0"),
    "id": _text("The same for every resending and every attempt."),
    "source": _text("Who has sent it: application/instance/actor."),
    "type": _text("The kind of event: spa-dat.message, unless the sender names one."),
}
_FLOW: Mapping[str, dict[str, Any]] = {
    "correlationid": _text(_CORRELATION),
    "causationid": _text("The id of the message whose handling caused this one."),
}
_GIVEN: Mapping[str, dict[str, Any]] = {
    "subject": _text("What the event is about, if the sender says so."),
    "dataschema": _text("The schema of the payload, if the sender says so."),
    "partitionkey": _text("What the sender says that events with the same key have in common."),
}
_TRACE: Mapping[str, dict[str, Any]] = {
    "traceparent": _text("W3C Trace Context."),
    "tracestate": _text("W3C Trace Context."),
}
_ON_MQTT = {
    **_ATTRIBUTES,
    "time": _text("When it was published.", format="date-time"),
    "key": _text("Messages with the same key stay in order."),
    **_FLOW,
    **_GIVEN,
    **_TRACE,
}
_ON_KAFKA = {
    "content-type": _text("The format of the value."),
    **{f"ce_{name}": schema for name, schema in {**_ATTRIBUTES, **_FLOW, **_GIVEN}.items()},
    "ce_subject": _text(
        "The whole address, if the topic alone does not tell it; else what the event is about, if"
        " the sender says so."
    ),
    "ttl_ms": _text("Milliseconds after the timestamp until it expires.", pattern="^[0-9]+$"),
    **_TRACE,
}
_REQUEST_ON_KAFKA = {
    "reply_to": _text("The topic for the reply."),
    "spa_reply_subject": _text("The whole address for the reply, if the topic does not tell it."),
    "correlation_id": _text("What tells the reply from others; the reply repeats it."),
}
_CHAIN = {"spa_chain": _text("The actors that wait for the reply, outermost first, with commas.")}
_REPLY = {"spa_reply": _text("It is a reply.", const="1")}
_ERROR = {"spa_error": _text("The code of the error; the payload is its text.")}


@dataclass(frozen=True)
class DescribedChannel:
    """Where messages are on a bus: a topic, or all topics that match a filter.

    Attributes:
        name: for the channel, which others may have as well.
        pattern: the topics on the broker; places with the same one are the same.
        address: with a parameter in braces for each level that varies; None if it is not known.
        title: as the application writes it.
        parameters: the descriptions of the parameters, by name.
        note: what is to be said about it; None for nothing.
        key: what the key of a record is; None if nothing is known about it.
    """

    name: str
    pattern: str
    address: str | None
    title: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    key: str | None = None


class DescribedBus:
    """A bus of which nothing is known but its address.

    Args:
        name: of the server in the document.
        provider: opens it.
        identity: the application's.
    """

    headers_name = ""
    """The first part of the names of its headers' schemas; empty if nothing is known of them."""

    def __init__(self, name: str, provider: SocketProvider, identity: Identity) -> None:
        self.name = name
        self.provider = provider
        self.identity = identity

    @property
    def wire(self) -> str:
        """The format of messages that name none."""
        return str(getattr(self.provider.config, "wire", "cloudevents"))

    def server(self) -> dict[str, Any]:
        """Return the server."""
        parts = urlsplit(self.provider.address)
        host = parts.netloc.rpartition("@")[2] or parts.scheme
        return {"host": host, "protocol": parts.scheme or "unknown"}

    def security(self) -> dict[str, dict[str, Any]]:
        """Return how clients log in: security schemes by name."""
        return {}

    def places(self, filter_: TopicFilter) -> list[DescribedChannel]:
        """Return where the messages of a filter are."""
        return [_place(filter_, "/")]

    def inbox(self) -> DescribedChannel:
        """Return where the replies to requests of the application arrive."""
        return DescribedChannel("reply-inbox", "reply-inbox", None, "The application's reply inbox")

    @property
    def headers(self) -> Mapping[str, Any]:
        """The schemas of the headers that any message may have, by name; see `headers_name`."""
        return {}

    def more_headers(self, role: Role) -> Mapping[str, Any]:
        """Return the schemas of those that only messages of one kind have."""
        return {
            "event": {},
            "request": _CHAIN,
            "reply": _REPLY,
            "error": {**_REPLY, **_ERROR},
        }[role]

    def correlation(self, role: Role) -> dict[str, Any] | None:
        """Return where the correlation id of a message is; None if that is no header."""
        return None

    def reply_location(self) -> str | None:
        """Return the header of a request that says where the reply goes; None if it is none."""
        return None

    def channel_binding(self, place: DescribedChannel) -> dict[str, Any]:
        """Return what is special about a channel, by protocol."""
        return {}

    def operation_binding(
        self, spec: Spec[Any], direction: Direction, *, request: bool
    ) -> dict[str, Any]:
        """Return what is special about an operation, by protocol."""
        return {}

    def message_binding(
        self, content: DescribedPayload, role: Role, place: DescribedChannel
    ) -> dict[str, Any]:
        """Return what is special about a message, by protocol."""
        return {}

    def _shares(self, spec: Spec[Any]) -> bool:
        return (spec.options.deliver or self.provider.default_deliver) == "share"

    def _subscription(self, spec: Spec[Any]) -> str:
        return spec.options.subscription or spec.name


class _OnLevels(DescribedBus):
    """A bus with user properties and topics of levels: MQTT, and the one in memory."""

    def inbox(self) -> DescribedChannel:
        named = not self.identity.ephemeral
        first = self.identity.application if named else "{application}"
        parameters = {} if named else {"application": "A random name, new in every run."}
        return DescribedChannel(
            name="reply-inbox",
            pattern=reply_filter(self.identity.application),
            address=f"{RESERVED}/reply/{first}/{{run}}/{{correlation}}",
            title="The application's reply inbox",
            parameters={
                **parameters,
                "run": "Random, new in every run of the application.",
                "correlation": "Random, new for every request.",
            },
        )

    @property
    def headers(self) -> Mapping[str, Any]:
        return _ON_MQTT

    def correlation(self, role: Role) -> dict[str, Any] | None:
        if role in ("reply", "error"):
            return None
        return {"location": "$message.header#/correlationid", "description": _CORRELATION}


class _InMemory(_OnLevels):
    headers_name = "memory"

    def server(self) -> dict[str, Any]:
        config = self.provider.config
        assert isinstance(config, MemoryConfig)
        return {
            "host": config.name or "memory",
            "protocol": "memory",
            "description": "A broker inside the process, which nobody else can connect to.",
        }


class _OnMqtt(_OnLevels):
    headers_name = "mqtt"

    @property
    def _config(self) -> MqttConfig:
        config = self.provider.config
        assert isinstance(config, MqttConfig)
        return config

    def server(self) -> dict[str, Any]:
        config = self._config
        notes: list[str] = []
        found: dict[str, Any] = {"host": f"{bracketed(config.host)}:{config.effective_port}"}
        if config.unix_socket is not None:
            found["host"] = "localhost"
            notes.append(f"Over the Unix socket {config.unix_socket}.")
        if config.websocket_path is not None:
            found["pathname"] = config.websocket_path
            notes.append("Over websockets.")
        found["protocol"] = "secure-mqtt" if config.tls else "mqtt"
        found["protocolVersion"] = "5"
        if notes:
            found["description"] = " ".join(notes)
        binding: dict[str, Any] = {
            "cleanSession": self.identity.ephemeral,
            "keepAlive": config.keepalive,
        }
        if not self.identity.ephemeral:
            binding["sessionExpiryInterval"] = config.session_expiry
        if config.will is not None:
            # Without its text, which is the application's business.
            binding["lastWill"] = {
                "topic": config.will.topic,
                "qos": config.will.qos,
                "retain": config.will.retain,
            }
        found["bindings"] = {"mqtt": {**binding, **_MQTT_BINDING}}
        return found

    def security(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if self._config.username is not None or self._config.password is not None:
            found["userPassword"] = {"type": "userPassword"}
        if self._config.tls_cert is not None:
            found["clientCertificate"] = {"type": "X509"}
        return found

    def operation_binding(
        self, spec: Spec[Any], direction: Direction, *, request: bool
    ) -> dict[str, Any]:
        qos = spec.options.qos if direction == "receive" else None
        binding: dict[str, Any] = {"qos": self.provider.default_qos if qos is None else qos}
        if direction == "receive" and self._shares(spec) and not self.identity.ephemeral:
            # The specification has no place for it.
            binding["x-spa-dat-share"] = self.identity.group_of(self._subscription(spec))
        return {"mqtt": {**binding, **_MQTT_BINDING}}

    def message_binding(
        self, content: DescribedPayload, role: Role, place: DescribedChannel
    ) -> dict[str, Any]:
        binding: dict[str, Any] = {}
        if content.content_type == "text/plain":
            binding["payloadFormatIndicator"] = 1
        if role == "request":
            binding["responseTopic"] = _text("The topic for the reply; without it there is none.")
        if role != "event":
            why = "The reply repeats it." if role == "request" else _ANSWERED
            binding["correlationData"] = _text(why)
        return {"mqtt": {**binding, **_MQTT_BINDING}} if binding else {}


class _OnKafka(DescribedBus):
    headers_name = "kafka"

    @property
    def _config(self) -> KafkaConfig:
        config = self.provider.config
        assert isinstance(config, KafkaConfig)
        return config

    def server(self) -> dict[str, Any]:
        servers = self._config.servers.split(",")
        found: dict[str, Any] = {
            "host": servers[0] if len(servers) == 1 else "{bootstrap}",
            "protocol": "kafka-secure" if self._config.tls else "kafka",
        }
        if len(servers) > 1:
            found["variables"] = {
                "bootstrap": {
                    "enum": servers,
                    "default": servers[0],
                    "description": "Any of these brokers tells where the others are.",
                }
            }
        return found

    def security(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if self._config.uses_token:
            note = "SASL OAUTHBEARER: the token is the password."
            found["oauthBearer"] = {"type": "oauth2", "flows": {}, "description": note}
        elif self._config.password is not None:
            kind = {"SCRAM-SHA-256": "scramSha256", "SCRAM-SHA-512": "scramSha512"}.get(
                self._config.sasl_mechanism, "plain"
            )
            found[kind] = {"type": kind}
        if self._config.tls_cert is not None:
            found["clientCertificate"] = {"type": "X509"}
        return found

    def places(self, filter_: TopicFilter) -> list[DescribedChannel]:
        config = self._config
        plain = _place(filter_, ".", config.prefix)
        try:
            selection = Names(config).selection((filter_.pattern,))
        except ConfigurationError as error:
            return [DescribedChannel(plain.name, plain.pattern, None, plain.title, note=str(error))]
        bound = {
            config.prefix + topic.name: pair for pair in config.topics.items() for topic in pair[1:]
        }
        found: list[DescribedChannel] = []
        for name in selection.names:
            if name not in bound:
                found.append(plain)
                continue
            address, topic = bound[name]
            note = (
                f"The address {address} is bound to this topic: the header ce_subject has the whole"
                " address."
            )
            key = None if topic.key is None else f"The level {{{topic.key}}} of {address}."
            found.append(
                DescribedChannel(name_of(topic.name), name, name, address, note=note, key=key)
            )
        if selection.pattern is not None:
            found.append(plain)
        return found

    def inbox(self) -> DescribedChannel:
        name = Names(self._config).replies(owner_of_topics(self.identity))
        return DescribedChannel("reply-inbox", name, name, "The application's reply inbox")

    @property
    def headers(self) -> Mapping[str, Any]:
        return _ON_KAFKA

    def more_headers(self, role: Role) -> Mapping[str, Any]:
        more = super().more_headers(role)
        if role == "request":
            return {**_REQUEST_ON_KAFKA, **more}
        return {"correlation_id": _text(_ANSWERED), **more} if role != "event" else more

    def correlation(self, role: Role) -> dict[str, Any] | None:
        if role in ("reply", "error"):
            return {"location": "$message.header#/correlation_id", "description": _ANSWERED}
        return {"location": "$message.header#/ce_correlationid", "description": _CORRELATION}

    def reply_location(self) -> str | None:
        return "$message.header#/reply_to"

    def channel_binding(self, place: DescribedChannel) -> dict[str, Any]:
        if place.address is None or place.parameters:
            return {}
        return {"kafka": {"topic": place.address, **_KAFKA_BINDING}}

    def operation_binding(
        self, spec: Spec[Any], direction: Direction, *, request: bool
    ) -> dict[str, Any]:
        if direction == "send" or self.identity.ephemeral:
            return {}
        prefix, name = self._config.prefix, self._subscription(spec)
        shared = prefix + self.identity.group_of(name)
        # The instance is in between, and the document is the same for all of them.
        before = re.escape(prefix + self.identity.application)
        each = f"^{before}\\.[A-Za-z0-9_-]+\\.{re.escape(name)}$"
        of_instance = _text("One for each instance.", pattern=each)
        group = {**_TEXT, "const": shared} if self._shares(spec) else of_instance
        return {"kafka": {"groupId": group, **_KAFKA_BINDING}}

    def message_binding(
        self, content: DescribedPayload, role: Role, place: DescribedChannel
    ) -> dict[str, Any]:
        if role in ("reply", "error"):
            return {}
        key = place.key or "Records with the same key stay in order."
        return {"kafka": {"key": _text(key), **_KAFKA_BINDING}}


def described(name: str, provider: SocketProvider, identity: Identity) -> DescribedBus:
    """Return a bus as the document has it; see `DescribedBus`."""
    return _kind(provider)(name, provider, identity)


def _kind(provider: SocketProvider) -> type[DescribedBus]:
    if isinstance(provider.config, MqttConfig):
        return _OnMqtt
    if isinstance(provider.config, KafkaConfig):
        return _OnKafka
    return _InMemory if isinstance(provider.config, MemoryConfig) else DescribedBus


def _place(filter_: TopicFilter, separator: str, prefix: str = "") -> DescribedChannel:
    captures = dict(filter_.captures)
    taken: dict[str, str] = dict.fromkeys(captures.values(), "One level of the topic.")
    levels: list[str] = []
    names: list[str] = []
    for index, level in enumerate(filter_.pattern.split("/")):
        if level not in ("+", "#"):
            levels.append(level)
            names.append(level)
            continue
        name = captures.get(index)
        if level == "#":
            name = unique("rest", taken)
            taken[name] = (
                f"All levels below, with {separator!r} between them, or none at all: the filter"
                " ends in '#'."
            )
        elif name is None:
            name = unique(f"level{index + 1}", taken)
            taken[name] = "Any one level of the topic: the filter has '+' there."
        levels.append(f"{{{name}}}")
        names.append(name)
    in_order = {name: taken[name] for name in names if name in taken and f"{{{name}}}" in levels}
    return DescribedChannel(
        name=name_of(".".join(names)),
        pattern=prefix + filter_.pattern,
        address=prefix + separator.join(levels),
        title=filter_.text,
        parameters=in_order,
        note=_HIDDEN.format("$" if separator == "/" else "__") if levels[0][:1] == "{" else None,
    )
