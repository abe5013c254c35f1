"""Timers of actors: calls scheduled with `Context.later`."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any, Protocol

from ...actors import refuse_unrun, run_apart
from ...errors import ConfigurationError
from ..handling._failures_and_retries import as_failure
from ..messaging._turn import carried_now, inherited

__all__ = ["ScheduledCall", "Timers"]


class ScheduledCall:
    """One scheduled call; when it is due it goes through the actor's mailbox.

    Attributes:
        function: what to call.
        args: its arguments.
        carried: the headers that what it publishes carries.
        in_thread: whether it was scheduled in the actor's thread, not on the event loop.
        generation: that of the instance that scheduled it.
        cancelled: whether it has been cancelled.
        is_kept: tells mailboxes never to drop it for newer messages.
    """

    is_kept = True

    __slots__ = (
        "_timers",
        "args",
        "cancelled",
        "carried",
        "function",
        "generation",
        "in_thread",
        "timer",
    )

    def __init__(
        self, timers: Timers, function: Callable[..., Any], args: tuple[Any, ...], in_thread: bool
    ) -> None:
        self._timers = timers
        self.function: Callable[..., Any] = function
        self.args: tuple[Any, ...] = args
        self.in_thread: bool = in_thread
        self.generation: object = timers.generation
        self.carried: MappingProxyType[str, str] | None = carried_now()
        self.cancelled: bool = False
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """See `Timer.cancel`."""
        self.cancelled = True
        self._timers.forget(self)


class DueCalls(Protocol):
    """Where calls go when they are due: a mailbox."""

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        ...

    def force(self, item: Any) -> None:
        """Accept a call."""
        ...


class Timers:
    """The calls that one actor has scheduled. Used from any thread.

    Args:
        mailbox: gets each `ScheduledCall` when it is due.
        loop: the event loop of the actor.
        thread: the thread that the loop runs in.

    Attributes:
        generation: a new object with each instance of the actor's class.
    """

    def __init__(self, mailbox: DueCalls, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        self._mailbox = mailbox
        self._loop = loop
        self._thread = thread
        self._waiting: dict[ScheduledCall, None] = {}
        self._stopped = False
        self.generation: object = object()

    def __len__(self) -> int:
        """Return how many calls are not due yet."""
        return len(self._waiting)

    def beside(self, mailbox: DueCalls) -> Timers:
        """Return timers of the same event loop for another mailbox."""
        return Timers(mailbox, self._loop, self._thread)

    def schedule(
        self, delay: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> ScheduledCall:
        """See `Context.later`."""
        if not callable(function):
            raise ConfigurationError(f"context.later(..., {function!r}): give a function")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"context.later(..., {function!r}): it is a generator, so none of its code would"
                " run; remove the yield"
            )
        call = ScheduledCall(self, function, args, threading.get_ident() != self._thread)
        self._on_loop(self._wait, call, delay)
        return call

    def forget(self, call: ScheduledCall) -> None:
        """Drop a call."""
        self._on_loop(self._forget, call)

    def renew(self) -> None:
        """Drop all calls of the old instance, because a new one takes over."""
        self.generation = object()
        for call in tuple(self._waiting):
            self._forget(call)

    async def run(
        self, call: ScheduledCall, in_thread: Callable[..., Awaitable[Any]]
    ) -> BaseException | None:
        """Make a call that is due, unless it has been dropped; return what it raised.

        Args:
            call: the call.
            in_thread: runs a function with its arguments in the actor's thread.
        """
        if self._drops(call):
            return None
        function = call.function
        before = inherited.set(call.carried)
        try:
            if call.in_thread and not inspect.iscoroutinefunction(function):
                result = await run_apart(in_thread, function, call.args)
            else:
                result = await run_apart(function, *call.args)
            refuse_unrun(result, "it")
        except GeneratorExit:
            raise
        except BaseException as raised:  # noqa: BLE001 (the user's code)
            return as_failure(raised)
        finally:
            inherited.reset(before)
        return None

    def stop(self) -> None:
        """Drop all calls, now and from now on."""
        self._stopped = True
        for call in tuple(self._waiting):
            self._forget(call)

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            function(*args)
        else:
            self._loop.call_soon_threadsafe(function, *args)

    def _drops(self, call: ScheduledCall) -> bool:
        return call.cancelled or call.generation is not self.generation

    def _wait(self, call: ScheduledCall, delay: float) -> None:
        if not (self._stopped or self._drops(call)):
            call.timer = self._loop.call_later(delay, self._due, call)
            self._waiting[call] = None

    def _forget(self, call: ScheduledCall) -> None:
        if call.timer is not None:
            call.timer.cancel()
        self._waiting.pop(call, None)

    def _due(self, call: ScheduledCall) -> None:
        del self._waiting[call]
        if not self._mailbox.closed:
            self._mailbox.force(call)
