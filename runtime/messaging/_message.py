"""Received messages, as handlers get them."""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec

from ...errors import ConfigurationError
from ...transports import Envelope
from ._carried_headers import correlation_id_of

__all__ = ["NO_HEADERS", "Message", "Reply"]

T = TypeVar("T")

Reply = Callable[[object, Mapping[str, str | None] | None], Coroutine[Any, Any, None]]
"""Sends a payload, with headers, as the reply to the message at hand."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
"""The headers of a message without any."""

# What most messages do not have, other than on Kafka; see `Message.of`.
_REST_BY_DEFAULT = (False, False, None, None, None, ())


class Message(msgspec.Struct, Generic[T], frozen=True, kw_only=True, eq=False):
    """A received message, its payload decoded to the type that the handler asked for.

    Attributes:
        payload: the decoded payload.
        topic: the concrete topic it was published on.
        id: stays the same over redelivery and resending. If the sender gave none, the message's
            position on buses that number their messages (``topic/partition/offset``), else None.
        key: what the sender grouped it by.
        headers: everything else that the sender attached.
        time: when it was sent, in seconds since 1970 (UTC); None if the sender did not say.
        retained: whether it is the topic's last value, kept from before the subscription began.
        redelivered: whether the bus says that it has sent this message before.
        attempt: the number of this attempt at it, from 1.
        response_topic: where a reply is expected; None if it is not a request.
        partition: where it is stored, on buses with partitions.
        offset: its number in the partition.
        raw: the payload as received.
        content_type: MIME type of the payload; None if the sender gave none.
        source: who sent it: ``application/instance/actor`` for senders that use this package.
        type: what kind of event it is, in the sender's terms; ``spa-dat.message`` if a sender that
            uses this package gave none; None if another gave none.
        correlation_id: the id of the flow that it belongs to, if the sender named one: the
            attribute ``correlationid``, or else the correlation data, if it is text.
        tombstone: whether it has no payload at all and so deletes its key (Kafka).
        raw_key: the key as bytes, as received, even if it is not text (Kafka).
        raw_headers: all headers as pairs of name and bytes, in order: on Kafka as received,
            including repeated ones and those that hold other attributes; the bytes are None for a
            header without a value.
    """

    payload: T
    topic: str
    id: str | None = None
    key: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    time: float | None = None
    retained: bool = False
    redelivered: bool = False
    attempt: int = 1
    response_topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    raw: bytes = b""
    content_type: str | None = None
    source: str | None = None
    type: str | None = None
    correlation_id: str | None = None
    tombstone: bool = False
    _reply: Reply | None = None
    _raw_key: bytes | None = None
    _raw_headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def raw_key(self) -> bytes | None:
        if self._raw_key is None and self.key is not None:
            return self.key.encode("utf-8", "backslashreplace")
        return self._raw_key

    @property
    def raw_headers(self) -> tuple[tuple[str, bytes | None], ...]:
        return self._raw_headers or tuple(
            (name, text.encode("utf-8", "backslashreplace")) for name, text in self.headers.items()
        )

    @staticmethod
    def of(
        envelope: Envelope, payload: Any, *, attempt: int = 1, reply: Reply | None = None
    ) -> Message[Any]:
        """Return the message in an envelope.

        Args:
            envelope: as it came from the bus.
            payload: its payload, decoded.
            attempt: the number of this attempt at it, from 1.
            reply: sends the reply; None if the message cannot be answered.
        """
        # With more than 15 keywords Python makes a dict of them, which takes longer than the rest.
        message = Message(
            payload=payload,
            topic=envelope.topic,
            id=envelope.identity,
            key=envelope.key,
            # A copy: what a handler changes must not show in other actors, in the next attempt or
            # in a dead letter.
            headers=dict(envelope.headers) if envelope.headers else NO_HEADERS,
            time=envelope.time,
            redelivered=envelope.redelivered,
            attempt=attempt,
            response_topic=envelope.response_topic,
            raw=envelope.payload,
            content_type=envelope.content_type,
            source=envelope.source,
            type=envelope.type,
            correlation_id=correlation_id_of(envelope),
            _reply=reply,
        )
        retained, tombstone = envelope.retain, envelope.tombstone
        partition, offset = envelope.partition, envelope.offset
        raw_key, raw_headers = envelope.raw_key, envelope.raw_headers
        rest = (retained, tombstone, partition, offset, raw_key, raw_headers)
        if rest == _REST_BY_DEFAULT:
            return message
        return msgspec.structs.replace(
            message,
            retained=retained,
            tombstone=tombstone,
            partition=partition,
            offset=offset,
            _raw_key=raw_key,
            _raw_headers=raw_headers,
        )

    def reply(
        self, payload: object, *, headers: Mapping[str, str | None] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Answer the request; await it, which waits until the broker has confirmed the reply.

        For ``async def`` handlers; a ``def`` handler returns its reply.

        Args:
            payload: as for `Socket.publish`.
            headers: names and values for the requester.

        Raises:
            ConfigurationError: the message is not a request, or no event loop is running here.
            EncodeError: the payload cannot be encoded.
            TransportError: as `Socket.publish` does.
        """
        if self._reply is None:
            if self.response_topic is None:
                raise ConfigurationError(
                    f"the message on {self.topic!r} cannot be answered: it is not a request that"
                    " may get a reply; check message.response_topic before calling reply()"
                )
            raise ConfigurationError(
                f"the message on {self.topic!r} cannot be answered with reply() here: that is for"
                " handlers that answer requests; register this one with replies=True, or return the"
                " reply and annotate what is returned (handlers of batches and middleware have no"
                " reply())"
            )
        if _get_running_loop() is None:
            raise ConfigurationError(
                f"reply() to the message on {self.topic!r} was called in a thread, where nothing"
                " would await it: return the reply from the handler, or write it with async def"
            )
        return self._reply(payload, headers)

    def __repr__(self) -> str:
        return f"<Message {self.topic!r} id={self.id!r} {len(self.raw)} bytes>"
