"""Calling handlers: on the event loop or in the actor's thread, cut off at their deadline."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from ...actors import ThreadWorker, leave_process, looked_at, returns_nothing, run_apart
from ...errors import ActorStopped, ConfigurationError
from ..diagnostics._given_up import let_go
from ..diagnostics._stacks import frames_of, frames_of_thread, place, users_part
from ..registration._resources import (
    LEAST_FOR_RESOURCES,
    RequiredResources,
    Resource,
    ThreadResources,
    opens_in_thread,
)
from ..registration._specs import Handler
from ._handler_failures import advice, deadline_missed

__all__ = ["HandlerCaller", "RunningCode"]

_REST = 1.0
# How many threads of one actor may hang at the same time.
_MOST_HUNG = 100

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
        thread_resources: resources that are opened and closed in the thread, again in each new one.
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
        self._hung: list[ThreadWorker] = []
        self._running: asyncio.Future[Any] | None = None
        self._bound: list[Callable[..., Any]] = []
        self._bound_to: Any = None
        self.thread_resources: Mapping[str, Resource] = {}
        self._owner = name
        self._opened: ThreadResources | None = None
        self._leaving_failed: Callable[[BaseException], None] = _ignore
        self._stopped = False

    def start(self) -> None:
        """Start the thread, if a handler needs one and it is not running."""
        if self._worker is None and any(
            not handler.injection.is_async for handler in self._handlers
        ):
            self._worker = ThreadWorker(self._name)

    async def stop(self, timeout: float) -> bool:
        """End the thread when its call has ended; return whether it did within ``timeout`` seconds.

        Closing what `open_resources` has opened may take at least 5 seconds; if it is still being
        opened, that is not waited for.
        """
        self._stopped = True
        worker, opened = self._worker, self._opened
        if worker is None:
            return True
        if opened is None:
            return await worker.stop(timeout=timeout)
        if opened.values is None and worker.busy:
            return False
        self._opened = None
        leaving = worker.begin(opened.leave)
        in_time = await worker.stop(timeout=max(timeout, LEAST_FOR_RESOURCES))
        with contextlib.suppress(ActorStopped, asyncio.CancelledError):
            if leaving.done() and (error := leaving.result()) is not None:
                self._leaving_failed(error)
        # The return value tells whether the thread was given up.
        leaving.add_done_callback(lambda done: done.cancelled() or done.exception())
        return in_time

    # Resources that are the thread's own.

    def take_thread_resources(
        self, required: RequiredResources, leaving_failed: Callable[[BaseException], None]
    ) -> RequiredResources:
        """Take over the resources that the thread can open, if all handlers run there.

        Args:
            required: all resources of the actor.
            leaving_failed: called at the stop with what closing them raised.

        Returns:
            Those to be opened on the event loop, and, after them, those to be opened here.
        """
        if not self._handlers or any(handler.injection.is_async for handler in self._handlers):
            return required
        owner, resources, _ = required
        self.thread_resources = {name: it for name, it in resources.items() if opens_in_thread(it)}
        if not self.thread_resources:
            return required
        self._owner, self._leaving_failed = owner, leaving_failed
        others = {name: it for name, it in resources.items() if name not in self.thread_resources}
        return RequiredResources(owner, others, self)

    async def open_resources(self) -> Mapping[str, Any]:
        """Open them in the thread, unless they are open; return the values entered, by name.

        Raises:
            ConfigurationError: one failed to open; its error is the cause.
            ActorStopped: the thread was given up, or the actor is stopping.
        """
        stopped = ActorStopped(f"{self._owner} was stopped while its resources were opened")
        if self._stopped:
            raise stopped
        self.start()
        assert self._worker is not None
        opened = self._opened = self._opened or ThreadResources(self._owner, self.thread_resources)
        if opened.values is None:
            try:
                await self._worker.run(opened.enter)
            except ConfigurationError:
                self._opened = None
                raise
            except ActorStopped:
                raise stopped from None
        return opened.values or {}

    async def start_up(self, on_start: Callable[[], Any], resources: dict[str, Any]) -> None:
        """Start an instance once the thread has its resources open, and add these to the others.

        A thread that has replaced another one has none of them open.
        """
        resources.update(await self.open_resources())
        try:
            await run_apart(on_start)
        except Exception as error:
            if text := advice(error):
                error.add_note(text)
            raise

    def _give_up(self, worker: ThreadWorker) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            worker.abandon()
        elif worker.busy:
            # Only the thread can close them: it does so when it is free.
            worker.abandon(opened.leave)
        else:
            worker.begin(opened.leave).add_done_callback(lambda _: worker.abandon())

    @property
    def running(self) -> asyncio.Future[Any] | None:
        """The call that runs in a task of its own; None if there is none."""
        running = self._running
        return None if running is None or running.done() else running

    @property
    def thread_call(self) -> object | None:
        """An object that stands for the current call in the thread; None if there is none."""
        return None if self._worker is None else self._worker.current

    @property
    def in_thread_at(self) -> str | None:
        """What the thread is running, and at which line; None if it is idle."""
        worker = self._worker
        if worker is None or not worker.busy:
            return None
        return place(frames_of_thread(worker.ident)) or "a function"

    def abandon(self) -> None:
        """Abandon the thread, which cannot be stopped from outside."""
        if self._worker is not None:
            self._give_up(self._worker)

    def runs_in(self, executor: Executor) -> bool:
        """Whether the executor is the thread of these handlers."""
        return self._worker is executor

    def replace_thread(self) -> None:
        """Abandon the thread, and start another one."""
        worker = self._worker
        if worker is not None:
            self._worker = ThreadWorker(self._name)
            self._given_up()
            self._give_up(worker)
            self._hung.append(worker)

    @property
    def trouble(self) -> str | None:
        """Why no call can be made, because too many threads hang; None while one can."""
        if self._hung:
            self._hung = [worker for worker in self._hung if worker.alive]
        if len(self._hung) < _MOST_HUNG:
            return None
        return (
            f"{len(self._hung)} of its threads were given up at the deadline and still hang, so no"
            " further one is started"
        )

    def call(self, instance: Any, index: int, arguments: Mapping[str, Any]) -> Awaitable[Any]:
        """Call a handler.

        Args:
            instance: of the actor's class.
            index: of the handler.
            arguments: by name.

        Raises:
            TimeoutError: the handler took longer than its deadline.
            Exception: whatever the handler raises.
        """
        function = self._functions(instance)[index]
        if not self._handlers[index].injection.is_async:
            return self._in_thread(function, arguments)
        call: Awaitable[Any] = function(**arguments)
        if self._deadline is None:
            return call
        return self._cut_off(call, asyncio.get_running_loop().time() + self._deadline)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """Return each handler, to be called and awaited without `call`; None where it cannot be."""
        if self._deadline is not None:
            return [None] * len(self._handlers)
        return [
            _direct(function, handler.injection.name)
            for function, handler in zip(self._functions(instance), self._handlers, strict=True)
        ]

    def _functions(self, instance: Any) -> list[Callable[..., Any]]:
        if instance is not self._bound_to:
            self._bound = [handler.bind(instance) for handler in self._handlers]
            self._bound_to = instance
        return self._bound

    async def in_thread(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call a function without a deadline, in the actor's thread if it has one."""
        worker = self._worker
        called = function(*args) if worker is None else await worker.run(function, *args)
        return await _awaited(called)

    async def _cut_off(self, call: Awaitable[Any], until: float) -> Any:
        # In a task of its own: code that swallows its cancellation must not block the actor.
        running = self._running = asyncio.ensure_future(_contained(call, self._name))
        try:
            result, error = await self._within(running, until)
        finally:
            if running.done():
                self._running = None
            # What it raised has this frame in its traceback.
            del running
        if error is not None:
            raise error
        return result

    async def _within(self, running: asyncio.Task[_Outcome], until: float) -> _Outcome:
        left = max(0.0, until - asyncio.get_running_loop().time())
        try:
            done, _ = await asyncio.wait((running,), timeout=left)
            if done:
                return running.result()
            running.cancel()
            done, _ = await asyncio.wait((running,), timeout=_REST)
            self._stats["messages.cut_off"] += 1
            text = f"the handler took longer than its deadline of {self._deadline:g} s"
            if not done:
                where = place(frames_of(running)) or "its code"
                self._stats["actors.abandoned"] += 1
                let_go([running])
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

    async def _in_thread(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        assert self._worker is not None
        deadline = self._deadline
        if deadline is None:
            return await _awaited(await self._worker.run(function, **arguments))
        if (trouble := self.trouble) is not None:
            raise RuntimeError(f"the handler was not called: {trouble}")
        until = asyncio.get_running_loop().time() + deadline
        running = self._worker.begin(function, **arguments)
        try:
            done, _ = await asyncio.wait((running,), timeout=deadline)
            if done:
                result = running.result()
                return await self._cut_off(result, until) if inspect.isawaitable(result) else result
        finally:
            running.cancel()
            # What it raised has this frame in its traceback.
            done = set()
            del running
        self._stats["messages.cut_off"] += 1
        self.replace_thread()
        raise deadline_missed(
            f"the handler took longer than its deadline of {deadline:g} s; its thread is given up"
        )


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
        return self._caller.thread_call or (None if task is None else users_part(task))

    @property
    def place(self) -> str | None:
        """What is running, and at which line; None if nothing is."""
        task = self.task
        return self._caller.in_thread_at or (None if task is None else place(frames_of(task)))


def _direct(function: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    if not inspect.iscoroutinefunction(function):
        return None
    if returns_nothing(function):
        return function
    return lambda **arguments: looked_at(function(**arguments), name)


def _ignore(error: BaseException) -> None:
    pass


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


async def _awaited(result: Any) -> Any:
    # A plain function may return the coroutine of another one.
    return await result if inspect.isawaitable(result) else result
