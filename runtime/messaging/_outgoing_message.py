"""Outgoing messages: the options of a publish, their checks, and building a message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack, overload

import msgspec

from ..._texts import quoted
from ..._unknown_names import unexpected_keyword
from ...errors import ConfigurationError
from ...transports import Tombstone, check_topic
from ...transports._wire_formats import WireName
from ..options._custom_codecs import Codec, check_codec
from ..options._option_checks import is_number
from ..payloads._codec import encode, encode_as, encode_with, has_format_of
from ._message import NO_HEADERS
from ._turn import current_turn
from ._typed_topic import P, Topic

__all__ = [
    "MessageBuilder",
    "OutgoingMessage",
    "PublishOptions",
    "check_message",
    "check_response_topic",
    "encoded",
    "is_plain",
    "message_meant",
    "outgoing_message",
    "topic_meant",
]

_LONGEST_EXPIRY = 2**32
_WIRE_NAMES = frozenset({"id", "source", "type", "time", "specversion", "key"})
# Each alternative can match in one way only: a topic of 64 KB that contains text from a stranger
# must not take quadratic time.
_BRACES = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{[A-Za-z_][\w.\[\]'\":!]*\}")


class PublishOptions(TypedDict, total=False):
    """The options of a message to be sent.

    `Socket.publish` and `Socket.post` take them as keywords, as do the same methods of
    `SyncSocket`, ``message_builder`` and ``harness.publish``. A function of your own can pass them
    on with ``**options: Unpack[PublishOptions]``, which type checkers understand.

    Attributes:
        key: messages with the same key stay in order, also on a bus with partitions.
        headers: names and values for the receivers; on Kafka a value may be None.
        content_type: MIME type; None for the one that goes with the payload's type. If it is not
            that of the codec of the actor or application, that codec is not used.
        codec: encodes the payload, unless that is None, and gives it its content type, unless
            ``content_type`` does; None for the one in the type of a `Topic`, or else for that of
            the actor, or of the application, or for the runtime's own formats.
        wire: the format on the wire: ``spa-dat`` for that of spa-dat 0.4.0, or ``cloudevents``;
            None for that of the actor, or of the bus.
        type: the CloudEvents type, what kind of event it is, as in ``com.example.order.placed``;
            None for ``spa-dat.message``.
        retain: whether the broker keeps it as the topic's last value, for later subscribers.
        qos: 0 at most once, 1 at least once; None for the default of the bus, normally 1.
        expiry: seconds after which the broker may drop it undelivered; None for never.
    """

    key: str | None
    headers: Mapping[str, str | None] | None
    content_type: str | None
    codec: Codec | None
    wire: WireName | None
    type: str | None
    retain: bool
    qos: int | None
    expiry: float | None


_OPTIONS = frozenset(PublishOptions.__annotations__)


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message to be sent, as ``message_builder`` makes it; `Socket.publish` accepts it.

    Attributes:
        topic: the topic to publish on.
        payload: as for `Socket.publish`.
        response_topic: where the receivers shall send their replies.
        topic_filter: the text of the `Topic` that the topic was made from; None without one.

    The others are the `PublishOptions`.
    """

    topic: str
    payload: object = None
    response_topic: str | None = None
    content_type: str | None = None
    codec: Codec | None = None
    wire: WireName | None = None
    type: str | None = None
    headers: Mapping[str, str | None] = NO_HEADERS
    key: str | None = None
    retain: bool = False
    qos: int | None = None
    expiry: float | None = None
    topic_filter: str | None = None


def outgoing_message(
    call: str,
    topic: str,
    payload: object,
    options: PublishOptions,
    topic_filter: str | None = None,
) -> OutgoingMessage:
    """Return the message that the arguments of a call describe.

    Args:
        call: name of the function that was called, for errors.
        topic: the topic to publish on.
        payload: the message's.
        options: the other arguments of the call; the dict may be changed.
        topic_filter: the text of the `Topic` that the topic was made from.

    Raises:
        TypeError: an option does not exist.
    """
    if not options:
        # Most messages: one more keyword would cost all of them time.
        message = OutgoingMessage(topic=topic, payload=payload)
        return message if topic_filter is None else _named(message, topic_filter)
    if "headers" in options and options["headers"] is None:
        del options["headers"]
    if "response_topic" not in options and "topic_filter" not in options:
        try:
            message = OutgoingMessage(topic=topic, payload=payload, **options)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            return message if topic_filter is None else _named(message, topic_filter)
    raise _unknown_option(call, options)


def _named(message: OutgoingMessage, topic_filter: str) -> OutgoingMessage:
    return msgspec.structs.replace(message, topic_filter=topic_filter)


def message_meant(
    call: str,
    topic: str | Topic[Any, Any] | OutgoingMessage,
    payload: object,
    options: PublishOptions,
) -> OutgoingMessage:
    """Return the message that a call shall send, which may have been given as a whole message.

    The arguments are those of `outgoing_message`.

    Raises:
        TypeError: an option does not exist.
        ConfigurationError: as `topic_meant` does, or a whole message was given with a payload or
            an option other than ``expiry``.
    """
    if not isinstance(topic, OutgoingMessage):
        if not isinstance(topic, Topic):
            return outgoing_message(call, topic_meant(topic), payload, options)
        if topic.codec is not None:
            options.setdefault("codec", topic.codec)
        return outgoing_message(call, topic.address, payload, options, topic.unfilled)
    if not options.keys() <= _OPTIONS:
        raise _unknown_option(call, options)
    expiry = options.pop("expiry", None)
    given = [value for value in options.values() if value is not None and value is not False]
    if given or payload is not None:
        raise ConfigurationError(
            "a message from message_builder already has its payload and options; give them there"
        )
    return topic if expiry is None else msgspec.structs.replace(topic, expiry=expiry)


def _unknown_option(call: str, options: PublishOptions) -> TypeError:
    name = min(options.keys() - _OPTIONS)
    known = {"topic", "payload", *_OPTIONS} | ({"timeout"} if call == "publish" else set())
    return TypeError(unexpected_keyword(call, name, known))


class MessageBuilder:
    """Builds messages to be sent. Handlers get one injected as ``message_builder``."""

    __slots__ = ()

    @overload
    def __call__(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        response_topic: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> OutgoingMessage: ...

    @overload
    def __call__(
        self,
        topic: str | None,
        payload: object = None,
        *,
        response_topic: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> OutgoingMessage: ...

    def __call__(
        self,
        topic: str | Topic[Any, Any] | None,
        payload: object = None,
        *,
        response_topic: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> OutgoingMessage:
        """Return a message for `Socket.publish`.

        Args:
            topic: the topic to publish on.
            payload: as for `Socket.publish`.
            response_topic: where the receivers shall send their replies.
            options: see `PublishOptions`.

        Raises:
            ConfigurationError: the topic is None, as ``message.response_topic`` is for messages
                that are not requests.
        """
        if topic is None:
            raise ConfigurationError(
                "message_builder(topic=None): give a topic; message.response_topic is None when"
                " the message is not a request"
            )
        headers = options.get("headers") or NO_HEADERS
        if not isinstance(headers, Mapping):
            raise ConfigurationError(f"headers={quoted(headers)}: give a dict of names and values")
        # A copy: the caller may change them before the message is sent.
        options["headers"] = dict(headers)
        message = message_meant("message_builder", topic, payload, options)
        if response_topic is None:
            return message
        return msgspec.structs.replace(message, response_topic=response_topic)


def encoded(message: OutgoingMessage, default: Codec | None = None) -> tuple[bytes, str | None]:
    """Return the payload of a message that names a content type or a codec, and its content type.

    Args:
        message: what to send.
        default: the codec of a message that names none. It does not encode what is sent with a
            content type other than its own.

    Raises:
        ConfigurationError: the codec is none.
        EncodeError: the payload cannot be encoded.
    """
    codec, content_type = message.codec, message.content_type
    if codec is None and default is not None:
        codec = default if not content_type or has_format_of(default, content_type) else None
    if codec is None or message.payload is None or isinstance(message.payload, Tombstone):
        if not content_type:
            return encode(message.payload)
        return encode_as(message.payload, content_type), content_type
    check_codec("codec", codec)
    return encode_with(codec, message.payload), content_type or codec.content_type


def check_response_topic(address: str) -> None:
    """Raise ConfigurationError if no reply can be sent to the address."""
    try:
        check_topic(address)
    except ConfigurationError as error:
        raise ConfigurationError(f"response_topic: {error}") from None


def is_plain(message: OutgoingMessage) -> bool:
    """Return whether a message has no options, so that `check_message` has only headers to check.

    Most have none.
    """
    return (
        message.qos is None
        and message.expiry is None
        and message.key is None
        and message.content_type is None
        and message.type is None
        and message.response_topic is None
        and message.retain is False
    )


def check_message(
    message: OutgoingMessage, headers: Mapping[str, str | None], *, null_headers: bool
) -> None:
    """Raise ConfigurationError if an option or a header of a message cannot be sent.

    Args:
        message: the message.
        headers: its headers.
        null_headers: whether a header may have no value.
    """
    if message.qos not in (None, 0, 1):
        raise ConfigurationError(f"qos={message.qos!r}: give 0 (at most once) or 1 (at least once)")
    if not isinstance(message.retain, bool):
        raise ConfigurationError(f"retain={message.retain!r}: give True or False")
    if message.expiry is not None and not (
        is_number(message.expiry) and 0 < message.expiry < _LONGEST_EXPIRY
    ):
        raise ConfigurationError(
            f"expiry={message.expiry!r}: give seconds, more than 0 and less than {_LONGEST_EXPIRY}"
        )
    for option, text in (
        ("key", message.key),
        ("content_type", message.content_type),
        ("type", message.type),
        ("response_topic", message.response_topic),
    ):
        if text is not None and not isinstance(text, str):
            raise ConfigurationError(f"{option}={quoted(text)}: give a str or None")
    for name, value in headers.items():
        if value is None and isinstance(name, str) and not null_headers:
            raise ConfigurationError(
                f"header {quoted(name)}: None: this bus has no headers without a value, as Kafka"
                " has; give a str, or leave it out"
            )
        if not isinstance(name, str) or not isinstance(value, str | None):
            raise ConfigurationError(
                f"header {quoted(name)}: {quoted(value)}: names and values must be str"
            )
        if name.startswith("spa_") or name in _WIRE_NAMES:
            raise ConfigurationError(f"header {name!r} belongs to the runtime; choose another name")


def topic_meant(topic: str | Topic[Any, Any]) -> str:
    """Return the topic to publish on; in a str ``{{name}}`` stands for ``{name}``.

    Raises:
        ConfigurationError: it contains ``{name}``, unless that comes from the topic or the
            response topic of the message being handled; or a `Topic` is not a single address.
    """
    if not isinstance(topic, str):
        return topic.address if isinstance(topic, Topic) else topic
    if "{" not in topic:
        return topic

    turn = current_turn.get()

    def replace(found: re.Match[str]) -> str:
        if turn is not None and turn.addresses(found[0]):
            return found[0]
        if found[1] is None:
            raise ConfigurationError(
                f"topic {topic!r}: {found[0]} would be sent literally; write an f-string,"
                f" f{topic!r}, or {{{found[0]}}} if braces are meant"
            )
        return f"{{{found[1]}}}"

    return _BRACES.sub(replace, topic)
