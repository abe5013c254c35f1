"""Replies: answering requests, with values or errors, and where replies may go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, escaped, quoted, reason_of
from ...errors import (
    ConfigurationError,
    MessageTooLarge,
    OutboxFull,
    ProcessCrashed,
    RemoteError,
    SpaDatError,
)
from ...transports import (
    DEFAULT_TYPE,
    REPLY_HEADER,
    RESERVED,
    Bus,
    Envelope,
    SocketProvider,
    Surroundings,
    TopicFilter,
    check_topic,
    is_reserved,
)
from ...transports._topics import COMMAND
from ...transports._wire_formats import WireName
from ..diagnostics._unclean_stop import LostPosts
from ..options._custom_codecs import Codec
from ..options._retry_policy import Reject
from ..payloads._codec import TEXT, encode, encode_with
from ._carried_headers import with_carried
from ._limited_posts import LimitedPosts
from ._outgoing_message import OutgoingMessage
from ._requests import ERROR_HEADER, LONGEST_CODE, LONGEST_TEXT
from ._turn import Turn, current_turn, lasting_identity

if TYPE_CHECKING:
    from ._socket import Socket

__all__ = ["Replies", "ReplyAddresses", "error_answer", "reply"]

log = get_logger("spa_dat")

_LONGEST_ADDRESS = 1024
_LONGEST_CORRELATION = 1024
_MOST_REMEMBERED = 16_384
# On Kafka all that an inbox gets has one topic, and this tells what it is.
_COMMAND = COMMAND.encode()
# Bytes of an error's text where the bus does not allow more, and nothing else is sent with it.
_SHORTER = (100, 0)


class Replies:
    """Sends the replies of an application to the requests that it gets from one bus.

    Args:
        bus: the connection.
        surroundings: environment and counters of the application.
        lost_posts: is told of replies that failed and that nobody is waiting for.
        refusals: counts the answers to requests that no handler gets.
        wire: the format of the replies; None for that of the bus.
    """

    def __init__(
        self,
        bus: Bus,
        surroundings: Surroundings,
        lost_posts: LostPosts,
        refusals: LimitedPosts,
        wire: WireName | None = None,
    ) -> None:
        self._bus = bus
        self._stats = surroundings.stats
        self._environment = surroundings.environment
        self._lost_posts = lost_posts
        self._refusals = refusals
        self._wire = wire
        self._log = LimitedLog(log)

    def send(
        self,
        turn: Turn,
        source: str,
        value: object,
        codec: Codec | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer the turn's request with a value, unless it has been answered already.

        The request is not settled before the reply is confirmed.

        Args:
            turn: the attempt at the request.
            source: ``application/instance/actor``.
            value: the reply; None is an empty one.
            codec: encodes it; None for the runtime's own formats.
            headers: names and values for the requester; becomes those of the reply.

        Raises:
            EncodeError: the value cannot be encoded; the request is not answered.
        """
        if turn.answered:
            return
        if codec is None or value is None:
            payload, content_type = encode(value)
        else:
            payload, content_type = encode_with(codec, value), codec.content_type
        if headers is None:
            headers = {REPLY_HEADER: "1"}
        else:
            headers[REPLY_HEADER] = "1"
        self._post(turn, source, payload, content_type, headers)
        turn.reply = turn.posts[-1]

    def send_error(self, turn: Turn, source: str, code: str, text: str) -> None:
        """Answer the turn's request with a `RemoteError`, unless not even that can be sent.

        Raises:
            OutboxFull: it can be sent later.
        """
        headers = {REPLY_HEADER: "1", ERROR_HEADER: escaped(str(code))[:LONGEST_CODE]}
        payload = str(text)[:LONGEST_TEXT].encode("utf-8", "replace")
        refusal: SpaDatError
        for most in (None, *_SHORTER):
            cut = payload[: self._bus.max_payload if most is None else most]
            cut = cut.decode("utf-8", "ignore").encode()
            try:
                if most is None:
                    self._post(turn, source, cut, TEXT, headers)
                else:
                    self._post_bare(turn, cut, headers)
            except OutboxFull:
                raise
            except MessageTooLarge as error:
                refusal = error
            except SpaDatError as error:
                refusal = error
                break
            else:
                return
        # What the request contains makes it impossible to send even this answer.
        assert turn.request is not None
        self._stats["replies.refused"] += 1
        topic = quoted(turn.request.topic)
        self._log.error("the request on %s cannot be answered: %s", topic, describe(refusal))

    def refuse(self, request: Envelope, source: str, code: str, text: str) -> bool:
        """Answer a request that no handler is to get with a `RemoteError`.

        Returns:
            False if there is no room for the answer now.
        """
        if self._refusals.full:
            return False
        turn = Turn(lasting_identity(request), source, request)
        try:
            self.send_error(turn, source, code, text)
        except OutboxFull:
            return False
        for posted in turn.posts:
            self._refusals.add(posted)
            posted.add_done_callback(self._lost_posts.report)
        return True

    def _post(
        self,
        turn: Turn,
        source: str,
        payload: bytes,
        content_type: str | None,
        headers: dict[str, str],
    ) -> None:
        request = turn.request
        assert request is not None
        assert request.response_topic is not None
        envelope = Envelope(
            topic=request.response_topic,
            payload=payload,
            content_type=content_type,
            id=turn.publish_id(request.response_topic) or self._environment.new_id(),
            source=source,
            type=DEFAULT_TYPE,
            time=self._environment.now(),
            headers=with_carried(headers, turn.carried()),
            correlation=request.correlation,
            expiry=request.expiry,
        )
        self._hand_over(turn, envelope)

    def _post_bare(self, turn: Turn, payload: bytes, headers: dict[str, str]) -> None:
        """Answer with nothing but what the requester needs, as the bus allows no more."""
        request = turn.request
        assert request is not None
        assert request.response_topic is not None
        envelope = Envelope(
            topic=request.response_topic,
            payload=payload,
            headers=headers,
            correlation=request.correlation,
            expiry=request.expiry,
        )
        self._hand_over(turn, envelope)

    def _hand_over(self, turn: Turn, envelope: Envelope) -> None:
        if self._wire is not None:
            envelope = msgspec.structs.replace(envelope, wire=self._wire)
        turn.posts.append(self._bus.post(envelope))
        turn.answered = True


async def reply(
    socket: Socket, turn: Turn, payload: object, headers: Mapping[str, str | None] | None
) -> None:
    """Answer the turn's request for ``message.reply``, and wait for the confirmation.

    Args:
        socket: of the actor that has got the request.
        turn: the attempt at the request.
        payload: as for `Socket.publish`.
        headers: names and values for the requester.
    """
    request = turn.request
    assert request is not None
    assert request.response_topic is not None
    message = OutgoingMessage(topic=request.response_topic, payload=payload, headers=headers or {})
    # A handler may keep a request and answer it while it handles another message.
    token = current_turn.set(turn)
    before = turn.answered
    try:
        await socket.publish(message)
    except MessageTooLarge:
        # The error can still be the answer.
        turn.answered = before
        raise
    finally:
        current_turn.reset(token)


def error_answer(error: BaseException) -> tuple[str, str]:
    """Return code and text of the answer to a request whose handler has raised ``error``."""
    if isinstance(error, RemoteError):
        return error.code, error.text
    if isinstance(error, Reject):
        return "rejected", describe(error)
    if isinstance(error, ProcessCrashed):
        return "crashed", describe(error)
    return "failed", reason_of(error)


class ReplyAddresses:
    """The rules for where the replies of one application may go on one bus.

    Args:
        provider: what opened the bus.
        takes: whether an actor of the application subscribes to a topic.
        reply_topics: filters for where replies may go; None for anywhere. Actors may have their
            own.
    """

    def __init__(
        self,
        provider: SocketProvider,
        takes: Callable[[str], bool],
        reply_topics: Sequence[TopicFilter] | None,
    ) -> None:
        self._provider = provider
        self._takes = takes
        self._reply_topics = reply_topics
        # All but the last level of addresses that may be used.
        self._prefixes: dict[str, None] = {}

    def problem(
        self, envelope: Envelope, reply_topics: Sequence[TopicFilter] | None = None
    ) -> str | None:
        """Return why the response topic of a received message must not be used; None if it may.

        It comes from whoever sent the message, so it is checked as hostile input. A requester must
        not reach further with this application's rights than with their own: no actor of the
        application is ever sent a reply that somebody else has asked for.

        Args:
            envelope: the message.
            reply_topics: filters for where the handling actor may reply; None for those of the
                application.
        """
        address = envelope.response_topic
        if address is None:
            return None
        if REPLY_HEADER in envelope.headers:
            return "the message is itself a reply"
        if len(address) > _LONGEST_ADDRESS:
            return f"it is {len(address)} characters long; {_LONGEST_ADDRESS} are allowed"
        if envelope.correlation is not None and len(envelope.correlation) > _LONGEST_CORRELATION:
            return (
                f"its correlation data has {len(envelope.correlation)} bytes;"
                f" {_LONGEST_CORRELATION} are allowed"
            )
        if envelope.correlation == _COMMAND:
            return "its correlation data is that of the commands of operators"
        prefix, _, last = address.rpartition("/")
        if prefix in self._prefixes and _is_plain(last):
            return None
        try:
            check_topic(address)
            self._provider.check_topic(address)
        except ConfigurationError as error:
            return str(error)
        if is_reserved(address):
            why = _why_no_inbox(address)
            if why is None and _is_plain(last):
                if len(self._prefixes) >= _MOST_REMEMBERED:
                    self._prefixes.clear()
                self._prefixes[prefix] = None
            return why
        if self._takes(address):
            return "an actor of this application would get the reply"
        allowed = self._reply_topics if reply_topics is None else reply_topics
        if allowed is not None and not any(filter_.matches(address) for filter_ in allowed):
            return "reply_topics does not include it"
        return None


def _why_no_inbox(address: str) -> str | None:
    """Return why an address of the runtime's own is no inbox for replies; None if it is."""
    if not address.startswith(f"{RESERVED}/reply/"):
        return f"it is under {RESERVED}/"
    if address.endswith(f"/{COMMAND}"):
        return "it is that of the commands of operators"
    return None


def _is_plain(level: str) -> bool:
    return level.isascii() and level.isalnum()
