"""Threads that a program starts itself: what is known of their work, and what is not."""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..._busy_threads import BusyThread
from ._executor_threads import ExecutorThreads, ThreadWait
from ._stacks import frames_of_other_threads, stack_of_frame

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
    """A thread that a program has started does work that was not announced to the harness."""


class ForeignThreads:
    """The known work of threads that a program has started itself.

    Work becomes known by `announce`, and by futures: one that is made in the same module as the
    entry point of a thread is assumed to be completed by that thread.

    Args:
        loop: the loop that they work for.

    Attributes:
        problems: warnings for the author of the test.
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
        """Note a new future, unless it was made by code of asyncio or the runtime."""
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
        """Describe the work that was announced and has not ended."""
        frames = frames_of_other_threads()
        return [
            f"{work.name}, announced in {work.place}{stack_of_frame(frames.get(work.ident or 0))}"
            for work in tuple(self._announced)
        ]

    def leave_alone(self) -> list[str]:
        """Stop waiting for the announced work; return what `busy` says of it."""
        late = self.busy()
        self._announced.clear()
        return late

    def awaited(self) -> list[asyncio.Future[Any]]:
        """Return the futures that a thread may be about to complete."""
        pending = [future for future in tuple(self._made) if not future.done()]
        if not pending:
            return []
        modules = {module for thread in self._threads() for module in _modules_of(thread)}
        if modules:
            modules.add(_ANY_THREAD)
        return [future for future in pending if self._made[future][0] in modules]

    def give_up(self, futures: list[asyncio.Future[Any]], seconds: float) -> None:
        """Stop waiting for futures; warn once for each place that makes them."""
        for future in futures:
            _, place = self._made.pop(future)
            self._name(
                place,
                f"time goes on although the future made in {place} was not completed within"
                f" {seconds:g} real seconds. If a thread completes it, {_HOW}. If none does, make"
                " it in a module that has no thread's entry point, so that nobody waits for it",
            )

    def has_children(self) -> bool:
        """Tell whether asyncio waits in a thread for a process that the loop has started."""
        return any(_waits_for_child(thread) for thread in self._threads())

    @property
    def waits_for_loop(self) -> bool:
        """Whether the event loop has yet to answer one of these threads."""
        return bool(self._asked)

    def describe(self) -> str:
        """Name the threads that nobody has announced, and where they are; "" if there are none."""
        frames = frames_of_other_threads()
        there = [
            f"{thread.name}{_innermost(frames.get(thread.ident or 0))}"
            for thread in self._threads()
            if thread not in self._known and not any(map(_is_private, _modules_of(thread)))
        ]
        return f"; threads that nobody has announced: {', '.join(there[:_NAMED])}" if there else ""

    # In any thread.

    def announce(self, name: str, place: str) -> BusyThread:
        """Announce the work of a thread; it counts until its `BusyThread.end`."""
        work = BusyThread(name, place, self._done, self)
        self._announced[work] = None
        return work

    def _done(self, work: BusyThread) -> None:
        self._announced.pop(work, None)
        self._loop.wake()

    def wait_until(
        self, subscribe: Callable[[Callable[[], None]], object], timeout: float | None = None
    ) -> None:
        """See `WaitsForLoop.wait_until`; announced work of this thread does not count meanwhile."""
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
        """Note that a thread has the loop run a coroutine, and usually waits for its result."""
        self._asked[answer] = None
        answer.add_done_callback(lambda _: self._asked.pop(answer, None))

    def heard(self, thread: threading.Thread) -> None:
        """Warn of a thread that calls into the running loop without announced work."""
        if (
            self._announced
            or thread is threading.main_thread()
            or _waits_for_child(thread)
            or not self._makers.isdisjoint((_ANY_THREAD, *_modules_of(thread)))
        ):
            return
        where = _innermost(frames_of_other_threads().get(thread.ident or 0))
        self._name(
            f"{thread.name}{_modules_of(thread)}",
            f"thread {thread.name!r} calls into the application at an unpredictable moment, so the"
            f" test can have a different outcome each time{where}; {_HOW}",
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
    """Tell whether it is asyncio's thread that waits for a process the loop has started."""
    return getattr(getattr(thread, "_target", None), "__name__", "") == "_do_waitpid"


@functools.lru_cache(maxsize=1024)
def _is_private(module: str) -> bool:
    return module.partition(".")[0] in ("asyncio", __name__.partition(".")[0])


def _modules_of(thread: threading.Thread) -> tuple[str, ...]:
    """Return the modules that hold the entry point of a thread."""
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
