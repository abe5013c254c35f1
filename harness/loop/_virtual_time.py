"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import selectors
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextvars import Context
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from ..._busy_threads import BusyThread, let_waits_be_known
from ..._environment import Environment
from ...runtime.diagnostics._stacks import frames_of, place
from ._executor_threads import CallerKind, ExecutorThreads
from ._foreign_threads import ForeignThreads

if TYPE_CHECKING:
    from ._network import Network

__all__ = ["Deadlock", "VirtualEnvironment", "VirtualLoop"]

_Events = list[tuple[selectors.SelectorKey, int]]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1000.0
"""The time on the clock of a new loop, in seconds."""

_LOOK = 0.05
_RESOLUTION = 1e-9
# More than any test needs that ends, and less than a minute of real time.
_MOST_JUMPS = _MOST_TURNS = 1_000_000
# For what still runs after that, as the loop is closed.
_MOST_AT_THE_END = 10_000
_LATEST = 1_000
_NAMED = 5
_RUN_COROUTINE = f"{asyncio.run_coroutine_threadsafe.__qualname__}.<locals>.callback"


class Deadlock(AssertionError):
    """Everything is waiting and nothing is scheduled that could end that, or it goes in circles."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time.

    When nothing is ready, its clock jumps to the next timer. Before that it waits, in real time,
    for work in threads: whatever the loop was given to run in a thread (``run_in_executor``,
    `asyncio.to_thread`), except while that waits for the loop, and whatever was announced with
    `announce` or `spa_dat.busy_thread`. It also waits for futures that only a thread can complete,
    as far as that can be known: those of `asyncio.wrap_future`, and those made in the module that
    holds the entry point of a live thread.

    What would go on for ever ends with `Deadlock`, which names what keeps it going: the clock may
    jump 1,000,000 times (unless ``on_idle`` is set, which has to limit that itself), and the loop
    may take 1,000,000 turns between two jumps.

    Args:
        grace: the most real seconds to wait for threads, or for sockets, at one point of virtual
            time.
        one_at_a_time: run functions in threads one at a time, and only while the loop waits for
            them; take up calls from other threads one at a time, when nothing is ready. That makes
            a run exactly repeatable.

    Attributes:
        on_iteration: called at the start of each iteration; returns whether it has scheduled
            anything.
        on_idle: called when nothing is ready any more, with the seconds to the next timer (None if
            there is none); returns whether it has made something ready, so that the clock must not
            jump.
        on_stuck: called with a text instead of raising `Deadlock`.
        network: hosts that can be reached without sockets; None for none.
        threads: the functions that the loop runs in threads.
        foreign: threads that the program has started itself.
    """

    # Whatever is timed on it appears to take no time.
    has_own_clock = True

    def __init__(self, grace: float = 10.0, *, one_at_a_time: bool = False) -> None:
        self._virtual_now = START
        self._grace = grace
        self._outside = False
        self._one_at_a_time = one_at_a_time
        self._home = threading.get_ident()
        self._arrivals: deque[asyncio.Handle] = deque()
        self.on_iteration: Callable[[], bool] | None = None
        self.on_idle: Callable[[float | None], bool] | None = None
        self.on_stuck: Callable[[str], None] | None = None
        self.network: Network | None = None
        self.threads: ExecutorThreads = ExecutorThreads(self, grace, one_at_a_time=one_at_a_time)
        self.foreign: ForeignThreads = ForeignThreads(self)
        self._circles = _Circles(self)
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds; it starts at 1000."""
        return self._virtual_now

    @property
    def is_waiting(self) -> bool:
        """Whether it is waiting in real time for something outside, and so is not blocked."""
        return self._outside or self.threads.waiting

    def close(self) -> None:
        """Close the loop, without waiting for functions that still run in threads."""
        self.threads.close()
        super().close()

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Schedule a call, later than now for any delay above 0.

        A rest that is lost in rounding would never pass on a clock that stands still: code that
        waits for it would run again and again.
        """
        if delay > 0 and self._virtual_now + delay == self._virtual_now:
            delay = math.ulp(self._virtual_now)
        return super().call_later(delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """Create a future, and note which code made it."""
        future = super().create_future()
        self.foreign.note(future, sys._getframe(1))
        return future

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function in an executor; the clock stands still until it is done."""
        return self.threads.submit(executor, func, *args)

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Connect, to a host of ``network`` without sockets and always without encryption."""
        if self.network is not None and self.network.claims(host):
            return await self.network.connect(protocol_factory, host, port)
        return await super().create_connection(protocol_factory, host, port, **options)

    def announce(self, name: str, place: str) -> BusyThread:
        """Announce work in a thread of the program's own; the clock stands still until it ends.

        Args:
            name: of the work, for error messages.
            place: where it was announced.
        """
        return self.foreign.announce(name, place)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule a call from another thread; drop those from a thread that was given up."""
        ident = threading.get_ident()
        caller = self.threads.caller()
        if getattr(callback, "__qualname__", None) == _RUN_COROUTINE:
            # The future that run_coroutine_threadsafe is about to return.
            answer = inspect.getclosurevars(callback).nonlocals["future"]
            let_waits_be_known(answer)
            if caller is CallerKind.STRANGER:
                self.foreign.asks(answer)
                self.threads.stranger_asks()
        if caller is CallerKind.DEAD:
            handle = asyncio.Handle(callback, args, self, context)
            handle.cancel()
            return handle
        if (
            not self._one_at_a_time
            or caller is CallerKind.TURN
            or ident in (self._home, getattr(self, "_thread_id", None))
            or self.is_closed()
        ):
            return super().call_soon_threadsafe(callback, *args, context=context)
        known = caller is not CallerKind.STRANGER or any(map(self.threads.answers, args))
        if not known and self.is_running():
            self.foreign.heard(threading.current_thread())
        handle = asyncio.Handle(callback, args, self, context)
        self._arrivals.append(handle)
        self.wake()
        return handle

    def wake(self) -> None:
        """Make the loop check again what it is waiting for; from any thread."""
        self._write_to_self()  # type: ignore[attr-defined]

    def stuck(self, text: str) -> None:
        """Report that something outside the loop does not finish."""
        if self.on_stuck is None:
            raise Deadlock(text)
        self.on_stuck(text)

    def has_sockets(self) -> bool:
        """Tell whether it watches real connections."""
        # One is the loop's own.
        return len(self._selector.get_map()) > 1  # type: ignore[attr-defined]

    def may_hear(self) -> bool:
        """Tell whether something may still arrive, over a connection or from a child process."""
        # In this order: a thread that waits for a child calls first, and then ends.
        return self.has_sockets() or self.foreign.has_children() or self.has_arrivals()

    def has_arrivals(self) -> bool:
        """Tell whether there is a call from a thread that was not taken up yet."""
        return bool(self._arrivals)

    def take_arrival(self) -> bool:
        """Take up one call from another thread; return whether there was one."""
        while self._arrivals:
            handle = self._arrivals.popleft()
            if not handle.cancelled():
                self._ready.append(handle)  # type: ignore[attr-defined]
                return True
        return False

    def busy(self) -> list[str]:
        """Describe the work outside the loop that has to end before the clock may jump."""
        return self.threads.busy() + self.foreign.busy()

    def _jump(self, seconds: float) -> None:
        self._circles.jumped()
        self._virtual_now += seconds
        # asyncio runs what is due within this resolution; after a year or so a nanosecond is less
        # than the smallest step of the clock.
        self._clock_resolution = max(_RESOLUTION, 2.0 * math.ulp(self._virtual_now))


class _JumpingSelector(selectors.BaseSelector):
    """A selector that polls the real one, and makes the clock jump where that would wait."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._real = selectors.DefaultSelector()
        self._loop = loop
        self._gave_up = False

    def select(self, timeout: float | None = None) -> _Events:
        loop = self._loop
        loop._circles.turned()
        if loop.on_iteration is not None and loop.on_iteration():
            return []
        if loop.threads.step():
            return []
        due = timeout is not None and timeout <= 0
        if due and loop._one_at_a_time:
            # Sockets and other threads have to wait until nothing is ready.
            return []
        events = self._real.select(0)
        if events:
            self._gave_up = False
        if loop.take_arrival() or events or due:
            return events
        if loop.busy() or loop.foreign.awaited():
            return self._outside(self._wait_for_threads)
        if loop.on_idle is not None and loop.on_idle(timeout):
            return []
        events = self._outside(self._wait_for_sockets)
        if events or loop.has_arrivals():
            return events
        if timeout is None:
            loop.stuck(
                f"no real input or output arrived within {loop._grace:g} real seconds"
                if loop.may_hear()
                else "deadlock: nothing is ready, no timer is set and no thread is working, so"
                f" nothing will ever happen; waiting: {_waiting(loop)}{loop.foreign.describe()}"
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
        loop = self._loop
        if self._gave_up or not loop._one_at_a_time:
            return []
        if not loop.has_sockets() and not loop.foreign.has_children():
            return []
        events = self._real.select(loop._grace)
        self._gave_up = not events
        return events

    def _wait_for_threads(self) -> _Events:
        loop = self._loop
        give_up = time.monotonic() + loop._grace
        while True:
            # A thread may also end without telling the loop.
            events = self._real.select(_LOOK)
            busy, awaited = loop.busy(), loop.foreign.awaited()
            if events or not (busy or awaited):
                return events
            if time.monotonic() > give_up:
                break
        loop.foreign.give_up(awaited, loop._grace)
        late = loop.threads.leave_alone() + loop.foreign.leave_alone()
        if late:
            loop.stuck(
                f"work outside the loop did not end within {loop._grace:g} real seconds:"
                f" {', '.join(late)}"
            )
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


class _Circles:
    """Ends what would go on for ever: jumps from timer to timer, or turns without a jump.

    Args:
        loop: whose jumps and turns are counted.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._jumps = self._turns = 0
        self._most_jumps, self._most_turns = _MOST_JUMPS, _MOST_TURNS
        self._latest: Counter[str] = Counter()

    def turned(self) -> None:
        """Count a turn.

        Raises:
            Deadlock: there were too many since the last jump.
        """
        self._turns += 1
        if self._turns > self._most_turns + 1 - _LATEST:
            handles = self._loop._ready or self._loop._scheduled[:1]  # type: ignore[attr-defined]
            self._note(handles)
            if self._turns > self._most_turns:
                self._end(f"the loop has turned {self._turns:,} times and no time has passed")

    def jumped(self) -> None:
        """Count a jump.

        Raises:
            Deadlock: there were too many.
        """
        self._turns = 0
        if self._loop.on_idle is not None:
            return
        self._jumps += 1
        if self._jumps > self._most_jumps + 1 - _LATEST:
            self._note(self._loop._scheduled[:1])  # type: ignore[attr-defined]
            if self._jumps > self._most_jumps:
                seconds = self._loop.time() - START
                self._end(f"the clock has jumped {self._jumps:,} times, by {seconds:,.0f} s")

    def _note(self, handles: Iterable[asyncio.Handle]) -> None:
        self._latest.update({_called_by(handle) for handle in handles})

    def _end(self, what: str) -> NoReturn:
        latest, self._latest = self._latest, Counter()
        self._jumps = self._turns = 0
        self._most_jumps = self._most_turns = _MOST_AT_THE_END
        names = ", ".join(f"{name} ({count:,}x)" for name, count in latest.most_common(_NAMED))
        raise Deadlock(
            f"virtual time goes in circles: {what}; of the last {_LATEST:,} times it was for:"
            f" {names or 'nothing that has a name'}; waiting: {_waiting(self._loop)}"
        )


def _called_by(handle: asyncio.Handle) -> str:
    """Describe what a loop is to call, or the task that it wakes."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    future = next(iter(handle._args or ()), None)
    if not isinstance(owner, asyncio.Task) and isinstance(future, asyncio.Future):
        # A sleep: its timer completes a future.
        waiters = [getattr(each, "__self__", None) for each, _ in future._callbacks or ()]
        owner = next((each for each in waiters if isinstance(each, asyncio.Task)), owner)
    if isinstance(owner, asyncio.Task):
        return f"task {_place_of(owner)}"
    while isinstance(callback, functools.partial):
        callback = callback.func
    name = getattr(callback, "__qualname__", type(callback).__qualname__)
    return f"{getattr(callback, '__module__', None) or '?'}.{name}"


class VirtualEnvironment(Environment):
    """An environment whose wall time follows the clock of a loop.

    Args:
        seed: makes all tokens, identifiers and jitter repeatable.
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
        """Return the seconds since 1970: ``epoch`` plus the time on the loop's clock."""
        return self._epoch + (self._loop or asyncio.get_running_loop()).time()


def _waiting(loop: asyncio.AbstractEventLoop) -> str:
    return "; ".join(sorted(map(_place_of, asyncio.all_tasks(loop)))) or "no task"


def _place_of(task: asyncio.Task[Any]) -> str:
    frames = frames_of(task)
    where = place(frames) or (frames and f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}")
    return f"{task.get_name()} in {where or '?'}"
