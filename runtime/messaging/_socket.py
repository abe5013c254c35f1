"""The socket: publishing, requesting and subscribing from a handler."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Never, Protocol, TypeVar, Unpack, get_args, get_origin, overload

import msgspec

from ..._texts import quoted
from ..._unknown_names import keywords_of, unexpected_keyword
from ...actors import chain_names
from ...errors import ActorStopped, ConfigurationError, DecodeError, RemoteError
from ...transports import Envelope
from ...transports._wire_formats import WireName
from ..options._custom_codecs import Codec
from ..options._option_checks import check_seconds, check_wire, is_number
from ..payloads._codec import Decoder
from ._bus_connection import BusConnection
from ._message import NO_HEADERS, Message
from ._outgoing_message import OutgoingMessage, PublishOptions, message_meant, topic_meant
from ._requests import MOST_REPLIES, ManyOptions, RequestOptions, remote_error
from ._typed_topic import P, R, Topic, filter_meant

__all__ = ["DEFAULT_TIMEOUT", "NOT_GIVEN", "RuntimeSubscriptions", "Socket"]

DEFAULT_TIMEOUT = 30.0
"""Seconds that `publish` and `request` wait at most by default."""

NOT_GIVEN: Any = object()
"""Stands for ``reply=`` where a request does not say: the topic or the default decides."""

T = TypeVar("T")


class RuntimeSubscriptions(Protocol):
    """The filters that an actor adds and removes while it is running."""

    async def add(self, pattern: str) -> None: ...

    async def remove(self, pattern: str) -> None: ...


class Socket:
    """Publish-subscribe and request-reply for one actor on one bus.

    Handlers get it injected; there is no need to create one.

    Args:
        connection: the bus.
        source: ``application/instance/actor``.
        subscriptions: the actor's runtime subscriptions.
        codec: that of the actor or application, for what names no other.
        wire: the format of the actor; None for that of the bus.
    """

    def __init__(
        self,
        connection: BusConnection,
        source: str,
        subscriptions: RuntimeSubscriptions,
        codec: Codec | None = None,
        wire: WireName | None = None,
    ) -> None:
        self._connection = connection
        self._check_use = connection.check_use
        self._send: Callable[..., Awaitable[None]] = connection.publish
        self._post: Callable[[Envelope], object] = connection.post
        self._source = source
        self._subscriptions = subscriptions
        self._codec = codec
        self._wire = wire

    def revoke(self) -> None:
        """Make every further call raise ActorStopped: the handler that has it was given up."""
        self._check_use = _refuse

    def check_open(self) -> None:
        """Raise if its application has ended, or is running in another process. For any thread."""
        self._connection.check_open()

    @overload
    async def publish(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    @overload
    async def publish(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    async def publish(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> None:
        """Publish, and return when the broker has confirmed it.

        Args:
            topic: the topic to publish on, or a whole message from ``message_builder``.
                Type checkers compare the payload with the type of a `Topic`.
            payload: bytes are sent as they are, a str as text, None as nothing, everything else as
                JSON; if the actor or application has a codec, all but None as that says.
            timeout: seconds to wait for the confirmation.
            options: ``key``, ``headers``, ``content_type``, ``codec``, ``retain``, ``qos``,
                ``expiry`` and others; see `PublishOptions`.

        Raises:
            ConfigurationError: the topic or an option is wrong, or the socket belongs to another
                application, thread or event loop.
            ActorStopped: its application has ended.
            EncodeError: the payload cannot be encoded.
            MessageTooLarge, OutboxFull: at once.
            PublishRefused, NotAuthorised: the broker's answer.
            PublishNotSent: there was no connection within ``timeout``; the message was not sent and
                will not be.
            PublishUnknown: sent, but not confirmed within ``timeout``.
        """
        message = message_meant("publish", topic, payload, options)
        self._check_use()
        check_seconds("publish", "timeout", timeout, zero=True)
        envelope = self._connection.envelope(self._source, message, self._codec, self._wire)
        await self._send(envelope, timeout=timeout)

    @overload
    def post(self, topic: Topic[P, Any], payload: P, **options: Unpack[PublishOptions]) -> None: ...

    @overload
    def post(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    def post(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        **options: Unpack[PublishOptions],
    ) -> None:
        """Publish without waiting; the options are those of `publish`.

        The message being handled is settled only when its posts are confirmed. If the broker
        refuses one, the message becomes a dead letter.

        Raises:
            ConfigurationError, ActorStopped, EncodeError, MessageTooLarge, OutboxFull: at once.
                `drain` prevents the last.
        """
        message = message_meant("post", topic, payload, options)
        self._check_use()
        envelope = self._connection.envelope(self._source, message, self._codec, self._wire)
        self._post(envelope)

    async def drain(self) -> None:
        """Wait until there is room for posts: until at most half of the bus's ``outbox`` is used.

        Call it between posts in a loop that posts a lot; it returns at once while there is room.
        Unlike `publish` it does not wait for confirmations.

        Raises:
            ActorStopped, ConfigurationError: as for `publish`.
        """
        self._check_use()
        await self._connection.bus.room()

    async def subscribe(self, pattern: str | Topic[Any, Any]) -> None:
        """Also give this actor the messages that match the filter, as long as it is running.

        Returns when the subscription is active. It belongs to this instance alone, nothing is kept
        for it while the connection is lost, and it ends with the actor.

        Args:
            pattern: an MQTT filter; ``+`` matches one level, ``#`` all levels below.

        Raises:
            ConfigurationError: the filter is wrong, or no handler of the actor can take it.
            NotAuthorised: the broker refuses it.
        """
        self._check_use()
        await self._subscriptions.add(filter_meant(pattern))

    async def unsubscribe(self, pattern: str | Topic[Any, Any]) -> None:
        """Undo `subscribe`; returns when the subscription has ended.

        Raises:
            ConfigurationError: there is no such runtime subscription.
        """
        self._check_use()
        await self._subscriptions.remove(filter_meant(pattern))

    @overload
    async def request(
        self, topic: Topic[P, R], payload: P, **options: Unpack[RequestOptions]
    ) -> R: ...

    @overload
    async def request(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        **options: Unpack[RequestOptions],
    ) -> bytes: ...

    @overload
    async def request(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        reply: type[T],
        **options: Unpack[RequestOptions],
    ) -> T: ...

    @overload
    async def request(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        *,
        reply: type[T],
        **options: Unpack[RequestOptions],
    ) -> T: ...

    async def request(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        *,
        reply: Any = NOT_GIVEN,
        timeout: float = DEFAULT_TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        wire: WireName | None = None,
        **unknown: Never,
    ) -> Any:
        """Send a request and wait for its first reply.

        Args:
            topic: the topic to publish on, or a whole message from ``message_builder``.
            payload: as for `publish`.
            reply: the type to decode the reply to; ``Message[T]`` for the whole message. By default
                that of a `Topic`, else bytes.
            timeout: seconds; responders that get the request later ignore it.
            key: as for `publish`.
            headers: as for `publish`.
            wire: as for `publish`; the reply is expected in that format, too.

        Raises:
            RequestTimeout: no reply in time.
            RemoteError: the responder answered with an error.
            NoResponder: the bus says that nobody listens.
            DecodeError: the reply does not fit ``reply``.
            Others: as for `publish`.
        """
        if unknown:
            raise _unknown_option(Socket.request, unknown)
        reading = _reading_of(_reply_wanted("request", topic, reply), self._codec)
        (envelope,) = await self._request(topic, payload, key, headers, wire, timeout, 1)
        error = remote_error(envelope)
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame
        return self._read(envelope, reading)

    @overload
    async def request_many(
        self, topic: Topic[P, R], payload: P, **options: Unpack[ManyOptions]
    ) -> list[R | RemoteError]: ...

    @overload
    async def request_many(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        **options: Unpack[ManyOptions],
    ) -> list[bytes | RemoteError]: ...

    @overload
    async def request_many(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        reply: type[T],
        **options: Unpack[ManyOptions],
    ) -> list[T | RemoteError]: ...

    @overload
    async def request_many(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        *,
        reply: type[T],
        **options: Unpack[ManyOptions],
    ) -> list[T | RemoteError]: ...

    async def request_many(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        *,
        reply: Any = NOT_GIVEN,
        count: int | None = None,
        limit: int = MOST_REPLIES,
        timeout: float = DEFAULT_TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        wire: WireName | None = None,
        **unknown: Never,
    ) -> list[Any]:
        """Send a request and collect the replies of several responders.

        Args:
            topic: the topic to publish on, or a whole message from ``message_builder``.
            payload: as for `publish`.
            reply: the type to decode each reply to; by default that of a `Topic`, else bytes.
            count: return as soon as this many have arrived; None waits for the whole timeout and
                returns all that arrived.
            limit: the most replies that are kept if ``count`` is None. One more ends the wait, as
                do 16 MiB of replies: the last one returned is then a `RemoteError` with the code
                ``too-many-replies``.
            timeout: seconds.
            key: as for `publish`.
            headers: as for `publish`.
            wire: as for `publish`; the reply is expected in that format, too.

        Returns:
            The replies in the order in which they arrived; a responder's error is one of them.

        Raises:
            RequestTimeout: fewer than ``count`` replies in time.
            NoResponder, DecodeError: as for `request`.
            Others: as for `publish`.
        """
        if unknown:
            raise _unknown_option(Socket.request_many, unknown)
        if count is not None and not (isinstance(count, int) and count >= 1):
            raise ConfigurationError(
                f"request_many(count={count!r}): give 1 or more, or None for all"
            )
        if not is_number(limit) or not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"request_many(limit={limit!r}): give 1 or more")
        reading = _reading_of(_reply_wanted("request_many", topic, reply), self._codec)
        envelopes = await self._request(topic, payload, key, headers, wire, timeout, count, limit)
        return [remote_error(envelope) or self._read(envelope, reading) for envelope in envelopes]

    def _request(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object,
        key: str | None,
        headers: Mapping[str, str | None] | None,
        wire: WireName | None,
        timeout: float,
        wanted: int | None,
        limit: int = MOST_REPLIES,
    ) -> Coroutine[Any, Any, list[Envelope]]:
        self._check_use()
        check_seconds("request", "timeout", timeout)

        def make(response_topic: str, correlation: bytes) -> Envelope:
            return self._connection.envelope(
                self._source,
                message,
                self._codec,
                wire,
                request=(response_topic, correlation, chain_names()),
            )

        if isinstance(topic, OutgoingMessage):
            options: PublishOptions = {
                "key": key,
                "headers": headers,
                "wire": wire,
                "expiry": timeout,
            }
            message = message_meant("request", topic, payload, options)
            wire = message.wire
        else:
            # As message_meant(), without the cost of passing options on.
            message = OutgoingMessage(
                topic=topic_meant(topic),
                payload=payload,
                headers=NO_HEADERS if headers is None else headers,
                key=key,
                expiry=timeout,
                codec=topic.codec if isinstance(topic, Topic) else None,
                topic_filter=topic.unfilled if isinstance(topic, Topic) else None,
            )
        wire = self._wire if wire is None else wire
        if wire is not None:
            check_wire("request", wire, self._connection.provider)
        return self._connection.request(
            make, timeout=timeout, wanted=wanted, limit=limit, wire=wire
        )

    def _read(self, envelope: Envelope, reading: _Reading) -> Any:
        whole, decoder = reading
        try:
            if envelope.flaw is not None:
                raise DecodeError(envelope.flaw)
            value = decoder.decode(envelope.payload, envelope.content_type)
        except DecodeError as error:
            raise _reply_refusal(envelope, error) from error
        if not whole:
            return value
        if self._connection.reply_addresses.problem(envelope) is not None:
            envelope = msgspec.structs.replace(envelope, response_topic=None)
        return Message.of(envelope, value)


# Whether a whole message is wanted, and what decodes its payload.
_Reading = tuple[bool, Decoder[Any]]


def _reading_of(reply: Any, codec: Codec | None) -> _Reading:
    try:
        return _remembered_reading(reply, codec)
    except TypeError:
        # Annotated may contain something unhashable, and so may the codec.
        return _make_reading(reply, codec)


def _make_reading(reply: Any, codec: Codec | None) -> _Reading:
    whole = get_origin(reply) is Message
    return whole, Decoder.of(get_args(reply)[0] if whole else reply, codec)


_remembered_reading = functools.lru_cache(256)(_make_reading)


def _refuse() -> None:
    raise ActorStopped("the handler that this socket belongs to was given up; use it no longer")


def _unknown_option(call: Callable[..., object], unknown: Mapping[str, object]) -> TypeError:
    known = keywords_of(call)
    known.remove("self")
    return TypeError(unexpected_keyword(call.__name__, min(unknown), known))


def _reply_wanted(call: str, topic: object, reply: Any) -> Any:
    if reply is not NOT_GIVEN:
        return reply
    if not isinstance(topic, Topic):
        return bytes
    if topic.reply is None:
        raise ConfigurationError(
            f"{call}({topic!r}): the topic has no type of replies; add it, as in"
            " Topic[Order, Receipt](...), or give reply="
        )
    return topic.reply


def _reply_refusal(envelope: Envelope, error: DecodeError) -> DecodeError:
    """Return an error that says whose reply does not fit."""
    who = "the responder" if envelope.source is None else quoted(envelope.source, 200)
    hint = "" if envelope.payload else f"; {who} returned None, perhaps a 'return' is missing"
    return DecodeError(f"the reply of {who} cannot be used: {error}{hint}")
