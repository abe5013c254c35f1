"""The connection to one bus, shared by all actors of an application that use it."""

from __future__ import annotations

import asyncio
import os
from asyncio import _get_running_loop
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..._logs import get_logger
from ..._texts import LONGEST_REMEMBERED, reason_of
from ...errors import ActorStopped, ConfigurationError, ConnectionLost
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
from ...transports._wire_formats import WireName
from ..diagnostics._unclean_stop import LostPosts
from ..options._custom_codecs import Codec
from ..options._option_checks import check_wire
from ..payloads._codec import encode
from ._carried_headers import with_carried
from ._limited_posts import LimitedPosts
from ._message import NO_HEADERS
from ._outgoing_message import (
    OutgoingMessage,
    check_message,
    check_response_topic,
    encoded,
    is_plain,
)
from ._request_deadlocks import CHAIN_HEADER
from ._requests import MOST_REPLIES, Requests
from ._sent_replies import Replies, ReplyAddresses
from ._turn import current_turn, inherited

if TYPE_CHECKING:
    from ...transports._durable_outbox import DurableOutbox
    from ...transports._outbox_options import OutboxFile
    from ..metrics._measurements import Measurements

__all__ = ["BusConnection"]

log = get_logger("spa_dat")

_MOST_TOPICS_REMEMBERED = 16_384


class HandlesTopic(Protocol):
    """Filters that come and go, of which only whether they match is of interest here."""

    def handles(self, topic: str) -> bool:
        """Return whether one of the filters matches the topic."""


class Publishes(Protocol):
    """Sends an envelope; see `Bus.publish`."""

    async def __call__(self, envelope: Envelope, *, timeout: float) -> None: ...


class RequestsReplies(Protocol):
    """Sends a request; see `Requests.request`."""

    async def __call__(
        self,
        make: Callable[[str, bytes], Envelope],
        *,
        timeout: float,
        wanted: int | None,
        limit: int = MOST_REPLIES,
        wire: str | None = None,
    ) -> list[Envelope]: ...


class BusConnection:
    """One application's use of one bus.

    Attributes:
        provider: what opened the bus.
        bus: the connection.
        max_received: the largest payload that handlers are given, in bytes.
        requests: the pending requests.
        publish: sends an envelope; see `Bus.publish`.
        request: sends a request; see `Requests.request`.
        lost_posts: is told of posts that failed and that nobody is waiting for.
        refusals: counts the answers to requests that no handler gets.
        surroundings: identity, environment and counters of the application.
        filters: the declared filters of the application's actors on this bus, by their patterns.
        subscribed: their runtime subscriptions.
        replies: sends the replies to requests of others, in the format of the bus.
        reply_addresses: where replies may go.
        loop: the event loop that it belongs to.
        ended: whether the application has stopped, so that its sockets no longer work.
        replaying: the dead letters that are being replayed, by id, with the error if the message
            has failed again.
        failure: why the bus has failed for good, or what the application ended with.
        measurements: those of the application; None if it has no metrics.
    """

    def __init__(
        self,
        provider: SocketProvider,
        surroundings: Surroundings,
        reply_topics: Sequence[TopicFilter] | None = None,
        measurements: Measurements | None = None,
        outbox: OutboxFile | None = None,
    ) -> None:
        self.provider = provider
        self.measurements = measurements
        self.reply_addresses: ReplyAddresses = ReplyAddresses(provider, self.takes, reply_topics)
        self.filters: TopicTrie[str] = TopicTrie()
        self.subscribed: list[HandlesTopic] = []
        self.surroundings = surroundings
        self.bus: Bus = provider.open(surroundings)
        self._durable: DurableOutbox | None = None
        if outbox is not None:
            # Not at the top: it imports SQLite.
            from ...transports._durable_outbox import DurableOutbox

            self._durable = DurableOutbox(self.bus, provider, surroundings, outbox)
            self.bus = self._durable
        if measurements is not None:
            # Not at the top: most applications have no metrics.
            from ._measured_bus import MeasuredBus

            self.bus = MeasuredBus(self.bus, measurements, provider.address)
        self.max_received: int = self.bus.max_received or self.bus.max_payload
        self.requests: Requests = Requests(
            self.bus, surroundings.environment.token, surroundings.stats
        )
        # Without the cost of one more call.
        self.publish: Publishes = self.bus.publish
        self.request: RequestsReplies = self.requests.request
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._process = os.getpid()
        self.ended: bool = False
        self.failure: BaseException | None = None
        identity = surroundings.identity
        self._own = f"{identity.application}/{identity.instance}/"
        self.lost_posts: LostPosts = LostPosts()
        self.refusals: LimitedPosts = LimitedPosts()
        self.replies: Replies = Replies(self.bus, surroundings, self.lost_posts, self.refusals)
        self._checked: dict[str, None] = {}
        self.replaying: dict[str, str | None] = {}

    def parked(self, letter: Envelope) -> None:
        """Note that a dead letter was stored."""
        if letter.id in self.replaying:
            notes = letter.headers
            error = f"{notes.get('spa_dead_error')}: {notes.get('spa_dead_text', '')}"
            self.replaying[letter.id] = error

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

    def abandon(self) -> None:
        """Let go of it after all tasks of the application were killed."""
        self.ended = True
        if self._durable is not None:
            self._durable.abandon()

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
        if topic.startswith(f"{RESERVED}/reply/"):
            raise ConfigurationError(
                f"topic {topic!r}: a reply is sent only by the handler that has the request, while"
                " it handles it, and if it is registered as one that answers: annotate what it"
                " returns, or give it replies=True"
            )
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
        codec: Codec | None = None,
        wire: WireName | None = None,
        *,
        request: tuple[str, bytes, tuple[str, ...]] | None = None,
    ) -> Envelope:
        """Return an outgoing message, encoded, with its id, source and time.

        A message to the response topic of the request being handled becomes the reply to it.

        Args:
            source: ``application/instance/actor``.
            message: what to send.
            codec: encodes the payload of a message that names none; None for the runtime's own
                formats.
            wire: the format of a message that names none; None for that of the bus.
            request: for a request, its response topic, its correlation data and the actors that
                wait for the reply.

        Raises:
            ConfigurationError: the topic, a header or an option cannot be sent.
            EncodeError: the payload cannot be encoded.
        """
        topic = message.topic
        if codec is None and message.content_type is None and message.codec is None:
            payload, content_type = encode(message.payload)
        else:
            payload, content_type = encoded(message, codec)
        turn = current_turn.get()
        given = message.headers
        headers: dict[str, Any] = {}
        if given is not NO_HEADERS and given is not None:
            if not isinstance(given, Mapping):
                raise ConfigurationError(f"headers={given!r}: give a dict of str to str")
            headers.update(given)
        nulls: tuple[tuple[str, None], ...] = ()
        if headers or not is_plain(message):
            check_message(message, headers, null_headers=self.provider.null_headers)
            nulls = _without_value(headers) if headers else ()
        response_topic, correlation = message.response_topic, None
        if request is not None:
            response_topic, correlation, chain = request
            if chain:
                headers[CHAIN_HEADER] = ",".join(chain)
        elif response_topic is not None:
            check_response_topic(response_topic)
        # Most messages are no requests, and do without the cost of the call.
        is_reply = turn is not None and turn.request is not None and turn.is_reply(topic)
        if is_reply:
            assert turn is not None
            assert turn.request is not None
            correlation = turn.request.correlation
            headers[REPLY_HEADER] = "1"
        elif not isinstance(topic, str) or topic not in self._checked:
            self.check(topic)
        # carried_now(), without the cost of a call.
        if turn is None:
            carried = inherited.get()
        else:
            carried = turn.carried() if turn.active or is_reply else None
        environment = self.surroundings.environment
        repeated = turn.publish_id(topic) if turn is not None else None
        envelope = Envelope(
            topic=topic,
            payload=payload,
            content_type=content_type,
            id=repeated or environment.new_id(),
            source=source,
            type=message.type or DEFAULT_TYPE,
            time=environment.now(),
            key=message.key,
            headers=with_carried(headers, carried) if carried else headers,
            response_topic=response_topic,
            correlation=correlation,
            expiry=message.expiry,
            qos=self.provider.default_qos if message.qos is None else message.qos,
            retain=message.retain,
            tombstone=isinstance(message.payload, Tombstone),
        )
        wire = wire if message.wire is None else message.wire
        if wire is not None:
            check_wire("publish", wire, self.provider)
            # Hardly any message needs it, and one more keyword above would cost all of them time.
            envelope = msgspec.structs.replace(envelope, wire=wire)
        if nulls:
            envelope = msgspec.structs.replace(envelope, raw_headers=nulls)
        if is_reply:
            assert turn is not None
            # Refuse now a reply that cannot be sent, so that an error can still be the answer.
            self.provider.check_message(envelope)
            turn.answered = turn.answered or len(payload) <= self.bus.max_payload
        return envelope

    def replies_in(self, wire: WireName | None, bus: Bus | None = None) -> Replies:
        """Return what sends replies.

        Args:
            wire: their format; None for that of the bus.
            bus: takes them; None for the bus of the connection.
        """
        if wire is None and bus is None:
            return self.replies
        own = bus or self.bus
        return Replies(own, self.surroundings, self.lost_posts, self.refusals, wire)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """Queue a publish; the message being handled is settled only after its confirmation."""
        posted = self.bus.post(envelope)
        turn = current_turn.get()
        if turn is not None and turn.active and turn.settles:
            turn.add(posted)
        else:
            on_failure(posted, self.lost_posts.report)
        return posted

    def recorded(self, envelope: Envelope) -> None:
        """Note that what a handler publishes was recorded, and is going to be posted later."""

    def published_elsewhere(self, envelope: Envelope) -> None:
        """Note what a child process of an actor publishes; its code has the envelope made."""

    def takes(self, topic: str) -> bool:
        """Return whether an actor of this application subscribes to the topic."""
        return bool(self.filters.match(topic)) or any(
            subscription.handles(topic) for subscription in self.subscribed
        )


def _without_value(headers: dict[str, Any]) -> tuple[tuple[str, None], ...]:
    """Return the headers whose value is None, which becomes an empty text among the others."""
    names = [name for name, value in headers.items() if value is None]
    headers.update(dict.fromkeys(names, ""))
    return tuple((name, None) for name in names)
