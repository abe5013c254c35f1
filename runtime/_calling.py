"""Calling handlers: on the event loop or in the actor's thread, cut off at the deadline."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from ..actors import ThreadWorker
from ._given_up import let_go
from ._specs import Handler
from ._stacks import frames_of, frames_of_thread, place, users_part

__all__ = ["Caller", "Work"]

_REST = 1.0


class Caller:
    """Calls the handlers of one actor: coroutine functions on the loop, others in a thread.

    Args:
        name: names the thread, for errors.
        handlers: the actor's.
        deadline: seconds that a call may take; None for any time.
        stats: the application's counters.
        given_up: called when a call had to be left to itself, and with it what it uses.
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
        self._worker: ThreadWorker | None = None
        self._running: asyncio.Future[Any] | None = None
        self._bound: list[Callable[..., Any]] = []
        self._bound_to: Any = None

    def start(self) -> None:
        """Start the thread, if a handler needs one."""
        if any(not handler.injection.is_async for handler in self._handlers):
            self._worker = ThreadWorker(self._name)

    async def stop(self, timeout: float) -> bool:
        """End the thread when its call has ended; whether that was within ``timeout`` seconds."""
        return self._worker is None or await self._worker.stop(timeout=timeout)

    @property
    def running(self) -> asyncio.Future[Any] | None:
        """The call that has a task of its own; None for none."""
        running = self._running
        return None if running is None or running.done() else running

    @property
    def thread_call(self) -> object | None:
        """Stands for the call in the thread, as long as it lasts; None for none."""
        return None if self._worker is None else self._worker.current

    @property
    def in_thread_at(self) -> str | None:
        """What the thread is at work on, and where it stands; None for nothing."""
        worker = self._worker
        if worker is None or not worker.busy:
            return None
        return place(frames_of_thread(worker.ident)) or "a function"

    def abandon(self) -> None:
        """Leave the thread to itself: nobody can stop it from outside."""
        if self._worker is not None:
            self._worker.abandon()

    def runs_in(self, executor: Executor) -> bool:
        """Whether the executor is the thread of these handlers."""
        return self._worker is executor

    def replace_thread(self) -> None:
        """Leave the thread to itself, and start another one."""
        worker = self._worker
        if worker is not None:
            self._worker = ThreadWorker(self._name)
            self._given_up()
            worker.abandon()

    def call(self, instance: Any, index: int, arguments: Mapping[str, Any]) -> Awaitable[Any]:
        """Call a handler.

        Args:
            instance: of the actor's class.
            index: of the handler.
            arguments: by name.

        Raises:
            TimeoutError: it took longer than the deadline.
            Exception: whatever it raises.
        """
        function = self._functions(instance)[index]
        if not self._handlers[index].injection.is_async:
            return self._in_thread(function, arguments)
        call: Awaitable[Any] = function(**arguments)
        return call if self._deadline is None else self._cut_off(call, self._deadline)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """Each handler as it can be called and awaited without `call`; None where it can not."""
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

    async def in_thread(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        """Call a function in the actor's thread, without a deadline."""
        assert self._worker is not None
        await self._worker.run(function, *args)

    async def _cut_off(self, call: Awaitable[Any], deadline: float) -> Any:
        # A task of its own: what swallows its cancellation must not keep the actor.
        running = self._running = asyncio.ensure_future(_contained(call))
        try:
            done, _ = await asyncio.wait((running,), timeout=deadline)
            if done:
                return _outcome(running)
            running.cancel()
            done, _ = await asyncio.wait((running,), timeout=_REST)
        except asyncio.CancelledError:
            if not running.done():
                running.cancel()
                await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # nobody wants it any more
            raise
        self._stats["messages.cut_off"] += 1
        text = f"the handler took longer than its deadline of {deadline:g} s"
        if not done:
            where = place(frames_of(running)) or "its code"
            self._stats["actors.abandoned"] += 1
            let_go([running])
            self._running = None
            self._given_up()
            raise TimeoutError(f"{text} and goes on although it was cancelled: {where}")
        if running.cancelled():
            raise TimeoutError(text)
        return _outcome(running)

    async def _in_thread(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        assert self._worker is not None
        deadline = self._deadline
        if deadline is None:
            return await _awaited(await self._worker.run(function, **arguments))
        running = self._worker.begin(function, **arguments)
        try:
            done, _ = await asyncio.wait((running,), timeout=deadline)
            if done:
                return await _awaited(running.result())
        finally:
            running.cancel()
            # What it raised refers to this frame.
            done = set()
            del running
        self._stats["messages.cut_off"] += 1
        self.replace_thread()
        raise TimeoutError(
            f"the handler took longer than its deadline of {deadline:g} s; its thread is given up"
        )


class Work:
    """What of the user's is at work in one actor, seen from outside: it costs no call anything.

    Args:
        caller: of the actor's handlers.
        task: gives the task that the actor runs in; None when there is none.
    """

    def __init__(self, caller: Caller, task: Callable[[], asyncio.Future[Any] | None]) -> None:
        self._caller = caller
        self._task = task

    @property
    def task(self) -> asyncio.Future[Any] | None:
        """The task that the user's code runs in, if it runs; None before the start."""
        return self._caller.running or self._task()

    @property
    def call(self) -> object | None:
        """The same object as long as one piece of the user's code is at work; None for none."""
        task = self.task
        return self._caller.thread_call or (None if task is None else users_part(task))

    @property
    def place(self) -> str | None:
        """What is at work, and the line where it is; None for nothing."""
        task = self.task
        return self._caller.in_thread_at or (None if task is None else place(frames_of(task)))


async def _contained(call: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What a task may end with: these two would end the event loop."""
    try:
        return await call, None
    except (SystemExit, KeyboardInterrupt) as error:
        return None, error


def _outcome(task: asyncio.Future[tuple[Any, BaseException | None]]) -> Any:
    result, error = task.result()
    if error is not None:
        raise error
    return result


async def _awaited(result: Any) -> Any:
    # A plain function may return the coroutine of another one.
    return await result if inspect.isawaitable(result) else result
