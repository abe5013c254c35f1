"""A thread that runs blocking functions, one at a time."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, Self, TypeVar

import pykka

from ..errors import ActorStopped

__all__ = ["ThreadWorker"]

P = ParamSpec("P")
T = TypeVar("T")


class _Job:
    """A function in the queue. Its outcome may be set by the thread, or by who abandons it."""

    __slots__ = ("_call", "_lock", "future")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self.future: Future[Any] = Future()

    def run(self) -> None:
        with self._lock:
            if self.future.done() or not self.future.set_running_or_notify_cancel():
                return
        try:
            result = self._call()
        except StopIteration as error:
            # A future refuses StopIteration, which would end the coroutine that awaits it.
            wrapped = RuntimeError("the function raised StopIteration")
            wrapped.__cause__ = error
            self.fail(wrapped)
        except BaseException as error:  # noqa: BLE001  (it goes to the one who waits)
            self.fail(error)
        else:
            with self._lock:
                if not self.future.done():
                    self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)


class _Runner(pykka.ThreadingActor):
    # A function that hangs for ever must not keep the process from ending.
    use_daemon_thread = True
    ident: int | None = None

    def on_start(self) -> None:
        self.ident = threading.get_ident()

    def on_receive(self, message: _Job) -> None:
        message.run()


class ThreadWorker(Executor):
    """A daemon thread of its own for blocking functions, which run one at a time, in order.

    Args:
        name: for error messages.
    """

    def __init__(self, name: str = "worker") -> None:
        self._name = name
        self._jobs: dict[_Job, None] = {}
        self._closed = False
        # Not Runner.start(): that enters it in pykka's registry, which all applications share.
        self._runner = _Runner()
        self._runner._start_actor_loop()

    @classmethod
    def spawn(cls, name: str = "worker") -> Self:
        """A worker with its thread started; the same as making one."""
        return cls(name)

    @property
    def ident(self) -> int | None:
        """The thread's identifier; None before it runs."""
        return self._runner.ident

    @property
    def busy(self) -> bool:
        """Whether a function runs or waits for its turn."""
        return bool(self._jobs)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in the thread and wait for its result.

        The function sees the caller's context variables. If the caller is cancelled, a function
        that has not begun never runs, and one that has runs on unheeded.

        Raises:
            ActorStopped: the worker is stopped or abandoned, before or while the function waits
                for its turn.
            Exception: whatever the function raises.
        """
        call = functools.partial(contextvars.copy_context().run, fn, *args, **kwargs)
        # Through the loop, so that one with a clock of its own knows that a thread is at work.
        return await asyncio.get_running_loop().run_in_executor(self, call)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a function; what `run` does without an event loop. Raises ActorStopped."""
        if self._closed:
            raise ActorStopped(f"thread worker {self._name!r} has stopped")
        job = _Job(functools.partial(fn, *args, **kwargs))
        self._jobs[job] = None
        job.future.add_done_callback(lambda _: self._jobs.pop(job, None))
        self._runner.actor_ref.tell(job)
        return job.future

    async def stop(self, timeout: float = 10.0) -> bool:
        """Take no more functions, wait until those taken are done, and end the thread.

        Args:
            timeout: seconds; after that the worker is abandoned.

        Returns:
            Whether everything was done in time.
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

    def abandon(self) -> None:
        """Give up the thread, which ends when the function it may hang in returns.

        What waits for its turn gets ActorStopped at once, and so does what waits for the
        function that hangs.
        """
        self._closed = True
        error = ActorStopped(f"thread worker {self._name!r} was abandoned")
        for job in list(self._jobs):
            job.fail(error)
        if self._runner.actor_ref.is_alive():
            self._runner.stop()


def _nothing() -> None:
    pass
