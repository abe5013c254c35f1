"""Calling handlers through the middleware of the application."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import copy_context
from typing import Any, Literal

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..messaging._middleware import CallOutcome, HandlerCall, Middleware
from ..messaging._turn import current_turn
from ._argument_values import ProducerScope
from ._handler_calls import HandlerCaller

__all__ = ["MiddlewareCaller"]

log = LimitedLog(get_logger("spa_dat"))


class MiddlewareCaller(HandlerCaller):
    """Calls the handlers of one actor through middleware; `HandlerCaller` is for those without.

    Attributes:
        middleware: the first is outermost; none if there is only some that sees what is published.
        sees_replies: whether middleware sees the replies, in the context of the handler.
    """

    middleware: Sequence[Middleware] = ()
    sees_replies = False

    def call(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """As in `HandlerCaller`."""
        function = self._functions(instance)[index]
        handler, call = self._handlers[index], scope.handler_call()
        keeps_context = self.sees_replies and handler.returns_reply
        if not handler.injection.is_async:

            def in_thread() -> Awaitable[Any]:
                return self.thread.call(function, arguments)

            # The thread keeps the deadline: who gives up waiting for it must also replace it.
            return self._through_all(call, in_thread, keeps_context=keeps_context)

        def on_loop() -> Awaitable[Any]:
            called: Awaitable[Any] = function(**arguments)
            return called

        through = self._through_all(call, on_loop, keeps_context=keeps_context)
        if self._deadline is None:
            return through
        return self._cut_off(through, asyncio.get_running_loop().time() + self._deadline)

    def undecodable(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """Tell the middleware of a message that no handler gets."""
        self._tell("undecodable", make, outcome)

    def expired(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """Tell the middleware of a message that has expired."""
        self._tell("expired", make, outcome)

    def _tell(
        self,
        what: Literal["undecodable", "expired"],
        make: Callable[[], HandlerCall],
        outcome: CallOutcome,
    ) -> None:
        for middleware in self.middleware:
            if getattr(type(middleware), what) is getattr(Middleware, what):
                continue
            try:
                getattr(middleware, what)(make(), outcome)
            except BaseException as error:
                name = type(middleware).__name__
                log.error("%s.%s has failed", name, what, exc_info=error)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """As in `HandlerCaller`; None for those that have to be called with `call`."""
        return [
            None if self.middleware or (self.sees_replies and handler.returns_reply) else function
            for function, handler in zip(super().direct(instance), self._handlers, strict=True)
        ]

    async def _through_all(
        self, call: HandlerCall, handler: Callable[[], Awaitable[Any]], *, keeps_context: bool
    ) -> Any:
        result = await self._through(0, call, handler)
        turn = current_turn.get() if keeps_context else None
        if turn is not None and turn.request is not None:
            # The reply is sent outside of it.
            turn.context = copy_context()
        return result

    async def _through(
        self, number: int, call: HandlerCall, handler: Callable[[], Awaitable[Any]]
    ) -> Any:
        if number == len(self.middleware):
            return await handler()
        middleware = self.middleware[number]
        rest = _Rest(type(middleware).__name__, lambda: self._through(number + 1, call, handler))
        try:
            result = await middleware.handle(call, rest)
        finally:
            left_out = rest.end()
        if left_out:
            if asyncio.iscoroutine(result):
                result.close()
            raise RuntimeError(
                f"{type(middleware).__name__}.handle called next() and did not await it to its end:"
                " write 'return await next()'"
            )
        return result


class _RestState(enum.Enum):
    READY = enum.auto()
    CALLED = enum.auto()
    FINISHED = enum.auto()
    OVER = enum.auto()


class _Rest:
    """What a middleware calls as ``next``: the middleware after it, and the handler.

    It goes from READY to CALLED to FINISHED, and from each of them to OVER.

    Args:
        name: the middleware's, for errors.
        make: makes the coroutine.
    """

    __slots__ = ("_coroutine", "_make", "_name", "_state", "_task")

    def __init__(self, name: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._name = name
        self._make = make
        self._task = asyncio.current_task()
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._state = _RestState.READY

    def __call__(self) -> Awaitable[Any]:
        if self._state is _RestState.OVER:
            raise RuntimeError(f"next() was called after {self._name}.handle had ended")
        if self._state is not _RestState.READY:
            raise RuntimeError(
                f"{self._name}.handle called next() twice: a handler is called once in an attempt,"
                " and tried again as its retry= says"
            )
        self._state = _RestState.CALLED
        self._coroutine = self._run()
        return self._coroutine

    async def _run(self) -> Any:
        if asyncio.current_task() is not self._task:
            # It could outlive the attempt, and the actor would be handling two messages at once.
            self._finish()
            raise RuntimeError(
                f"{self._name}.handle let next() run in another task: await it; what limits its"
                " time is asyncio.timeout(), as asyncio.wait_for() starts a task"
            )
        try:
            return await self._make()
        finally:
            self._finish()

    def _finish(self) -> None:
        # While it is closed it is over already.
        if self._state is _RestState.CALLED:
            self._state = _RestState.FINISHED

    def end(self) -> bool:
        """Allow no further call; return whether there was one that did not come to its end."""
        left_out = self._state is _RestState.CALLED
        self._state = _RestState.OVER
        coroutine, self._coroutine = self._coroutine, None
        if left_out and coroutine is not None:
            coroutine.close()
        return left_out
