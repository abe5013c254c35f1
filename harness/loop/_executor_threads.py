"""Functions in executor threads: the event loop knows at any moment which of them are working."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ..._busy_threads import here
from ...errors import ActorStopped
from ._stacks import frames_of_other_threads, stack_of_frame

if TYPE_CHECKING:
    from ._virtual_time import VirtualLoop

__all__ = ["CallerKind", "ExecutorThreads", "ThreadWait"]

T = TypeVar("T")

_AFTER_CALL = 0.2
_GONE = "the application that this thread belonged to is gone"


class _CallState(enum.Enum):
    QUEUED = enum.auto()
    """It has not started."""
    TURN = enum.auto()
    """It runs while the loop stands still for it."""
    BESIDE = enum.auto()
    """It runs at the same time as the loop; virtual time stands still."""
    WAITING = enum.auto()
    """It is waiting for the loop."""
    LEFT_ALONE = enum.auto()
    """Nobody waits for it any more; it may still run."""
    OVER = enum.auto()


class CallerKind(enum.Enum):
    """Who calls into the loop from outside."""

    TURN = enum.auto()
    """A function in a thread that the loop stands still for."""
    BESIDE = enum.auto()
    """A function that runs at the same time as the loop."""
    DEAD = enum.auto()
    """A function that was given up."""
    STRANGER = enum.auto()
    """Any other thread."""


class _ExecutorCall:
    """One function that runs in a thread."""

    __slots__ = ("called", "executor", "gate", "ident", "killed", "state")

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.gate = threading.Semaphore(0)
        self.state = _CallState.QUEUED
        self.killed = self.called = False
        self.ident: int | None = None

    def wait(self) -> None:
        self.gate.acquire()
        if self.killed:
            raise ActorStopped(_GONE)


class ExecutorThreads:
    """The functions that one event loop runs in threads.

    Args:
        loop: the loop.
        grace: the most real seconds that one function may take between two waits for the loop.
        one_at_a_time: run one of them at a time, and only while the loop stands still. One that has
            called into the loop (``call_soon_threadsafe``) and is not done 0.2 real seconds later
            runs at the same time as the loop from then on: it may be waiting for that call.

    Attributes:
        may_outlast: tells whether functions of an executor may exceed the grace; they are then no
            longer waited for.
    """

    def __init__(self, loop: VirtualLoop, grace: float, *, one_at_a_time: bool) -> None:
        self._loop = loop
        self._grace = grace
        self._one_at_a_time = one_at_a_time
        self._jobs: dict[_ExecutorCall, None] = {}
        self._runnable: deque[_ExecutorCall] = deque()
        self._by_ident: dict[int, _ExecutorCall] = {}
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._futures: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()
        self._granted: _ExecutorCall | None = None
        self._yielded = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.may_outlast: Callable[[Executor], bool] = lambda executor: False

    @property
    def waiting(self) -> bool:
        """Whether the loop's thread is waiting for one of these threads."""
        return self._granted is not None

    def knows(self, thread: threading.Thread) -> bool:
        """Tell whether the thread runs, or has run, such functions."""
        return thread in self._threads

    def answers(self, future: object) -> bool:
        """Tell whether the future is one that `submit` has returned."""
        return isinstance(future, asyncio.Future) and future in self._futures

    # In the thread of the loop.

    def submit(
        self, executor: Executor | None, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function in an executor; for ``run_in_executor`` of the loop."""
        if executor is None:
            executor = self._pool = self._pool or ThreadPoolExecutor(thread_name_prefix="spa_dat")
        job = _ExecutorCall(executor)
        elsewhere = isinstance(executor, ProcessPoolExecutor)
        if elsewhere:
            # Nothing of this object can be sent to another process, or seen from there.
            job.state = _CallState.BESIDE
        self._jobs[job] = None
        try:
            running: Future[T] = (
                executor.submit(function, *args)
                if elsewhere
                else executor.submit(self._run, job, function, *args)
            )
        except BaseException:
            del self._jobs[job]
            raise
        if self._one_at_a_time and not elsewhere:
            self._runnable.append(job)
        future = asyncio.wrap_future(running, loop=self._loop)
        self._futures.add(future)
        future.add_done_callback(lambda _: self._answered(job, running))
        # Added after the callback of wrap_future, so the result has been passed on by then.
        running.add_done_callback(lambda _: self._over(job))
        return future

    def step(self) -> bool:
        """Let one thread run until it ends or waits for the loop; return False if none is ready."""
        for _ in range(len(self._runnable)):
            job = self._runnable.popleft()
            if job.state is _CallState.OVER:
                continue
            if job.state is _CallState.QUEUED and not self._has_thread(job.executor):
                self._runnable.append(job)
                continue
            self._grant(job)
            return True
        return False

    def busy(self) -> list[str]:
        """Describe the functions that run at the same time as the loop, or are about to."""
        frames = frames_of_other_threads()
        jobs = tuple(self._jobs)
        return [self._describe(job, frames) for job in jobs if self._is_busy(job)]

    def leave_alone(self) -> list[str]:
        """Stop waiting for what `busy` describes; return those that may not take so long."""
        frames = frames_of_other_threads()
        late = []
        for job in tuple(self._jobs):
            if self._is_busy(job):
                if not self.may_outlast(job.executor):
                    late.append(self._describe(job, frames))
                self._leave_alone(job)
        return late

    def _describe(self, job: _ExecutorCall, frames: dict[int, FrameType]) -> str:
        where = "process" if isinstance(job.executor, ProcessPoolExecutor) else "thread"
        return f"work in a {where}{stack_of_frame(frames.get(job.ident or 0))}"

    def close(self) -> None:
        """End all functions that have not ended."""
        if self._one_at_a_time:
            for job in tuple(self._jobs):
                self._kill(job)
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _is_busy(self, job: _ExecutorCall) -> bool:
        if job.state is _CallState.QUEUED:
            return not self._one_at_a_time and self._has_thread(job.executor)
        return job.state is _CallState.BESIDE

    def _has_thread(self, executor: Executor) -> bool:
        running = sum(
            job.state is not _CallState.QUEUED and job.executor is executor
            for job in tuple(self._jobs)
        )
        return running < getattr(executor, "_max_workers", 1)

    def _grant(self, job: _ExecutorCall) -> None:
        self._granted = job
        # It may be waiting for a thread that waits for the loop.
        job.state, job.called = _CallState.TURN, self._loop.foreign.waits_for_loop
        job.gate.release()
        give_up = time.monotonic() + self._grace
        try:
            while not self._yielded.acquire(timeout=min(self._grace, _AFTER_CALL)):
                late = time.monotonic() > give_up
                if not late and not job.called:
                    continue
                with self._lock:
                    if job.state is not _CallState.TURN:
                        # It has yielded just now.
                        self._yielded.acquire()
                        return
                    job.state = _CallState.LEFT_ALONE if late else _CallState.BESIDE
                if late and not self.may_outlast(job.executor):
                    frame = frames_of_other_threads().get(job.ident or 0)
                    self._loop.stuck(
                        f"work in a thread did not end within {self._grace:g} real seconds"
                        f"{stack_of_frame(frame)}"
                    )
                return
        finally:
            self._granted = None

    def _answered(self, job: _ExecutorCall, running: Future[Any]) -> None:
        """Stop waiting for a function whose result the loop has, or does not want any more."""
        self._leave_alone(job)
        if running.done():
            # Its thread is about to call `_over`, and takes up the next one then.
            self._jobs.pop(job, None)

    def _leave_alone(self, job: _ExecutorCall) -> None:
        with self._lock:
            if job.state is _CallState.BESIDE or (
                not self._one_at_a_time and job.state is _CallState.QUEUED
            ):
                job.state = _CallState.LEFT_ALONE

    def _kill(self, job: _ExecutorCall) -> None:
        self._jobs.pop(job, None)
        with self._lock:
            state, job.state = job.state, _CallState.OVER
        if state is _CallState.OVER:
            return
        job.killed = True
        if state is _CallState.WAITING:
            # Let it clean up now, and not while the loop does something else.
            self._grant(job)
            return
        job.gate.release()
        if state is _CallState.TURN:
            # Cancelled by another thread while the loop stands still for it.
            self._yielded.release()

    # In any thread.

    def _over(self, job: _ExecutorCall) -> None:
        mine = threading.get_ident() == job.ident
        if self._one_at_a_time and not mine:
            # Cancelled or abandoned by the loop: its thread must not wait forever.
            self._kill(job)
            return
        self._jobs.pop(job, None)
        if mine:
            self._by_ident.pop(threading.get_ident(), None)
        if not job.killed:
            self._yield(job, _CallState.OVER)

    def _yield(self, job: _ExecutorCall, state: _CallState) -> None:
        """Let the loop continue, which may be standing still for this call, or asleep."""
        with self._lock:
            had_turn, job.state = job.state is _CallState.TURN, state
            if had_turn:
                self._yielded.release()
        if not had_turn:
            self._loop.wake()

    # In the threads.

    def _run(self, job: _ExecutorCall, function: Callable[..., T], *args: Any) -> T:
        job.ident = threading.get_ident()
        self._by_ident[job.ident] = job
        self._threads.add(threading.current_thread())
        here.work = self
        try:
            if self._one_at_a_time:
                job.wait()
            else:
                with self._lock:
                    if job.state is _CallState.QUEUED:
                        job.state = _CallState.BESIDE
            return function(*args)
        finally:
            here.work = None
            if job.killed:
                self._by_ident.pop(threading.get_ident(), None)
                self._yield(job, _CallState.OVER)

    def caller(self) -> CallerKind:
        """Return who is calling into the loop by ``call_soon_threadsafe``."""
        job = self._by_ident.get(threading.get_ident())
        if job is None:
            return CallerKind.STRANGER
        if job.killed:
            return CallerKind.DEAD
        job.called = True
        return CallerKind.TURN if job.state is _CallState.TURN else CallerKind.BESIDE

    def stranger_asks(self) -> None:
        """Note that a foreign thread waits for the loop; the running function may wait for it."""
        granted = self._granted
        if granted is not None:
            granted.called = True

    def wait_until(
        self, subscribe: Callable[[Callable[[], None]], object], timeout: float | None = None
    ) -> None:
        """See `WaitsForLoop.wait_until`."""
        job = self._by_ident[threading.get_ident()]
        if job.killed:
            raise ActorStopped(_GONE)
        if job.state is _CallState.LEFT_ALONE:
            called = threading.Event()
            subscribe(called.set)
            called.wait(timeout)
            return
        wait = ThreadWait()

        def resume() -> None:
            with self._lock:
                if wait.over:
                    return
                wait.over = True
                if wait.begun and self._one_at_a_time:
                    self._runnable.append(job)
                elif wait.begun:
                    job.state = _CallState.BESIDE
                    job.gate.release()
            self._loop.wake()

        subscribe(resume)
        if timeout is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, timeout, resume)
        with self._lock:
            if wait.over:
                return
            wait.begun = True
            had_turn, job.state = job.state is _CallState.TURN, _CallState.WAITING
            if had_turn:
                self._yielded.release()
        if not had_turn:
            self._loop.wake()
        job.wait()


class ThreadWait:
    """One wait of a thread for the loop."""

    __slots__ = ("begun", "over")

    def __init__(self) -> None:
        self.begun = self.over = False
