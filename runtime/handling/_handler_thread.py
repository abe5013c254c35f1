"""The thread of an actor's ``def`` handlers: started, opening resources, given up when it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from ...actors import ThreadWorker, run_apart
from ...errors import ActorStopped, ConfigurationError
from ..diagnostics._stacks import frames_of_call, place
from ..diagnostics._unclean_stop import GivenUp
from ..options._resources import (
    LEAST_FOR_RESOURCES,
    LeftAlone,
    RequiredResources,
    Resource,
    opens_in_thread,
)
from ..registration._specs import Handler
from ._failures_and_retries import advice, deadline_missed
from ._thread_resources import ThreadResources

__all__ = ["HandlerThread"]

# How many threads of one actor may hang at the same time.
_MOST_HUNG = 100


class HandlerThread:
    """The thread in which the handlers of one actor run that are not coroutine functions.

    Args:
        name: its name, also for errors.
        handlers: the actor's; without such a handler there is no thread.
        deadline: seconds that a call may take; None for no limit.
        stats: the application's counters.
        given_up: called when the thread had to be abandoned, and with it whatever it uses.
        cut_off: awaits what a handler has returned until a loop time, as `HandlerCaller` does.

    Attributes:
        resources: what is opened and closed in the thread, again in each new one.
    """

    def __init__(
        self,
        name: str,
        handlers: Sequence[Handler],
        deadline: float | None,
        stats: Counter[str],
        given_up: Callable[[], None],
        cut_off: Callable[[Awaitable[Any], float], Awaitable[Any]],
    ) -> None:
        self._name = name
        self._handlers = handlers
        self._deadline = deadline
        self._stats = stats
        self._given_up = given_up
        self._cut_off = cut_off
        self._worker: ThreadWorker | None = None
        self._hung: list[ThreadWorker] = []
        self.resources: Mapping[str, Resource] = {}
        self._owner = name
        self._opened: ThreadResources | None = None
        self._leaving_failed: Callable[[BaseException], None] = _ignore
        self._stopped = False
        self._left_open: list[LeftAlone] = []

    def start(self) -> None:
        """Start the thread, if a handler needs one and it is not running. Raises ActorStopped."""
        if self._worker is None and any(
            not handler.injection.is_async for handler in self._handlers
        ):
            if self._stopped:
                raise ActorStopped(f"the thread of {self._name!r} has stopped")
            self._worker = ThreadWorker(self._name)

    def rest(self) -> None:
        """End the thread if it has nothing to do and nothing open; the next call starts another."""
        worker = self._worker
        if worker is not None and not worker.busy and self._opened is None:
            self._worker = None
            worker.abandon()

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
        if not in_time:
            self._left_open = opened.open
        with contextlib.suppress(ActorStopped, asyncio.CancelledError):
            if leaving.done() and (error := leaving.result()) is not None:
                self._leaving_failed(error)
        # The return value tells whether the thread was given up.
        leaving.add_done_callback(lambda done: done.cancelled() or done.exception())
        return in_time

    def tell_left_open(self, given_up: GivenUp) -> None:
        """Report the resources that `stop` has left open, and where one of them hangs."""
        if self._left_open and self._worker is not None:
            *others, hanging = self._left_open
            where = place(frames_of_call(self._worker.ident)) or "in code of its own"
            given_up.thread(str(hanging), where)
            given_up.unclosed(others)

    # Resources that are the thread's own.

    def take_resources(
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
        self.resources = {name: it for name, it in resources.items() if opens_in_thread(it)}
        if not self.resources:
            return required
        self._owner, self._leaving_failed = owner, leaving_failed
        others = {name: it for name, it in resources.items() if name not in self.resources}
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
        opened = self._opened = self._opened or ThreadResources(self._owner, self.resources)
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
    def current_call(self) -> object | None:
        """An object that stands for the current call in the thread; None if there is none."""
        return None if self._worker is None else self._worker.current

    @property
    def in_thread_at(self) -> str | None:
        """What the thread is running, and at which line; None if it is idle."""
        worker = self._worker
        if worker is None or not worker.busy:
            return None
        return place(frames_of_call(worker.ident)) or "a function"

    @property
    def hung_at(self) -> list[str]:
        """Where the threads are that were given up at a deadline and have not ended."""
        places = [place(frames_of_call(worker.ident)) for worker in self._hung if worker.alive]
        # Without a place its call has just ended.
        return [where for where in places if where is not None]

    def abandon(self) -> None:
        """Abandon the thread, which cannot be stopped from outside, for good."""
        self._stopped = True
        if self._worker is not None:
            self._give_up(self._worker)

    def runs_in(self, executor: Executor) -> bool:
        """Return whether the executor is the thread of these handlers."""
        return self._worker is executor

    def replace(self) -> None:
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

    async def run(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call a function without a deadline, in the actor's thread if it has one."""
        self.start()
        worker = self._worker
        called = function(*args) if worker is None else await worker.run(function, *args)
        return await _awaited(called)

    async def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call a handler in the thread, which is given up if that takes longer than the deadline.

        Raises:
            TimeoutError: it took longer.
            Exception: whatever the handler raises.
        """
        self.start()
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
        self.replace()
        raise deadline_missed(
            f"the handler took longer than its deadline of {deadline:g} s; its thread is given up"
        )


def _ignore(error: BaseException) -> None:
    pass


async def _awaited(result: Any) -> Any:
    # A plain function may return the coroutine of another one.
    return await result if inspect.isawaitable(result) else result
