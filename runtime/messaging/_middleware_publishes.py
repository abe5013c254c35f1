"""Publishing through middleware; `_middleware` says what that is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..._texts import quoted
from ...actors import refuse_unrun
from ...errors import ConfigurationError
from ...transports import Bus, Envelope, SocketProvider, Surroundings, TopicFilter, TopicTrie
from ...transports._wire_formats import WireName
from ..options._custom_codecs import Codec
from ._bus_connection import BusConnection
from ._middleware import Middleware, OutcomeCallbacks, Outgoing
from ._outgoing_message import OutgoingMessage, check_message
from ._requests import MOST_REPLIES, remote_error
from ._sent_replies import Replies
from ._turn import Turn, current_turn

if TYPE_CHECKING:
    from ...transports._outbox_options import OutboxFile
    from ..metrics._measurements import Measurements

__all__ = ["MiddlewareConnection"]


class _SentCallbacks(OutcomeCallbacks[BaseException | None]):
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
    ) -> tuple[OutgoingMessage, _SentCallbacks | None]:
        """Return what is to be sent instead of a message, and whom to tell what becomes of it."""
        if self._is_inside:
            # Middleware that publishes, such as what was published, would never come to an end.
            return message, None
        outcome = _SentCallbacks()
        outgoing = Outgoing(kind, source, message, self._bus, self._narrowest, outcome)
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
            outcome.close()
        changed = msgspec.structs.replace(
            message, payload=outgoing.payload, headers=outgoing.headers
        )
        return changed, outcome if outcome.callbacks else None

    def _narrowest(self, topic: str) -> str | None:
        return min(self._filters.match(topic), key=_wildcards, default=None)


def _wildcards(text: str) -> tuple[bool, int]:
    levels = text.split("/")
    return levels[-1] == "#", sum(level == "+" or level[:1] == "{" for level in levels)


class MiddlewareConnection(BusConnection):
    """A connection of an application with middleware that sees what is published.

    Others are without, so that a publish does not have to ask whether there is any.

    Args:
        provider: as in `BusConnection`.
        surroundings: likewise.
        reply_topics: likewise.
        middleware: sees each message before it is encoded.
        measurements: as in `BusConnection`.
    """

    def __init__(
        self,
        provider: SocketProvider,
        surroundings: Surroundings,
        reply_topics: Sequence[TopicFilter] | None,
        middleware: Sequence[Middleware],
        measurements: Measurements | None = None,
        outbox: OutboxFile | None = None,
    ) -> None:
        super().__init__(provider, surroundings, reply_topics, measurements, outbox)
        self._publishing = _Publishing(middleware, provider.address, self.filters)
        # Of the message that is sent next.
        self._next: tuple[Envelope, _SentCallbacks] | None = None
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
        """As in `BusConnection`, for what the middleware makes of the message."""
        turn = current_turn.get()
        outcome: _SentCallbacks | None = None
        if turn is not None and turn.is_reply(message.topic):
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

    def _take(self, envelope: Envelope) -> _SentCallbacks | None:
        made, self._next = self._next, None
        return made[1] if made is not None and made[0] is envelope else None

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """As in `BusConnection`."""
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

    def recorded(self, envelope: Envelope) -> None:
        """As in `BusConnection`; for the middleware that is what has become of it."""
        outcome = self._take(envelope)
        if outcome is not None:
            outcome.tell(None)

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
        outcome: _SentCallbacks | None = None

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

    def replies_in(self, wire: WireName | None, bus: Bus | None = None) -> Replies:
        """As in `BusConnection`."""
        return _MiddlewareReplies(self, self._publishing, wire, bus or self.bus)


class _MiddlewareReplies(Replies):
    """Sends replies that the middleware has seen. It sees no errors: those must arrive."""

    def __init__(
        self, connection: BusConnection, publishing: _Publishing, wire: WireName | None, bus: Bus
    ) -> None:
        lost_posts, refusals = connection.lost_posts, connection.refusals
        super().__init__(bus, connection.surroundings, lost_posts, refusals, wire)
        self._publishing = publishing

    def send(
        self,
        turn: Turn,
        source: str,
        value: object,
        codec: Codec | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """As in `Replies`, for what the middleware makes of the value."""
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
