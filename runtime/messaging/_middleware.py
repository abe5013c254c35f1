"""Middleware: the user's code around every call of a handler, and on everything published."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ...actors import refuse_unrun
from ...errors import ConfigurationError
from ._message import Message
from ._outgoing_message import OutgoingMessage

__all__ = [
    "CallOutcome",
    "HandlerCall",
    "Middleware",
    "OutcomeCallbacks",
    "Outgoing",
    "check_middleware",
    "handles",
    "publishes",
]

log = LimitedLog(get_logger("spa_dat"))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """The outcome of one call of a handler.

    Attributes:
        error: what was raised by the handler, by middleware, or by sending the reply that the
            handler returned; None if the call succeeded.
        then: what becomes of its messages:

            - ``handled``: they are settled, once everything that was posted is confirmed.
            - ``retry``: another attempt follows, here or elsewhere.
            - ``apart``: those of a batch are tried again, each on its own.
            - ``answer``: the error is the answer to the request.
            - ``dead-letter``: they are stored as dead letters.
            - ``none``: nothing. It was a call of a producer; or its message has expired, and is
              dropped; or the actor is being ended, and the bus delivers them again, if it keeps
              them.
        wait: seconds until the next attempt; None if there is none.
    """

    error: BaseException | None
    then: Literal["handled", "retry", "apart", "answer", "dead-letter", "none"]
    wait: float | None = None


class OutcomeCallbacks(Generic[T]):
    """Whom to tell what has become of something, which is done once.

    Attributes:
        callbacks: those that are still to be told.
        open: whether more may be added.
    """

    __slots__ = ("callbacks", "open")

    def __init__(self) -> None:
        self.callbacks: list[Callable[[T], object]] = []
        self.open: bool = True

    def add(self, callback: Callable[[T], object]) -> None:
        """Add somebody to tell; raise ConfigurationError if it is no ``def`` function."""
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise ConfigurationError(f"on_outcome({callback!r:.200}): give a 'def' function")
        self.callbacks.append(callback)

    def close(self) -> None:
        """Have no more added."""
        self.open = False

    def tell(self, result: T) -> None:
        """Tell everybody, unless that was done already."""
        self.open = False
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
        outcome: OutcomeCallbacks[CallOutcome],
    ) -> None:
        self.actor: str = actor
        self.bus: str = bus
        self.handler: str = handler
        self.attempt: int = attempt
        self.topic_filter: str | None = topic_filter
        self.is_batch: bool = is_batch
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
        """Have a function called, once, when the outcome for the messages is decided.

        That is soon after `Middleware.handle` has ended. It is called on the event loop, so it must
        not block; what it raises is logged.

        Args:
            callback: a ``def`` function.

        Raises:
            ConfigurationError: it is not a ``def`` function.
            RuntimeError: the outcome is decided already.
        """
        if not self._outcome.open:
            raise RuntimeError("on_outcome() was called after the outcome was known: too late")
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
        outcome: OutcomeCallbacks[BaseException | None],
    ) -> None:
        self._kind: Literal["publish", "request", "reply"] = kind
        self._source = source
        self._message = message
        self._bus = bus
        self._find = find
        self._outcome = outcome
        self.payload: object = message.payload
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
        """The filter that the topic belongs to, for statistics; None if that is not known.

        It is the text of the `Topic` that was published to, before `Topic.at`; or else the filter
        of an actor of this application that gets the message; of several, the one with the fewest
        wildcards. A reply has none.
        """
        if self._kind == "reply":
            return None
        return self._message.topic_filter or self._find(self._message.topic)

    @property
    def key(self) -> str | None:
        """The key that was given."""
        return self._message.key

    def on_outcome(self, callback: Callable[[BaseException | None], object]) -> None:
        """Have a function called, once, when the outcome for the message is known.

        It gets None when the broker has confirmed the message, or when the first reply to a request
        has arrived, or all those that `Socket.request_many` waits for; otherwise the error: what
        publishing raised, a responder's `RemoteError`, or ``asyncio.CancelledError`` if nobody
        waits any more. It is called on the event loop, so it must not block; what it raises is
        logged.

        Args:
            callback: a ``def`` function.

        Raises:
            ConfigurationError: it is not a ``def`` function.
            RuntimeError: this was not called within `Middleware.publish`.
        """
        if not self._outcome.open:
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

        This is for middleware with `handle`, which is not called for such a message. What is raised
        here is logged.

        Args:
            call: the call that would have been made.
            outcome: why it was not made, and what becomes of the message.
        """

    def expired(self, call: HandlerCall, outcome: CallOutcome) -> None:
        """Learn of a message that no handler gets any more, because it has expired.

        This is for middleware with `handle`, which is not called for such a message. What is raised
        here is logged.

        Args:
            call: the call that would have been made.
            outcome: ``none``, without an error, if the message is dropped; ``dead-letter``, with
                the last error, if a handler has failed on it before.
        """

    async def stopped(self) -> None:
        """Finish when the application has stopped, for example by flushing a file.

        Nothing is handled or published any more. It is cancelled after five seconds, and what it
        raises is logged. With ``placement="process"`` it is also called in each process.
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
    if inspect.iscoroutinefunction(middleware.expired):
        raise ConfigurationError(f"use({name}()): its method expired must be 'def'")
    if not handles(middleware) and not publishes(middleware):
        raise ConfigurationError(f"use({name}()): it has neither handle nor publish of its own")
    return middleware


def handles(middleware: Middleware) -> bool:
    """Return whether it has a method ``handle`` of its own."""
    return getattr(middleware.handle, "__func__", None) is not Middleware.handle


def publishes(middleware: Middleware) -> bool:
    """Return whether it has a method ``publish`` of its own."""
    return getattr(middleware.publish, "__func__", None) is not Middleware.publish
