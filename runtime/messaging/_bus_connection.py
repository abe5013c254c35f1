"""The connection to one bus, shared by all actors of an application that use it."""

from __future__ import annotations

import asyncio
import os
from asyncio import _get_running_loop
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import LONGEST_REMEMBERED, describe, escaped, quoted, reason_of
from ...errors import ActorStopped, ConfigurationError, ConnectionLost, OutboxFull, SpaDatError
from ...transports import (
    DEFAULT_TYPE,
    REPLY_HEADER,
    RESERVED,
    Bus,
    Envelope,
    SocketProvider,
    Surroundings,
    Tombstone,
    TopicFilter,
    TopicTrie,
    check_topic,
    is_reserved,
    on_failure,
)
from ..diagnostics._unclean_stop import LostPosts
from ..payloads._codec import TEXT, encode
from ._message import NO_HEADERS, OutgoingMessage, check_message, check_response_topic
from ._reply_addresses import ReplyAddresses
from ._requests import CHAIN_HEADER, ERROR_HEADER, LONGEST_CODE, LONGEST_TEXT, Requests
from ._turn import Turn, current_turn

__all__ = ["BusConnection"]

log = get_logger("spa_dat")

_MOST_TOPICS_REMEMBERED = 16_384


class HandlesTopic(Protocol):
    """Filters that come and go, of which only whether they match is of interest here."""

    def handles(self, topic: str) -> bool:
        """Whether one of the filters matches the topic."""


class BusConnection:
    """One application's use of one bus.

    Attributes:
        provider: what opened the bus.
        bus: the connection.
        max_received: the largest payload that handlers are given, in bytes.
        requests: the pending requests.
        lost_posts: is told of posts that failed and that nobody is waiting for.
        surroundings: identity, environment and counters of the application.
        filters: the declared filters of the application's actors on this bus.
        subscribed: their runtime subscriptions.
        reply_addresses: where replies may go.
        loop: the event loop that it belongs to.
        ended: whether the application has stopped, so that its sockets no longer work.
        failure: why the bus has failed for good, or what the application ended with.
    """

    def __init__(
        self,
        provider: SocketProvider,
        surroundings: Surroundings,
        reply_topics: Sequence[TopicFilter] | None = None,
    ) -> None:
        self.provider = provider
        self.reply_addresses = ReplyAddresses(provider, self.takes, reply_topics)
        self.filters: TopicTrie[None] = TopicTrie()
        self.subscribed: list[HandlesTopic] = []
        self.surroundings = surroundings
        self.bus: Bus = provider.open(surroundings)
        self.max_received = self.bus.max_received or self.bus.max_payload
        self.requests = Requests(self.bus, surroundings.environment.token, surroundings.stats)
        self.loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self.ended = False
        self.failure: BaseException | None = None
        identity = surroundings.identity
        self._own = f"{identity.application}/{identity.instance}/"
        self.lost_posts = LostPosts()
        self._log = LimitedLog(log)
        self._checked: dict[str, None] = {}

    async def start(self) -> None:
        """Connect and open the reply inbox; raises as `Bus.start` does."""
        await self.bus.start(self.requests.on_reply)

    async def close(self, failure: BaseException | None = None) -> None:
        """Give up what is pending, disconnect, and refuse any further use of the sockets.

        Args:
            failure: what the application ended with.
        """
        self.ended = True
        self.failure = self.failure or failure
        self.lost_posts.close()
        await self.bus.close()
        self.requests.close(self._has_ended())
        # Callbacks report what was given up.
        await asyncio.sleep(0)

    def check_use(self) -> None:
        """Refuse the use of a socket where it cannot work, instead of letting it fail later.

        Raises:
            ActorStopped: the application has ended.
            ConnectionLost: the application has failed; not raised in a handler.
            ConfigurationError: the socket belongs to the event loop of another thread, or the
                handler using it to another application.
        """
        turn = current_turn.get()
        if (
            not self.ended
            and self.failure is None
            and _get_running_loop() is self.loop
            and (turn is None or turn.actor.startswith(self._own))
        ):
            return
        name = self.surroundings.identity.application
        self.check_open()
        if self.failure is not None and turn is None:
            # A handler may still succeed with what it has to send.
            raise ConnectionLost(
                f"application {name!r} has failed and sends nothing more to"
                f" {self.provider.address}: {reason_of(self.failure)}"
            )
        if _get_running_loop() is not self.loop:
            raise ConfigurationError(
                f"a socket of application {name!r} was used outside the event loop that it belongs"
                " to: in another thread use app.sync_socket(), or the SyncSocket that a 'def'"
                " handler gets; in another event loop start a separate application"
            )
        if turn is not None and not turn.actor.startswith(self._own):
            raise ConfigurationError(
                f"actor {turn.actor!r} used a socket of another application, {name!r}: use the"
                " socket that the handler is given, or app.socket(socket_provider=...) of its own"
                " application for another bus"
            )

    def check_open(self) -> None:
        """Raise if the application has ended, or is running in another process. For any thread."""
        if self.ended:
            raise self._has_ended()
        if os.getpid() != self._process:
            raise ConfigurationError(
                f"a socket of application {self.surroundings.identity.application!r} was used in a"
                " forked process, where its event loop is not running: start an application there,"
                " or return the results to the process that has the socket"
            )

    def _has_ended(self) -> ActorStopped:
        name = self.surroundings.identity.application
        why = "" if self.failure is None else f" because of {reason_of(self.failure)}"
        return ActorStopped(
            f"application {name!r} has ended{why}, and this socket with it: get a new one when the"
            " application is running again"
        )

    def check(self, topic: str) -> None:
        """Raise ConfigurationError if a user may not publish to ``topic``."""
        if not isinstance(topic, str):
            raise ConfigurationError(f"topic {topic!r} is {type(topic).__name__}; give a str")
        if topic in self._checked:
            return
        check_topic(topic)
        if is_reserved(topic):
            raise ConfigurationError(
                f"topic {topic!r}: everything under {RESERVED}/ belongs to the runtime;"
                " choose another first level"
            )
        self.provider.check_topic(topic)
        if len(topic) > LONGEST_REMEMBERED:
            return
        if len(self._checked) >= _MOST_TOPICS_REMEMBERED:
            self._checked.clear()
        self._checked[topic] = None

    def envelope(
        self,
        source: str,
        message: OutgoingMessage,
        *,
        request: tuple[str, bytes, tuple[str, ...]] | None = None,
    ) -> Envelope:
        """Return an outgoing message, encoded, with its id, source and time.

        A message to the response topic of the request being handled becomes the reply to it.

        Args:
            source: ``application/instance/actor``.
            message: what to send.
            request: for a request, its response topic, its correlation data and the actors that
                wait for the reply.

        Raises:
            ConfigurationError: the topic, a header or an option cannot be sent.
            EncodeError: the payload cannot be encoded.
        """
        topic = message.topic
        payload, natural_type = encode(message.payload)
        turn = current_turn.get()
        given = message.headers
        headers: dict[str, str] = {}
        if given is not NO_HEADERS and given is not None:
            if not isinstance(given, Mapping):
                raise ConfigurationError(f"headers={given!r}: give a dict of str to str")
            headers.update(given)
        check_message(message, headers)
        response_topic, correlation = message.response_topic, None
        if request is not None:
            response_topic, correlation, chain = request
            if chain:
                headers[CHAIN_HEADER] = ",".join(chain)
        elif response_topic is not None:
            check_response_topic(response_topic)
        is_reply = (
            turn is not None and turn.request is not None and turn.request.response_topic == topic
        )
        if is_reply:
            assert turn is not None
            assert turn.request is not None
            correlation = turn.request.correlation
            headers[REPLY_HEADER] = "1"
        elif not isinstance(topic, str) or topic not in self._checked:
            self.check(topic)
        environment = self.surroundings.environment
        repeated = turn.publish_id(topic) if turn is not None else None
        envelope = Envelope(
            topic=topic,
            payload=payload,
            content_type=message.content_type or natural_type,
            id=repeated or environment.new_id(),
            source=source,
            type=message.type or DEFAULT_TYPE,
            time=environment.now(),
            key=message.key,
            headers=headers,
            response_topic=response_topic,
            correlation=correlation,
            expiry=message.expiry,
            qos=self.provider.default_qos if message.qos is None else message.qos,
            retain=message.retain,
            tombstone=isinstance(message.payload, Tombstone),
        )
        if is_reply:
            assert turn is not None
            # Refuse now a reply that cannot be sent, so that an error can still be the answer.
            self.provider.check_message(envelope)
            turn.answered = turn.answered or len(payload) <= self.bus.max_payload
        return envelope

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """Queue a publish; the message being handled is settled only after its confirmation."""
        posted = self.bus.post(envelope)
        turn = current_turn.get()
        if turn is not None and turn.active and turn.settles:
            turn.add(posted)
        else:
            on_failure(posted, self.lost_posts.report)
        return posted

    def reply(self, turn: Turn, source: str, value: object) -> None:
        """Answer the turn's request with a value, unless it has been answered already.

        The request is not settled before the reply is confirmed.

        Raises:
            EncodeError: the value cannot be encoded; the request is not answered.
        """
        if turn.answered:
            return
        payload, content_type = encode(value)
        self._post_reply(turn, source, payload, content_type, {REPLY_HEADER: "1"})
        turn.reply = turn.posts[-1]

    def reply_error(self, turn: Turn, source: str, code: str, text: str) -> None:
        """Answer the turn's request with a `RemoteError`, unless not even that can be sent.

        Raises:
            OutboxFull: it can be sent later.
        """
        headers = {REPLY_HEADER: "1", ERROR_HEADER: escaped(str(code))[:LONGEST_CODE]}
        payload = str(text)[:LONGEST_TEXT].encode("utf-8", "replace")
        payload = payload[: self.bus.max_payload].decode("utf-8", "ignore").encode()
        try:
            self._post_reply(turn, source, payload, TEXT, headers)
        except OutboxFull:
            raise
        except SpaDatError as refusal:
            # What the request contains makes it impossible to send even this answer.
            assert turn.request is not None
            self.surroundings.stats["replies.refused"] += 1
            topic = quoted(turn.request.topic)
            self._log.error("the request on %s cannot be answered: %s", topic, describe(refusal))

    def refuse(self, request: Envelope, source: str, code: str, text: str) -> None:
        """Answer a request that no handler gets with a `RemoteError`, on a best-effort basis."""
        turn = Turn(request.id, source, request)
        try:
            self.reply_error(turn, source, code, text)
        except OutboxFull:
            self.surroundings.stats["replies.refused"] += 1
        for posted in turn.posts:
            posted.add_done_callback(self.lost_posts.report)

    def _post_reply(
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
        environment = self.surroundings.environment
        envelope = Envelope(
            topic=request.response_topic,
            payload=payload,
            content_type=content_type,
            id=turn.publish_id(request.response_topic) or environment.new_id(),
            source=source,
            type=DEFAULT_TYPE,
            time=environment.now(),
            headers=headers,
            correlation=request.correlation,
            expiry=request.expiry,
        )
        turn.posts.append(self.bus.post(envelope))
        turn.answered = True

    def takes(self, topic: str) -> bool:
        """Whether an actor of this application subscribes to the topic."""
        return bool(self.filters.match(topic)) or any(
            subscription.handles(topic) for subscription in self.subscribed
        )
