"""Running functions in threads one at a time, so that what they do has an order."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ...errors import ActorStopped
from ._idle import is_idle
from ._stacks import stack_of_frame

__all__ = ["Threads"]

T = TypeVar("T")

_LOOK = 0.02
_LOOKS = 3
_GONE = "the application that this thread belonged to is gone"


class _Job:
    """One function in a thread. It runs while the loop's thread waits, and the other way round."""

    __slots__ = ("done", "executor", "gate", "ident", "killed", "loose", "started")

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.gate = threading.Lock()
        self.gate.acquire()
        self.started = self.done = self.killed = self.loose = False
        self.ident: int | None = None

    def wait(self) -> None:
        self.gate.acquire()
        if self.killed:
            raise ActorStopped(_GONE)

    def go(self) -> None:
        if self.gate.locked():
            self.gate.release()


class Threads:
    """The threads of one event loop, of which one runs at a time, and only when the loop does not.

    Args:
        loop: whose threads they are.
        grace: the most real seconds that one function may take between two waits for the loop.
        stuck: called with a text that names a function that takes longer.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, grace: float, stuck: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._grace = grace
        self._stuck = stuck
        self._jobs: dict[_Job, None] = {}
        self._runnable: deque[_Job] = deque()
        self._by_ident: dict[int, _Job] = {}
        self._granted: _Job | None = None
        self._yielded = threading.Lock()
        self._yielded.acquire()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def waiting(self) -> bool:
        """Whether the loop's thread is waiting for one of these threads."""
        return self._granted is not None

    @property
    def busy(self) -> int:
        """Functions that are not done."""
        return len(self._jobs)

    def knows(self, thread: threading.Thread) -> bool:
        """Whether the thread is one of these, or was."""
        return thread.ident in self._by_ident

    # In the thread of the loop.

    def submit(
        self, executor: Executor | None, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """What a loop's ``run_in_executor`` does."""
        if executor is None:
            executor = self._pool = self._pool or ThreadPoolExecutor(thread_name_prefix="spa_dat")
        job = _Job(executor)
        running: Future[T] = executor.submit(self._run, job, function, *args)
        self._jobs[job] = None
        self._runnable.append(job)
        future = asyncio.wrap_future(running, loop=self._loop)
        # After the callback of wrap_future: whoever waits has the result by then.
        running.add_done_callback(lambda _: self._over(job))
        return future

    def step(self) -> bool:
        """Let one thread run until it ends or waits for the loop; False when none wants to."""
        for _ in range(len(self._runnable)):
            job = self._runnable.popleft()
            if job.done:
                continue
            if not job.started and not self._has_thread(job.executor):
                self._runnable.append(job)
                continue
            job.started = True
            self._grant(job)
            return True
        return False

    def close(self) -> None:
        """Nothing runs any more."""
        for job in tuple(self._jobs):
            self._kill(job)
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _has_thread(self, executor: Executor) -> bool:
        running = sum(job.started and job.executor is executor for job in self._jobs)
        return running < getattr(executor, "_max_workers", 1)

    def _grant(self, job: _Job) -> None:
        self._granted = job
        # What a thread left that was given up while it was about to answer.
        self._yielded.acquire(blocking=False)
        job.go()
        give_up = time.monotonic() + self._grace
        looks = 0
        try:
            while not self._yielded.acquire(timeout=_LOOK):
                frame = sys._current_frames().get(job.ident or 0)
                looks = looks + 1 if frame is not None and is_idle(frame) else 0
                if looks >= _LOOKS:
                    # It waits for something that only the loop, or another thread, can bring.
                    job.loose = True
                    return
                if time.monotonic() > give_up:
                    job.loose = True
                    self._stuck(
                        f"work in a thread did not end within {self._grace:g} real seconds"
                        f"{stack_of_frame(frame)}"
                    )
                    return
        finally:
            self._granted = None

    def _resume(self, job: _Job) -> None:
        if not job.done:
            self._runnable.append(job)

    def _kill(self, job: _Job) -> None:
        self._jobs.pop(job, None)
        if job.done:
            return
        job.done = job.killed = True
        if job.started and not job.loose:
            # It cleans up now, and not while the loop does something else.
            self._grant(job)
        else:
            job.go()

    # In any thread.

    def _over(self, job: _Job) -> None:
        if threading.get_ident() != job.ident:
            # Cancelled or abandoned by the loop: its thread must not wait for ever.
            self._kill(job)
        elif not job.killed:
            job.done = True
            self._jobs.pop(job, None)
            if self._granted is job and not job.loose:
                self._yielded.release()

    # In the threads.

    def _run(self, job: _Job, function: Callable[..., T], *args: Any) -> T:
        job.ident = threading.get_ident()
        self._by_ident[job.ident] = job
        try:
            job.wait()
            return function(*args)
        finally:
            if job.killed and self._granted is job:
                self._yielded.release()

    def is_dead(self) -> bool:
        """Whether the calling thread runs something that was given up."""
        job = self._by_ident.get(threading.get_ident())
        return job is not None and job.killed

    def wait_for(self, future: Future[T]) -> T:
        """Wait in a thread for what the loop does; the loop runs meanwhile.

        Raises:
            ActorStopped: what the thread runs was given up.
            Exception: what the future has.
        """
        job = self._by_ident.get(threading.get_ident())
        if job is None or job.loose:
            return future.result()
        if job.killed:
            raise ActorStopped(_GONE)
        future.add_done_callback(lambda _: self._resume(job))
        self._yielded.release()
        job.wait()
        return future.result()
