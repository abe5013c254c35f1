"""The thread worker: a thread that runs blocking functions, one at a time."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, Self, TypeVar

import pykka

from .._texts import error_name
from ..errors import ActorStopped
from ._forked_processes import leave_process

__all__ = ["ThreadWorker"]

P = ParamSpec("P")
T = TypeVar("T")


class _Job:
    """A function in the queue. Its outcome may be set by the thread, or by whoever abandons it.

    It drops its future once that has an outcome: an error refers to the frames that it came
    through, and to their callers, which refer to the job.
    """

    __slots__ = ("__weakref__", "_call", "_future", "_lock", "_name")

    def __init__(self, name: str, call: Callable[[], Any], future: Future[Any]) -> None:
        self._name = name
        self._call = call
        self._lock = threading.Lock()
        self._future: Future[Any] | None = future

    def run(self) -> None:
        if not self._begin():
            return
        process = os.getpid()
        try:
            try:
                result = self._call()
            finally:
                if os.getpid() != process:
                    leave_process(self._name)
        except (StopIteration, GeneratorExit) as error:
            # A future refuses StopIteration; both would end the coroutine that awaits it.
            wrapped = RuntimeError(f"the function raised {error_name(error)}")
            wrapped.__cause__ = error
            self.fail(wrapped)
            del wrapped
        except BaseException as error:  # noqa: BLE001  (it goes to the one who waits)
            self.fail(error)
        else:
            future = self._take()
            if future is not None:
                future.set_result(result)

    def fail(self, error: BaseException) -> None:
        future = self._take()
        if future is not None:
            future.set_exception(error)

    def _begin(self) -> bool:
        with self._lock:
            future = self._future
            return future is not None and future.set_running_or_notify_cancel()

    def _take(self) -> Future[Any] | None:
        with self._lock:
            future, self._future = self._future, None
        return None if future is None or future.done() else future


class _Runner(pykka.ThreadingActor):
    # A function that hangs forever must not keep the process from ending.
    use_daemon_thread = True
    ident: int | None = None

    def on_start(self) -> None:
        self.ident = threading.get_ident()

    def on_receive(self, message: _Job) -> None:
        message.run()


class ThreadWorker(Executor):
    """A dedicated daemon thread for blocking functions, which run one at a time, in order.

    Args:
        name: for error messages.
    """

    def __init__(self, name: str = "worker") -> None:
        self._name = name
        self._jobs: dict[_Job, None] = {}
        self._closed = False
        # Not start(): that would enter it in pykka's registry, which all applications share.
        self._runner = _Runner()
        self._runner._start_actor_loop()

    @classmethod
    def spawn(cls, name: str = "worker") -> Self:
        """Return a worker whose thread has started; the same as calling the class."""
        return cls(name)

    @property
    def ident(self) -> int | None:
        """The thread's identifier; None before it runs."""
        return self._runner.ident

    @property
    def alive(self) -> bool:
        """Whether its thread is alive; after `abandon` it is until its function returns."""
        return self._runner.actor_ref.is_alive()

    @property
    def current(self) -> object | None:
        """An object that stands for the running function; None if there is none."""
        return next(iter(self._jobs), None)

    @property
    def busy(self) -> bool:
        """Whether a function is running or waiting for its turn."""
        return bool(self._jobs)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in the thread and wait for its result.

        The function sees the caller's context variables. If the caller is cancelled, a function
        that has not begun never runs, and the result of one that has is ignored.

        Raises:
            ActorStopped: the worker is stopped or abandoned, before the call or while the function
                waits for its turn.
            Exception: whatever the function raises.
        """
        return await self.begin(fn, *args, **kwargs)

    def begin(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start `run` without waiting; cancelling the returned future is like cancelling `run`."""
        call = functools.partial(contextvars.copy_context().run, fn, *args, **kwargs)
        # Through the loop, so that one with virtual time knows that a thread is at work.
        return asyncio.get_running_loop().run_in_executor(self, call)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a function, as `run` does, but without an event loop. Raises ActorStopped."""
        if self._closed:
            raise ActorStopped(f"thread worker {self._name!r} has stopped")
        future: Future[T] = Future()
        job = _Job(self._name, functools.partial(fn, *args, **kwargs), future)
        self._jobs[job] = None
        # Not the job itself: the job and its future would refer to each other.
        future.add_done_callback(functools.partial(_forget, self._jobs, weakref.ref(job)))
        self._runner.actor_ref.tell(job)
        return future

    async def stop(self, timeout: float = 10.0) -> bool:
        """Accept no more functions, wait until the accepted ones are done, and end the thread.

        Args:
            timeout: seconds; after that the worker is abandoned.

        Returns:
            Whether everything was finished in time.
        """
        if self._closed:
            return not self._jobs
        last = asyncio.get_running_loop().run_in_executor(self, _nothing)
        self._closed = True
        try:
            done, _ = await asyncio.wait((last,), timeout=timeout)
            return bool(done)
        finally:
            last.cancel()
            self.abandon()

    def abandon(self, last: Callable[[], object] | None = None) -> None:
        """Abandon the thread, which ends once the function that it may hang in returns.

        Callers of waiting functions get ActorStopped at once, and so does the caller of the one
        that hangs.

        Args:
            last: called in the thread before it ends; what it raises is lost.
        """
        self._closed = True
        error = ActorStopped(f"thread worker {self._name!r} was abandoned")
        for job in list(self._jobs):
            job.fail(error)
        if self._runner.actor_ref.is_alive():
            if last is not None:
                self._runner.actor_ref.tell(_Job(self._name, last, Future()))
            self._runner.stop()


def _forget(jobs: dict[_Job, None], job: weakref.ref[_Job], _: Future[Any]) -> None:
    done = job()
    if done is not None:
        jobs.pop(done, None)


def _nothing() -> None:
    pass
