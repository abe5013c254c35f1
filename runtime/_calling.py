"""Calling handlers: on the event loop or in the actor's thread, cut off at the deadline."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from ..actors import ThreadWorker
from ._specs import Handler
from ._stacks import frames_of_thread, place

__all__ = ["Caller"]


class Caller:
    """Calls the handlers of one actor: coroutine functions on the loop, others in a thread.

    Args:
        name: names the thread, for errors.
        handlers: the actor's.
        deadline: seconds that a call may take; None for any time.
        stats: the application's counters.
        thread_lost: called when a thread had to be left to itself.
    """

    def __init__(
        self,
        name: str,
        handlers: Sequence[Handler],
        deadline: float | None,
        stats: Counter[str],
        thread_lost: Callable[[], None],
    ) -> None:
        self._name = name
        self._handlers = handlers
        self._deadline = deadline
        self._stats = stats
        self._thread_lost = thread_lost
        self._worker: ThreadWorker | None = None
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
            self._thread_lost()
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
        try:
            async with asyncio.timeout(deadline) as limit:
                return await call
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._stats["messages.cut_off"] += 1
            raise TimeoutError(
                f"the handler took longer than its deadline of {deadline:g} s"
            ) from error.__cause__

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


async def _awaited(result: Any) -> Any:
    # A plain function may return the coroutine of another one.
    return await result if inspect.isawaitable(result) else result
