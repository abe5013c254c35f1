"""Middleware: the user's code around every call of a handler, and on everything published."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import quoted
from ...actors import refuse_unrun
from ...errors import ConfigurationError
from ...transports import Envelope, SocketProvider, Surroundings, TopicFilter, TopicTrie
from ...transports._wire_formats import WireName
from ..options._custom_codecs import Codec
from ._bus_connection import BusConnection
from ._message import Message
from ._outgoing_message import OutgoingMessage, check_message
from ._requests import MOST_REPLIES, remote_error
from ._sent_replies import Replies
from ._turn import Turn, current_turn

if TYPE_CHECKING:
    from ..metrics._measurements import Measurements

__all__ = [
    "CallOutcome",
    "HandlerCall",
    "Middleware",
    "Outcome",
    "Outgoing",
    "PublishingConnection",
    "check_middleware",
    "handles",
    "publishes",
]

log = LimitedLog(get_logger("spa_dat"))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What has become of one call of a handler.

    Attributes:
        error: why it has failed: what was raised, also by the middleware, or by sending what the
            handler has returned as the reply; None if it has not.
        then: what becomes of its messages:

            - ``handled``: they are settled, once everything that was posted is confirmed.
            - ``retry``: another attempt follows, here or elsewhere.
            - ``apart``: those of a batch are tried once more, each on its own.
            - ``answer``: the error is the answer to the request.
            - ``dead-letter``: they are stored as dead letters.
            - ``none``: nothing. It was the call of a producer, or the actor is being ended; then
              the bus has them handled again, if it keeps them.
        wait: seconds until the next attempt; None if there is none.
    """

    error: BaseException | None
    then: Literal["handled", "retry", "apart", "answer", "dead-letter", "none"]
    wait: float | None = None


class Outcome(Generic[T]):
    """Whom to tell what has become of something, which is done once."""

    __slots__ = ("callbacks", "told")

    def __init__(self) -> None:
        self.callbacks: list[Callable[[T], object]] = []
        self.told = False

    def add(self, callback: Callable[[T], object]) -> None:
        """Add somebody to tell; raise ConfigurationError if it is no ``def`` function."""
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise ConfigurationError(f"on_outcome({callback!r:.200}): give a 'def' function")
        self.callbacks.append(callback)

    def tell(self, result: T) -> None:
        """Tell everybody, unless that was done already."""
        self.told = True
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            try:
                refuse_unrun(callback(result), "it")
            except BaseException as problem:
                # Also a cancellation: who tells is about to settle the message, and the callback
                # has only looked at something that was cancelled.
                name = _name_of(callback)
                log.error("%s, given to on_outcome, has failed", name, exc_info=problem)


def _name_of(callback: Callable[..., object]) -> str:
    while isinstance(callback, partial):
        callback = callback.func
    return getattr(callback, "__qualname__", type(callback).__name__)


class HandlerCall:
    """One call of a handler, as `Middleware.handle` sees it.

    Attributes:
        actor: the actor's name.
        bus: the address of its bus, without secrets.
        handler: the function's or method's name.
        attempt: the number of this attempt at the message or batch, from 1.
        topic_filter: what the actor subscribes to and the message matches, or the first message of
            a batch; None in a producer.
        is_batch: whether the handler takes batches.
    """

    __slots__ = (
        "_make",
        "_messages",
        "_outcome",
        "actor",
        "attempt",
        "bus",
        "handler",
        "is_batch",
        "topic_filter",
    )

    def __init__(
        self,
        *,
        actor: str,
        bus: str,
        handler: str,
        attempt: int,
        topic_filter: str | None,
        is_batch: bool,
        make: Callable[[], tuple[Message[bytes], ...]],
        outcome: Outcome[CallOutcome],
    ) -> None:
        self.actor = actor
        self.bus = bus
        self.handler = handler
        self.attempt = attempt
        self.topic_filter = topic_filter
        self.is_batch = is_batch
        self._make = make
        self._messages: tuple[Message[bytes], ...] | None = None
        self._outcome = outcome

    @property
    def messages(self) -> tuple[Message[bytes], ...]:
        """The messages that the handler gets: one, those of a batch, or none in a producer.

        Their payloads are the bytes that came: the handler has values of its own.
        """
        if self._messages is None:
            self._messages = self._make()
        return self._messages

    @property
    def message(self) -> Message[bytes] | None:
        """The message; None for a batch and in a producer."""
        messages = self.messages
        return messages[0] if messages and not self.is_batch else None

    def on_outcome(self, callback: Callable[[CallOutcome], object]) -> None:
        """Have a function called, once, when it is decided what becomes of the messages.

        That is soon after `Middleware.handle` has ended. It is called on the event loop, so it must
        not block; what it raises is logged.

        Args:
            callback: a ``def`` function.

        Raises:
            ConfigurationError: it is no such function.
            RuntimeError: it is decided already.
        """
        if self._outcome.told:
            raise RuntimeError("on_outcome() was called when the outcome was known: call it before")
        self._outcome.add(callback)

    def __repr__(self) -> str:
        return f"<HandlerCall {self.handler!r} of {self.actor!r} attempt {self.attempt}>"


class Outgoing:
    """A message on its way out, as `Middleware.publish` sees it.

    Attributes:
        payload: what was given to `Socket.publish`, not yet encoded; may be replaced.
        headers: those that were given; may be changed.
    """

    __slots__ = ("_bus", "_find", "_kind", "_message", "_outcome", "_source", "headers", "payload")

    def __init__(
        self,
        kind: Literal["publish", "request", "reply"],
        source: str,
        message: OutgoingMessage,
        bus: str,
        find: Callable[[str], str | None],
    ) -> None:
        self._kind: Literal["publish", "request", "reply"] = kind
        self._source = source
        self._message = message
        self._bus = bus
        self._find = find
        self._outcome: _SentOutcome | None = None
        self.payload = message.payload
        self.headers: dict[str, str | None] = dict(message.headers or {})

    @property
    def kind(self) -> Literal["publish", "request", "reply"]:
        """What it is; a post is a ``publish``."""
        return self._kind

    @property
    def source(self) -> str:
        """Who sends it: ``application/instance/actor``."""
        return self._source

    @property
    def bus(self) -> str:
        """The address of the bus that it goes to, without secrets."""
        return self._bus

    @property
    def topic(self) -> str:
        """Where it goes."""
        return self._message.topic

    @property
    def topic_filter(self) -> str | None:
        """What the topic is one of many of, for statistics; None if that is not known.

        It is the text of the `Topic` that was published to, before `Topic.at`; or else the filter
        of an actor of this application that gets the message, the one with the fewest wildcards. A
        reply has none.
        """
        if self._kind == "reply":
            return None
        return self._message.topic_filter or self._find(self._message.topic)

    @property
    def key(self) -> str | None:
        """The key that was given."""
        return self._message.key

    def on_outcome(self, callback: Callable[[BaseException | None], object]) -> None:
        """Have a function called, once, when it is known what has become of the message.

        It gets None when the broker has confirmed it, or when the first reply to a request has
        come, or all that `Socket.request_many` was to wait for; otherwise the error: what
        publishing it has raised, `RemoteError` of a responder, or ``asyncio.CancelledError`` if
        nobody waits for it any more. It is called on the event loop, so it must not block; what it
        raises is logged.

        Args:
            callback: a ``def`` function.

        Raises:
            ConfigurationError: it is no such function.
            RuntimeError: this was not called within `Middleware.publish`.
        """
        if self._outcome is None:
            raise RuntimeError(
                "on_outcome() was called after Middleware.publish had returned: call it within it"
            )
        self._outcome.add(callback)

    def __repr__(self) -> str:
        return f"<Outgoing {self._kind} on {self._message.topic!r}>"


class Middleware:
    """Code around every call of a handler, and on everything published; see `app.use`.

    Override `handle` or `publish`, or both.
    """

    async def handle(self, call: HandlerCall, next: Callable[[], Awaitable[Any]]) -> Any:
        """Call the handler, by ``return await next()``, with whatever has to be before and after.

        What is raised here counts as raised by the handler, and what is returned as returned by
        it. Without ``next()`` the handler is not called, and the message counts as handled.

        Args:
            call: which handler is called, and with which messages.
            next: goes on to the next middleware, and at last to the handler. Await it, once, in
                the task that this is called in.
        """
        return await next()

    def publish(self, outgoing: Outgoing) -> None:
        """Look at a message before it is encoded; change its headers or its payload.

        What is raised here is raised by `Socket.publish`, `Socket.post` or `Socket.request`, and
        nothing is sent. What is published in here does not come here.

        Args:
            outgoing: the message.
        """

    def undecodable(self, call: HandlerCall, outcome: CallOutcome) -> None:
        """Learn of a message that no handler gets, because its payload cannot be decoded.

        It is for middleware that has `handle`, which is not called for such a message. What is
        raised here is logged.

        Args:
            call: that of the handler which would have been called.
            outcome: why it was not, and what becomes of the message.
        """

    async def stopped(self) -> None:
        """Do what is to be done when the application has stopped, such as flushing a file.

        Nothing is handled or published any more. It is cancelled after five seconds, and what it
        raises is logged. With ``placement="process"`` the copy in each process is told, too.
        """


def check_middleware(middleware: object) -> Middleware:
    """Return the middleware; raise ConfigurationError if it is none."""
    if isinstance(middleware, type) and issubclass(middleware, Middleware):
        name = middleware.__name__
        raise ConfigurationError(f"use({name}): give an instance, {name}(), not the class")
    if not isinstance(middleware, Middleware):
        raise ConfigurationError(
            f"use({middleware!r:.200}): give an instance of a class derived from Middleware"
        )
    name = type(middleware).__name__
    if not inspect.iscoroutinefunction(middleware.handle):
        raise ConfigurationError(f"use({name}()): its method handle must be 'async def'")
    if not inspect.iscoroutinefunction(middleware.stopped):
        raise ConfigurationError(f"use({name}()): its method stopped must be 'async def'")
    if inspect.iscoroutinefunction(middleware.publish):
        raise ConfigurationError(
            f"use({name}()): its method publish must be 'def', because post() waits for nothing"
        )
    if inspect.iscoroutinefunction(middleware.undecodable):
        raise ConfigurationError(f"use({name}()): its method undecodable must be 'def'")
    if not handles(middleware) and not publishes(middleware):
        raise ConfigurationError(f"use({name}()): it has neither handle nor publish of its own")
    return middleware


def handles(middleware: Middleware) -> bool:
    """Whether it has a method ``handle`` of its own."""
    return getattr(middleware.handle, "__func__", None) is not Middleware.handle


def publishes(middleware: Middleware) -> bool:
    """Whether it has a method ``publish`` of its own."""
    return getattr(middleware.publish, "__func__", None) is not Middleware.publish


class _SentOutcome(Outcome[BaseException | None]):
    """Whom to tell what has become of a message on its way out."""

    __slots__ = ()

    def of_post(self, posted: asyncio.Future[None]) -> None:
        """Tell what has become of a post."""
        self.tell(asyncio.CancelledError() if posted.cancelled() else posted.exception())

    async def of_publish(self, publish: Awaitable[None]) -> None:
        """Await a publish, and tell what has become of it."""
        try:
            await publish
        except BaseException as error:
            self.tell(error)
            raise
        self.tell(None)


class _Publishing:
    """The middleware that sees what an application publishes, in order.

    Args:
        middleware: what sees it.
        bus: the address of the bus.
        filters: of the application's actors on the bus, by their patterns.
    """

    def __init__(self, middleware: Sequence[Middleware], bus: str, filters: TopicTrie[str]) -> None:
        self._middleware = tuple(middleware)
        self._bus = bus
        self._filters = filters
        self._is_inside = False

    def changed(
        self,
        kind: Literal["publish", "request", "reply"],
        source: str,
        message: OutgoingMessage,
    ) -> tuple[OutgoingMessage, _SentOutcome | None]:
        """Return what is to be sent instead of a message, and whom to tell what becomes of it."""
        if self._is_inside:
            # Middleware that publishes, such as what was published, would never come to an end.
            return message, None
        outgoing = Outgoing(kind, source, message, self._bus, self._narrowest)
        outcome = outgoing._outcome = _SentOutcome()
        self._is_inside = True
        try:
            for middleware in self._middleware:
                name = type(middleware).__name__
                refused: Any = middleware.publish(outgoing)  # type: ignore[func-returns-value]
                refuse_unrun(refused, f"{name}.publish")
                if not isinstance(outgoing.headers, dict):
                    raise ConfigurationError(
                        f"{name}.publish has set headers to {outgoing.headers!r:.200}: give a dict"
                    )
        except BaseException as error:
            outcome.tell(error)
            raise
        finally:
            self._is_inside = False
            outgoing._outcome = None
        changed = msgspec.structs.replace(
            message, payload=outgoing.payload, headers=outgoing.headers
        )
        return changed, outcome if outcome.callbacks else None

    def _narrowest(self, topic: str) -> str | None:
        return min(self._filters.match(topic), key=_wildcards, default=None)


def _wildcards(text: str) -> tuple[bool, int]:
    levels = text.split("/")
    return levels[-1] == "#", sum(level == "+" or level[:1] == "{" for level in levels)


class PublishingConnection(BusConnection):
    """A connection of an application with middleware that sees what is published.

    Others are without, so that a publish does not have to ask whether there is any.

    Args:
        provider: as of `BusConnection`.
        surroundings: likewise.
        reply_topics: likewise.
        middleware: sees each message before it is encoded.
        measurements: as of `BusConnection`.
    """

    def __init__(
        self,
        provider: SocketProvider,
        surroundings: Surroundings,
        reply_topics: Sequence[TopicFilter] | None,
        middleware: Sequence[Middleware],
        measurements: Measurements | None = None,
    ) -> None:
        super().__init__(provider, surroundings, reply_topics, measurements)
        self._publishing = _Publishing(middleware, provider.address, self.filters)
        # Of the message that is sent next.
        self._next: tuple[Envelope, _SentOutcome] | None = None
        self.publish = self._publish
        self.request = self._request
        self.replies = self.replies_in(None)

    def envelope(
        self,
        source: str,
        message: OutgoingMessage,
        codec: Codec | None = None,
        wire: WireName | None = None,
        *,
        request: tuple[str, bytes, tuple[str, ...]] | None = None,
    ) -> Envelope:
        """As of `BusConnection`, for what the middleware makes of the message."""
        turn = current_turn.get()
        outcome: _SentOutcome | None = None
        if (
            turn is not None
            and turn.request is not None
            and turn.request.response_topic == message.topic
        ):
            message, outcome = self._publishing.changed("reply", source, message)
        else:
            # What nobody may publish is nothing for the middleware.
            self.check(message.topic)
            if message.headers is None or isinstance(message.headers, Mapping):
                kind: Literal["request", "publish"] = "publish" if request is None else "request"
                message, outcome = self._publishing.changed(kind, source, message)
        if outcome is None:
            return super().envelope(source, message, codec, wire, request=request)
        try:
            envelope = super().envelope(source, message, codec, wire, request=request)
        except BaseException as error:
            outcome.tell(error)
            raise
        self._next = envelope, outcome
        return envelope

    def _take(self, envelope: Envelope) -> _SentOutcome | None:
        made, self._next = self._next, None
        return made[1] if made is not None and made[0] is envelope else None

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """As of `BusConnection`."""
        outcome = self._take(envelope)
        if outcome is None:
            return super().post(envelope)
        try:
            posted = super().post(envelope)
        except BaseException as error:
            outcome.tell(error)
            raise
        posted.add_done_callback(outcome.of_post)
        return posted

    def _publish(self, envelope: Envelope, *, timeout: float) -> Coroutine[Any, Any, None]:
        outcome = self._take(envelope)
        publish = self.bus.publish(envelope, timeout=timeout)
        return publish if outcome is None else outcome.of_publish(publish)

    async def _request(
        self,
        make: Callable[[str, bytes], Envelope],
        *,
        timeout: float,
        wanted: int | None,
        limit: int = MOST_REPLIES,
        wire: str | None = None,
    ) -> list[Envelope]:
        outcome: _SentOutcome | None = None

        def making(response_topic: str, correlation: bytes) -> Envelope:
            nonlocal outcome
            envelope = make(response_topic, correlation)
            outcome = self._take(envelope)
            return envelope

        try:
            replies = await self.requests.request(
                making, timeout=timeout, wanted=wanted, limit=limit, wire=wire
            )
        except BaseException as error:
            if outcome is not None:
                outcome.tell(error)
            raise
        if outcome is not None:
            outcome.tell(remote_error(replies[0]) if wanted == 1 else None)
        return replies

    def replies_in(self, wire: WireName | None) -> Replies:
        """As of `BusConnection`."""
        return _PublishingReplies(self, self._publishing, wire)


class _PublishingReplies(Replies):
    """Sends replies that the middleware has seen. It sees no errors: those must arrive."""

    def __init__(
        self, connection: BusConnection, publishing: _Publishing, wire: WireName | None
    ) -> None:
        super().__init__(connection.bus, connection.surroundings, connection.lost_posts, wire)
        self._publishing = publishing

    def send(
        self,
        turn: Turn,
        source: str,
        value: object,
        codec: Codec | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """As of `Replies`, for what the middleware makes of the value."""
        # Not kept: it leads back to the turn.
        context, turn.context = turn.context or copy_context(), None
        if turn.answered:
            return
        assert turn.request is not None
        assert turn.request.response_topic is not None
        message = OutgoingMessage(topic=turn.request.response_topic, payload=value)
        message, outcome = context.run(self._publishing.changed, "reply", source, message)
        given = headers or {}
        try:
            for name, text in message.headers.items():
                if text is None:
                    raise ConfigurationError(f"header {quoted(name)} of a reply: None: give a str")
                given[name] = text
            check_message(message, given, null_headers=False)
            super().send(turn, source, message.payload, codec, given)
        except BaseException as error:
            if outcome is not None:
                outcome.tell(error)
            raise
        if outcome is not None:
            assert turn.reply is not None
            turn.reply.add_done_callback(outcome.of_post)
