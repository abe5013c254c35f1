"""Threads that a program starts by itself: what is known of their work, and what is not."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..._busy_threads import BusyThread
from ._executor_threads import ExecutorThreads, ThreadWait
from ._stacks import stack_of_frame

if TYPE_CHECKING:
    from ._virtual_time import VirtualLoop

__all__ = ["ForeignThreads", "UnannouncedThread"]

_NAMED = 5
_WRAP_FUTURE = asyncio.wrap_future.__code__
_SUBMIT = ExecutorThreads.submit.__code__
_ANY_THREAD = "*"
_HOW = (
    "announce its work with busy_thread(), see 'Threads' in the documentation of the test harness"
)


class UnannouncedThread(RuntimeWarning):
    """A thread that a program has started works for it, and the harness did not hear of that."""


class ForeignThreads:
    """What the threads that a program has started itself still have to do, as far as it is told.

    Work is told by `announce`, and by futures: one that is made where a thread comes from, in the
    same module, is taken for one that the thread completes.

    Args:
        loop: that they work for.

    Attributes:
        problems: what has to be told to who writes the test.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._known = set(threading.enumerate())
        self._announced: dict[BusyThread, None] = {}
        self._made: weakref.WeakKeyDictionary[asyncio.Future[Any], tuple[str, str]] = (
            weakref.WeakKeyDictionary()
        )
        self._makers: set[str] = set()
        self._named: set[str] = set()
        self._asked: dict[Future[Any], None] = {}
        self.problems: list[str] = []

    # In the thread of the loop.

    def note(self, future: asyncio.Future[Any], maker: FrameType) -> None:
        """A future was made on the loop by code other than asyncio's and the runtime's."""
        module = maker.f_globals.get("__name__", "")
        if maker.f_code is _WRAP_FUTURE:
            module, maker = _ANY_THREAD, maker.f_back or maker
            if maker.f_code is _SUBMIT:
                return
        elif _is_private(module):
            return
        self._makers.add(module)
        self._made[future] = module, f"{maker.f_code.co_filename}:{maker.f_lineno}"

    def busy(self) -> list[str]:
        """Describe the work that was announced and is not done."""
        frames = sys._current_frames()
        return [
            f"{work.name}, announced in {work.place}{stack_of_frame(frames.get(work.ident or 0))}"
            for work in tuple(self._announced)
        ]

    def leave_alone(self) -> list[str]:
        """Stop waiting for what is announced at the moment; return what `busy` says of it."""
        late = self.busy()
        self._announced.clear()
        return late

    def awaited(self) -> list[asyncio.Future[Any]]:
        """The futures that a thread may be about to complete."""
        pending = [future for future in tuple(self._made) if not future.done()]
        if not pending:
            return []
        modules = {module for thread in self._threads() for module in _modules_of(thread)}
        if modules:
            modules.add(_ANY_THREAD)
        return [future for future in pending if self._made[future][0] in modules]

    def give_up(self, futures: list[asyncio.Future[Any]], seconds: float) -> None:
        """Stop waiting for futures; say so once for each place that makes them."""
        for future in futures:
            _, place = self._made.pop(future)
            self._name(
                place,
                f"time goes on although the future made in {place} was not completed within"
                f" {seconds:g} real seconds. If a thread does that, {_HOW}. If none does, make it"
                " in a module in which no thread has its beginning, and nobody waits for it",
            )

    def has_children(self) -> bool:
        """Whether asyncio waits in a thread for a process that the loop has started."""
        return any(_waits_for_child(thread) for thread in self._threads())

    @property
    def waits_for_loop(self) -> bool:
        """Whether the event loop has yet to answer one of these threads."""
        return bool(self._asked)

    def describe(self) -> str:
        """Say which threads nobody has announced, and where they are; empty without any."""
        frames = sys._current_frames()
        there = [
            f"{thread.name}{_innermost(frames.get(thread.ident or 0))}"
            for thread in self._threads()
            if thread not in self._known and not any(map(_is_private, _modules_of(thread)))
        ]
        return f"; threads that nobody has announced: {', '.join(there[:_NAMED])}" if there else ""

    # In any thread.

    def announce(self, name: str, place: str) -> BusyThread:
        """Work that a thread has, until it is said to be done."""
        work = BusyThread(name, place, self._done, self)
        self._announced[work] = None
        return work

    def _done(self, work: BusyThread) -> None:
        self._announced.pop(work, None)
        self._loop.wake()

    def wait_until(
        self, subscribe: Callable[[Callable[[], None]], object], timeout: float | None = None
    ) -> None:
        """See `WaitsForLoop.wait_until`: what this thread has announced is no work meanwhile."""
        wait, called = ThreadWait(), threading.Event()
        mine = [work for work in tuple(self._announced) if work.ident == threading.get_ident()]

        def resume() -> None:
            with self._lock:
                if not wait.over and wait.begun:
                    self._announced.update((work, None) for work in mine if not work.is_over)
                wait.over = True
            called.set()

        subscribe(resume)
        if timeout is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, timeout, resume)
        with self._lock:
            wait.begun = True
            if not wait.over:
                for work in mine:
                    self._announced.pop(work, None)
        self._loop.wake()
        called.wait()

    def asks(self, answer: Future[Any]) -> None:
        """A thread has the loop run a coroutine, and mostly waits for what comes of it."""
        self._asked[answer] = None
        answer.add_done_callback(lambda _: self._asked.pop(answer, None))

    def heard(self, thread: threading.Thread) -> None:
        """A thread calls into the loop, which runs."""
        if (
            self._announced
            or thread is threading.main_thread()
            or _waits_for_child(thread)
            or not self._makers.isdisjoint((_ANY_THREAD, *_modules_of(thread)))
        ):
            return
        where = _innermost(sys._current_frames().get(thread.ident or 0))
        self._name(
            f"{thread.name}{_modules_of(thread)}",
            f"thread {thread.name!r} calls into the application at a moment of its own, so that"
            f" the test can have another outcome each time{where}; {_HOW}",
        )

    def _name(self, what: str, text: str) -> None:
        if what not in self._named:
            self._named.add(what)
            self.problems.append(text)

    def _threads(self) -> Iterator[threading.Thread]:
        main = threading.main_thread()
        for thread in threading.enumerate():
            if (
                thread is not main
                and thread is not threading.current_thread()
                and not getattr(thread, "spa_dat_watches", False)
                and not self._loop.threads.knows(thread)
            ):
                yield thread


def _waits_for_child(thread: threading.Thread) -> bool:
    """Whether it is asyncio's, and waits for a process that the loop has started."""
    return getattr(getattr(thread, "_target", None), "__name__", "") == "_do_waitpid"


@functools.lru_cache(maxsize=1024)
def _is_private(module: str) -> bool:
    return module.partition(".")[0] in ("asyncio", __name__.partition(".")[0])


def _modules_of(thread: threading.Thread) -> tuple[str, ...]:
    """The modules in which the code of a thread begins."""
    begins = [getattr(thread, "_target", None), getattr(thread, "function", None), type(thread)]
    modules = []
    for begin in begins:
        while isinstance(begin, functools.partial):
            begin = begin.func
        owner = getattr(begin, "__self__", None)
        for code in (begin, None if owner is None else type(owner)):
            module = getattr(code, "__module__", None)
            if module is not None and module != threading.__name__:
                modules.append(str(module))
    return tuple(modules)


def _innermost(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    name = frame.f_code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f" in {frame.f_code.co_name} ({name}:{frame.f_lineno})"
