"""Attributes of spans, by the semantic conventions for messaging, with texts of limited length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry.util.types import AttributeValue

from ..._texts import encodable, escaped
from ...transports import CORRELATION_ID
from ..messaging._message import Message
from ..messaging._middleware import Outgoing
from ..metrics._conventions import system_of

__all__ = [
    "LONGEST_TEXT",
    "attributes_of_batch",
    "attributes_of_bus",
    "attributes_of_message",
    "attributes_of_outgoing",
]

LONGEST_TEXT = 256
"""The most characters of a text."""


def attributes_of_bus(address: str) -> Mapping[str, AttributeValue]:
    """Return what the address of a bus tells: which system it is, and which server."""
    scheme, _, rest = address.partition("://")
    attributes: dict[str, AttributeValue] = {"messaging.system": system_of(address)}
    if scheme == "memory" or "," in rest.partition("/")[0]:
        # Nobody, or several.
        return attributes
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return attributes
    if host:
        attributes["server.address"] = host
    if port is not None:
        attributes["server.port"] = port
    return attributes


def attributes_of_message(message: Message[bytes]) -> dict[str, AttributeValue]:
    """Return those of one received message."""
    attributes: dict[str, AttributeValue] = {"messaging.destination.name": _cut(message.topic)}
    if message.id is not None:
        attributes["messaging.message.id"] = _cut(message.id)
    if message.correlation_id is not None:
        attributes["messaging.message.conversation_id"] = _cut(message.correlation_id)
    if message.partition is not None:
        attributes["messaging.destination.partition.id"] = str(message.partition)
    if message.offset is not None:
        attributes["messaging.kafka.offset"] = message.offset
    if message.tombstone:
        attributes["messaging.kafka.message.tombstone"] = True
    return attributes


def attributes_of_batch(messages: Sequence[Message[bytes]]) -> dict[str, AttributeValue]:
    """Return those of received messages that are handled together."""
    attributes: dict[str, AttributeValue] = {"messaging.batch.message_count": len(messages)}
    topics = {message.topic for message in messages}
    if len(topics) == 1:
        attributes["messaging.destination.name"] = _cut(topics.pop())
    partitions = {message.partition for message in messages}
    if len(partitions) == 1 and None not in partitions:
        attributes["messaging.destination.partition.id"] = str(partitions.pop())
    return attributes


def attributes_of_outgoing(outgoing: Outgoing) -> dict[str, AttributeValue]:
    """Return those of a message on its way out."""
    actor = outgoing.source.split("/", 2)[-1]
    attributes: dict[str, AttributeValue] = {"spa_dat.actor": actor}
    if outgoing.kind == "reply":
        # Where to is nobody's concern but the requester's, and different in each run.
        attributes["messaging.destination.temporary"] = True
    else:
        attributes["messaging.destination.name"] = _cut(outgoing.topic)
    flow = outgoing.headers.get(CORRELATION_ID)
    if isinstance(flow, str):
        attributes["messaging.message.conversation_id"] = _cut(flow)
    return attributes


def _cut(text: str) -> str:
    return escaped(encodable(text[: LONGEST_TEXT + 1]), LONGEST_TEXT)
