"""Calling handlers on the event loop, cut off at their deadline; others in `HandlerThread`."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...actors import leave_process
from ..diagnostics._stacks import frames_of, place, users_part
from ..diagnostics._unclean_stop import let_go
from ..messaging._middleware import CallOutcome, HandlerCall
from ..registration._specs import Handler
from ._argument_values import ProducerScope
from ._failures_and_retries import deadline_missed
from ._handler_thread import HandlerThread

__all__ = ["HandlerCaller", "RunningCode"]

_REST = 1.0

T = TypeVar("T")
_Outcome = tuple[Any, BaseException | None]


class HandlerCaller:
    """Calls the handlers of one actor: coroutine functions on the loop, others in a thread.

    Args:
        name: the name of the thread, for errors.
        handlers: the actor's.
        deadline: seconds that a call may take; None for no limit.
        stats: the application's counters.
        given_up: called when a call had to be abandoned, and with it whatever it uses.

    Attributes:
        thread: where those that are not coroutine functions run.
    """

    def __init__(
        self,
        name: str,
        handlers: Sequence[Handler],
        deadline: float | None,
        stats: Counter[str],
        given_up: Callable[[], None],
    ) -> None:
        self._name = name
        self._handlers = handlers
        self._deadline = deadline
        self._stats = stats
        self._given_up = given_up
        self._running: asyncio.Future[Any] | None = None
        self._left_running: list[asyncio.Task[_Outcome]] = []
        self._bound: list[Callable[..., Any]] = []
        self._bound_to: Any = None
        self.thread: HandlerThread = HandlerThread(
            name, handlers, deadline, stats, given_up, self._cut_off
        )

    @property
    def running(self) -> asyncio.Future[Any] | None:
        """The call that runs in a task of its own; None if there is none."""
        running = self._running
        return None if running is None or running.done() else running

    @property
    def running_on(self) -> list[str]:
        """Where calls are that were given up at their deadline and go on nevertheless."""
        tasks = [place(frames_of(task)) or "in code of its own" for task in self._running_on()]
        return [*tasks, *self.thread.hung_at]

    def _running_on(self) -> list[asyncio.Task[_Outcome]]:
        return [task for task in self._left_running if not task.done()]

    def call(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """Call a handler.

        Args:
            instance: of the actor's class.
            index: of the handler.
            arguments: by name.
            scope: what they were taken from.

        Raises:
            TimeoutError: the handler took longer than its deadline.
            Exception: whatever the handler raises.
        """
        function = self._functions(instance)[index]
        if not self._handlers[index].injection.is_async:
            return self.thread.call(function, arguments)
        return self.cut_off_at_deadline(function(**arguments), "the handler")

    def cut_off_at_deadline(self, call: Awaitable[T], what: str) -> Awaitable[T]:
        """Return what awaits a call, and cuts it off when it takes longer than the deadline.

        Args:
            call: to be awaited.
            what: what is called, for the error.

        Raises:
            TimeoutError: it took longer.
            Exception: whatever it raises.
        """
        if self._deadline is None:
            return call
        return self._cut_off(call, asyncio.get_running_loop().time() + self._deadline, what)

    def undecodable(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """Do nothing: there is no middleware to be told of a message that no handler gets."""

    def expired(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """Do nothing, as `undecodable`."""

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """Return each handler, to be called and awaited without `call`; None where it cannot be."""
        if self._deadline is not None:
            return [None] * len(self._handlers)
        return [
            function if inspect.iscoroutinefunction(function) else None
            for function in self._functions(instance)
        ]

    def _functions(self, instance: Any) -> list[Callable[..., Any]]:
        if instance is not self._bound_to:
            self._bound = [handler.bind(instance) for handler in self._handlers]
            self._bound_to = instance
        return self._bound

    async def _cut_off(self, call: Awaitable[Any], until: float, what: str = "the handler") -> Any:
        # In a task of its own: code that swallows its cancellation must not block the actor.
        running = self._running = asyncio.ensure_future(_contained(call, self._name))
        try:
            result, error = await self._within(running, until, what)
        finally:
            if running.done():
                self._running = None
            # What it raised has this frame in its traceback.
            del running
        if error is not None:
            raise error
        return result

    async def _within(self, running: asyncio.Task[_Outcome], until: float, what: str) -> _Outcome:
        left = max(0.0, until - asyncio.get_running_loop().time())
        try:
            done, _ = await asyncio.wait((running,), timeout=left)
            if done:
                return running.result()
            running.cancel()
            done, _ = await asyncio.wait((running,), timeout=_REST)
            self._stats["messages.cut_off"] += 1
            text = f"{what} took longer than its deadline of {self._deadline:g} s"
            if not done:
                where = place(frames_of(running)) or "its code"
                self._stats["actors.abandoned"] += 1
                let_go([running])
                self._left_running = [*self._running_on(), running]
                self._running = None
                self._given_up()
                text += f" and keeps running although it was cancelled: {where}"
                raise deadline_missed(text)
            if running.cancelled():
                raise deadline_missed(text)
            return running.result()
        except asyncio.CancelledError:
            if not running.done():
                running.cancel()
                await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # nobody needs it any more
            raise
        finally:
            done = set()
            del running


class RunningCode:
    """The user's code that an actor is running, observed from outside, at no cost to the calls.

    Args:
        caller: calls the actor's handlers.
        task: returns the task that the actor runs in; None if there is none.
    """

    def __init__(
        self, caller: HandlerCaller, task: Callable[[], asyncio.Future[Any] | None]
    ) -> None:
        self._caller = caller
        self._task = task

    @property
    def task(self) -> asyncio.Future[Any] | None:
        """The task that the user's code runs in; None before the start."""
        return self._caller.running or self._task()

    @property
    def call(self) -> object | None:
        """The same object for as long as one call of the user's code lasts; None between calls."""
        task = self.task
        return self._caller.thread.current_call or (None if task is None else users_part(task))

    @property
    def place(self) -> str | None:
        """What is running, and at which line; None if nothing is."""
        task = self.task
        here = None if task is None else place(frames_of(task))
        return self._caller.thread.in_thread_at or here


async def _contained(call: Awaitable[Any], name: str) -> _Outcome:
    """Return the result, or an error that must not leave a task: it would end the event loop."""
    process = os.getpid()
    try:
        return await call, None
    except (SystemExit, KeyboardInterrupt) as error:
        if os.getpid() != process:
            leave_process(name, error)
        return None, error
    finally:
        if os.getpid() != process:
            leave_process(name)
