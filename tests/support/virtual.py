"""An event loop whose clock jumps instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from spa_dat._environment import Environment

__all__ = ["Deadlock", "VirtualEnvironment", "VirtualLoop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_IDLE_IN = {
    ("threading.py", "wait"),
    ("threading.py", "_wait_for_tstate_lock"),
    ("threading.py", "join"),
    ("thread.py", "_worker"),
    ("queue.py", "get"),
}
_SETTLING_LOOKS = 3
_LOOK = 0.002


class Deadlock(AssertionError):
    """Everything waits, and nothing is scheduled that could end it."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time, for tests without sockets.

    When nothing is ready its clock jumps to the next timer. Before it jumps, work in threads is
    waited for in real time: a thread counts as working until it waits for a lock, a queue or a
    future.

    Args:
        grace: the most real seconds to wait for threads at one point of virtual time.
    """

    def __init__(self, grace: float = 10.0) -> None:
        self._virtual_now = 1000.0
        self._grace = grace
        self._executor_work = 0
        self._known_threads = set(threading.enumerate())
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds; starts at 1000."""
        return self._virtual_now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As usual; the clock stands still until the work is done."""
        future = super().run_in_executor(executor, func, *args)
        self._executor_work += 1
        future.add_done_callback(self._executor_work_done)
        return future

    def _executor_work_done(self, _: object) -> None:
        self._executor_work -= 1

    def _jump(self, seconds: float) -> None:
        self._virtual_now += seconds

    def _working(self) -> list[str]:
        """Names of what works outside the loop."""
        frames = sys._current_frames()
        names = []
        for thread in threading.enumerate():
            if thread in self._known_threads or thread.ident is None:
                continue
            frame = frames.get(thread.ident)
            if frame is None:
                continue
            code = frame.f_code
            place = (code.co_filename.replace("\\", "/").rsplit("/", 1)[-1], code.co_name)
            if place not in _IDLE_IN:
                names.append(f"{thread.name} in {place[1]} ({place[0]}:{frame.f_lineno})")
        if self._executor_work and not names:
            names.append(f"{self._executor_work} executor call(s)")
        return names

    def _has_threads(self) -> bool:
        return any(thread not in self._known_threads for thread in threading.enumerate())


class _JumpingSelector(selectors.BaseSelector):
    """Polls the real selector; where that would wait, the loop's clock jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._real = selectors.DefaultSelector()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._real.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        events = self._wait_for_threads()
        if events:
            return events
        if timeout is None:
            raise Deadlock(
                "deadlock: nothing is ready, no timer is set and no thread is working, so"
                f" nothing will ever happen; waiting: {_waiting(self._loop)}"
            )
        self._loop._jump(timeout)
        return []

    def _wait_for_threads(self) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._loop._has_threads():
            return []
        give_up = time.monotonic() + self._loop._grace
        quiet = 0
        while True:
            events = self._real.select(_LOOK)
            if events:
                return events
            working = self._loop._working()
            quiet = 0 if working else quiet + 1
            # A thread that was just given work still looks idle until it gets to run.
            if quiet >= _SETTLING_LOOKS:
                return []
            if time.monotonic() > give_up:
                raise Deadlock(
                    f"work outside the loop did not end within {self._loop._grace} real"
                    f" seconds: {', '.join(working)}"
                )

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
    """An environment whose wall time follows the clock of the running loop."""

    def __init__(self, seed: int = 0, *, epoch: float = 1_700_000_000.0) -> None:
        super().__init__(seed)
        self._epoch = epoch

    def now(self) -> float:
        """Seconds since 1970, as far from ``epoch`` as the loop's clock is from its start."""
        return self._epoch + asyncio.get_running_loop().time()


def _waiting(loop: asyncio.AbstractEventLoop) -> str:
    lines = []
    for task in asyncio.all_tasks(loop):
        stack = task.get_stack(limit=1)
        where = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else "?"
        lines.append(f"{task.get_name()} at {where}")
    return "; ".join(sorted(lines)) or "no task"
