"""An event loop whose clock jumps instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextvars import Context
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

from ..._environment import Environment
from ._idle import Sign, is_idle, sign_of
from ._threads import Threads

if TYPE_CHECKING:
    from ._network import Network

__all__ = ["Deadlock", "VirtualEnvironment", "VirtualLoop"]

_Events = list[tuple[selectors.SelectorKey, int]]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1000.0
"""The time on the clock of a new loop, in seconds."""

_SETTLING_LOOKS = 3
_LOOK = 0.002


class Deadlock(AssertionError):
    """Everything waits, and nothing is scheduled that could end it."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time.

    When nothing is ready its clock jumps to the next timer. Before it jumps, work in threads is
    waited for in real time: a thread counts as working until it waits for a lock, a queue or a
    future.

    Args:
        grace: the most real seconds to wait for threads, or for sockets, at one point of virtual
            time.
        one_at_a_time: functions in threads run one at a time, and only while the loop waits for
            them, so that a run can be repeated exactly. Threads that were started by other means
            than ``run_in_executor`` are then only noticed when the clock is about to jump.

    Attributes:
        on_iteration: called at the start of each iteration; True when it has scheduled anything.
        on_idle: called when nothing is ready any more, with the seconds to the next timer (None:
            there is none); True when it has made something ready, so that the clock must not jump.
        on_stuck: called with a text instead of raising `Deadlock`.
        network: hosts that connections are made to without sockets; None for none.
    """

    def __init__(self, grace: float = 10.0, *, one_at_a_time: bool = False) -> None:
        self._virtual_now = START
        self._grace = grace
        self._executor_work = 0
        self._outside = False
        self._known_threads = set(threading.enumerate())
        self._signs: dict[threading.Thread, Sign] = {}
        self.on_iteration: Callable[[], bool] | None = None
        self.on_idle: Callable[[float | None], bool] | None = None
        self.on_stuck: Callable[[str], None] | None = None
        self.network: Network | None = None
        self.threads = Threads(self, grace, self._stuck) if one_at_a_time else None
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds; starts at 1000."""
        return self._virtual_now

    @property
    def is_waiting(self) -> bool:
        """Whether it waits in real time for something outside, as it may."""
        return self._outside or (self.threads is not None and self.threads.waiting)

    def close(self) -> None:
        """As usual; what runs in threads is left to itself."""
        if self.threads is not None:
            self.threads.close()
        super().close()

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As usual; the clock stands still until the work is done."""
        if self.threads is not None:
            return self.threads.submit(executor, func, *args)
        future = super().run_in_executor(executor, func, *args)
        self._executor_work += 1
        future.add_done_callback(self._executor_work_done)
        return future

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """As usual; to a host of ``network`` without sockets, and always without encryption."""
        if self.network is not None and self.network.claims(host):
            return await self.network.connect(protocol_factory, host, port)
        return await super().create_connection(protocol_factory, host, port, **options)

    def wait_in_thread(self, future: Future[T]) -> T:
        """What a thread calls that has to wait for something that the loop does."""
        return future.result() if self.threads is None else self.threads.wait_for(future)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As usual; what a thread asks for that was given up never happens."""
        if self.threads is not None and self.threads.is_dead():
            handle = asyncio.Handle(callback, args, self, context)
            handle.cancel()
            return handle
        return super().call_soon_threadsafe(callback, *args, context=context)

    def _executor_work_done(self, _: object) -> None:
        self._executor_work -= 1

    def _jump(self, seconds: float) -> None:
        self._virtual_now += seconds

    def _stuck(self, text: str) -> None:
        if self.on_stuck is None:
            raise Deadlock(text)
        self.on_stuck(text)

    def _working(self) -> list[str]:
        """Names of what works outside the loop."""
        names = []
        for thread, frame in self._threads_at_hand():
            if not is_idle(frame):
                code = frame.f_code
                file = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
                names.append(f"{thread.name} in {code.co_name} ({file}:{frame.f_lineno})")
        if self._executor_work and not names:
            names.append(f"{self._executor_work} executor call(s)")
        return names

    def _have_run(self) -> bool:
        """Whether other threads may have run since it was asked last."""
        signs = {thread: sign_of(thread, frame) for thread, frame in self._threads_at_hand()}
        before, self._signs = self._signs, signs
        return signs != before

    def _threads_at_hand(self) -> list[tuple[threading.Thread, FrameType]]:
        frames = sys._current_frames()
        return [
            (thread, frames[thread.ident])
            for thread in threading.enumerate()
            if thread.ident in frames and not self._is_foreign(thread)
        ]

    def _has_threads(self) -> bool:
        return any(not self._is_foreign(thread) for thread in threading.enumerate())

    def _is_foreign(self, thread: threading.Thread) -> bool:
        """Whether the clock takes no notice of the thread."""
        return (
            thread in self._known_threads
            or getattr(thread, "spa_dat_watches", False)
            or (self.threads is not None and self.threads.knows(thread))
        )


class _JumpingSelector(selectors.BaseSelector):
    """Polls the real selector; where that would wait, the loop's clock jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._real = selectors.DefaultSelector()
        self._loop = loop
        self._gave_up = False

    def select(self, timeout: float | None = None) -> _Events:
        loop = self._loop
        if loop.on_iteration is not None and loop.on_iteration():
            return []
        if loop.threads is not None and loop.threads.step():
            return []
        due = timeout is not None and timeout <= 0
        if due and loop.threads is not None:
            # Sockets and other threads have to wait for a moment in which nothing is ready.
            return []
        events = self._real.select(0)
        if events:
            self._gave_up = False
        if events or due:
            return events
        events = self._outside(self._wait_for_threads)
        if events:
            return events
        if loop.on_idle is not None and loop.on_idle(timeout):
            return []
        events = self._outside(self._wait_for_sockets)
        if events:
            return events
        if timeout is None:
            loop._stuck(
                "deadlock: nothing is ready, no timer is set and no thread is working, so"
                f" nothing will ever happen; waiting: {_waiting(loop)}"
            )
            return []
        loop._jump(timeout)
        return []

    def _outside(self, wait: Callable[[], _Events]) -> _Events:
        self._loop._outside = True
        try:
            return wait()
        finally:
            self._loop._outside = False

    def _wait_for_sockets(self) -> _Events:
        # One is the loop's own.
        if self._gave_up or self._loop.threads is None or len(self._real.get_map()) <= 1:
            return []
        events = self._real.select(self._loop._grace)
        self._gave_up = not events
        return events

    def _wait_for_threads(self) -> _Events:
        loop = self._loop
        if not loop._has_threads():
            return []
        give_up = time.monotonic() + loop._grace
        looks = 1 if loop.threads is not None else _SETTLING_LOOKS
        if looks == 1 and not loop._working() and not loop._have_run():
            # What seems to wait may only have been interrupted on its way to its next step.
            return []
        quiet = 0
        while True:
            events = self._real.select(_LOOK)
            if events:
                return events
            working = loop._working()
            quiet = 0 if working else quiet + 1
            # A thread that was just given work still looks idle until it gets to run.
            if quiet >= looks:
                return []
            if time.monotonic() > give_up:
                loop._stuck(
                    f"work outside the loop did not end within {loop._grace} real"
                    f" seconds: {', '.join(working)}"
                )
                loop._known_threads.update(threading.enumerate())
                return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


class VirtualEnvironment(Environment):
    """An environment whose wall time follows the clock of a loop.

    Args:
        seed: makes every token, identifier and jitter repeatable.
        epoch: the wall time at which the clock of the loop would be 0.
        loop: whose clock; None for the running one.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        epoch: float = 1_700_000_000.0,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(seed)
        self._epoch = epoch
        self._loop = loop

    def now(self) -> float:
        """Seconds since 1970, as far from ``epoch`` as the loop's clock is from its start."""
        return self._epoch + (self._loop or asyncio.get_running_loop()).time()


def _waiting(loop: asyncio.AbstractEventLoop) -> str:
    lines = []
    for task in asyncio.all_tasks(loop):
        stack = task.get_stack(limit=1)
        where = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else "?"
        lines.append(f"{task.get_name()} at {where}")
    return "; ".join(sorted(lines)) or "no task"
