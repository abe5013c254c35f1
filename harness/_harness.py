"""The harness: applications under test, without brokers and without waiting."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from ..errors import ConfigurationError, RemoteError
from ..runtime.application._application import DistributedApplication
from ..runtime.options._checks import is_number
from ._async_harness import AsyncHarness
from ._core import NAME, NO_MORE, HarnessCore, check_options, failure_classes
from ._errors import NotSettled
from ._faults import Faults
from ._harness_base import HarnessBase
from ._replay import replay
from .loop._foreign_threads import UnannouncedThread
from .loop._loop_thread import LoopThread, is_loop_running
from .simulated._stand_ins import Profile
from .world._simulated_world import SimulatedWorld
from .world._world import World

__all__ = ["Harness"]

T = TypeVar("T")

_TIMEOUT = 30.0
_NOT_IN_USE = "the harness is not in use; write `with Harness(app) as harness:`"


class Harness(HarnessBase):
    """Applications on simulated buses, with virtual time, for tests.

    The applications are those that run in production, with any address; nothing connects to it.
    ``with Harness(app) as harness:`` starts them for plain tests, ``async with`` for ``async def``
    ones, under any runner: it gives an `AsyncHarness`. Leaving the block lets everything settle,
    raises what nobody expected, and stops the applications.

    Time is virtual: `asyncio.sleep`, timeouts, timers, backoff and expiry take none of it really.
    It goes by only in `settle`, `advance`, `request` and `restart`, and not while a thread works:
    ``def`` handlers run in their threads, one at a time, while the event loop waits for them; what
    threads of the program's own do is announced with `spa_dat.busy_thread` or `busy_thread`.

    Args:
        applications: not running; they share the buses with equal addresses.
        seed: of everything random; the same one gives the same run.
        profile: ``mqtt`` or ``kafka``: how the simulated buses behave; None for what fits each
            address (``memory://`` behaves as MQTT does).
        faults: that strike, by chance; None for none.
        allow_failures: classes of errors that do not fail the test.
        grace: real seconds for what cannot be hurried: work in threads, real connections.
        patience: virtual seconds within which `settle` must succeed.
        limit: messages that may be published before one `settle` is done.
    """

    def __init__(
        self,
        *applications: DistributedApplication,
        seed: int = 0,
        profile: Profile | None = None,
        faults: Faults | None = None,
        allow_failures: type[BaseException] | tuple[type[BaseException], ...] = (),
        grace: float = 5.0,
        patience: float = 600.0,
        limit: int = 100_000,
    ) -> None:
        if not applications:
            raise ConfigurationError("Harness() needs an application: write Harness(app)")
        for application in applications:
            if not isinstance(application, DistributedApplication):
                raise ConfigurationError(f"Harness({application!r}): give a DistributedApplication")
            if application.name == NAME:
                raise ConfigurationError(
                    f"an application under test cannot be named {NAME!r}, as the harness itself is"
                )
        check_options(
            seed=seed, profile=profile, faults=faults, grace=grace, patience=patience, limit=limit
        )
        self._applications = applications
        self._make_world: Callable[[], World] = partial(
            SimulatedWorld,
            seed=seed,
            profile=profile,
            faults=faults,
            grace=grace,
            patience=patience,
            limit=limit,
        )
        self._allowed = failure_classes("Harness: allow_failures", allow_failures)
        # Stays when it is closed: the test may still look at what happened.
        self._used_core: HarnessCore | None = None
        self._thread = LoopThread(own=False)
        self._started_ahead = self._in_block = self._excused = False

    @property
    def _core(self) -> HarnessCore:
        if self._used_core is None:
            raise ConfigurationError(_NOT_IN_USE)
        return self._used_core

    # Starting and stopping.

    def __enter__(self) -> Self:
        """Start the applications.

        Raises:
            ConfigurationError: one of them runs already, or what it raises when it starts.
            Exception: whatever else an application raises when it starts.
        """
        if self._started_ahead:
            self._started_ahead = False
        elif self._used_core is not None:
            raise ConfigurationError("a harness can be used once; make a new one")
        else:
            self._start(in_thread=is_loop_running())
        self._in_block = True
        return self

    def start_ahead(self, *, in_thread: bool) -> None:
        """Start the applications before the ``with`` block, or without one.

        Args:
            in_thread: the harness will be used where an event loop runs.
        """
        self._start(in_thread=in_thread)
        self._started_ahead = True

    @property
    def is_in_block(self) -> bool:
        """Whether a ``with`` block is going to close it."""
        return self._in_block

    def excuse(self) -> None:
        """The test has failed: leaving the block raises nothing in addition."""
        self._excused = True

    @property
    def was_started(self) -> bool:
        """Whether there is anything to see of it."""
        return self._used_core is not None

    @property
    def is_open(self) -> bool:
        """Whether it is in use."""
        return self._used_core is not None and not self._used_core.closed

    def _start(self, *, in_thread: bool) -> None:
        self._thread = LoopThread(own=in_thread)
        try:
            self._thread.call(self._open)
        except BaseException:
            self._shut()
            raise

    def _open(self) -> None:
        world = self._make_world()
        world.monitor.allow(self._allowed)
        core = self._used_core = HarnessCore(world, self._applications)
        world.run(world.outcome(core.open()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let everything settle, raise what nobody expected, stop the applications.

        After an exception in the block they are only stopped.
        """
        # In pytest the test itself and the handler are what one wants to see.
        __tracebackhide__ = True
        self._in_block = False
        failed = error is not None or self._excused
        try:
            try:
                if not failed:
                    self.settle()
                    self._core.world.monitor.check_expected()
            except BaseException:
                self._stop(quietly=True)
                raise
            self._stop(quietly=failed)
        finally:
            self._shut()

    def _stop(self, *, quietly: bool) -> None:
        world = self._core.world
        world.end()
        try:
            self._run(world.outcome(self._core.close()))
            world.look_for_lost_failures()
            world.monitor.check()
        except BaseException:
            if not quietly:
                raise

    def _shut(self) -> None:
        core = self._used_core
        try:
            if core is not None:
                self._thread.call(core.close_world)
        finally:
            self._thread.end()

    async def __aenter__(self) -> AsyncHarness:
        """As ``__enter__``, for ``async def`` tests."""
        self.__enter__()
        return AsyncHarness(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As ``__exit__``."""
        self.__exit__(kind, error, traceback)

    # Time.

    def settle(self) -> None:
        """Let things happen until nothing moves any more.

        Deliveries, mailboxes, handlers, confirmations, commits, requests, retries: all is worked
        off, and the clock jumps as far as that takes (on Kafka about a second, as groups commit
        that often). What is only due later is not waited for: ticks of ``every=``,
        ``context.later``, whatever a producer that runs once sleeps for.

        Raises:
            HandlerFailed: something failed that nobody expected; its cause is the error.
            NotSettled: it goes on and on; says who, with what, and where in the code.
        """
        __tracebackhide__ = True
        watch = self._core.world.monitor
        try:
            self._run(self._core.world.settled())
        except NotSettled as stuck:
            watch.explain(stuck)
            raise
        watch.check()

    def advance(self, seconds: float) -> None:
        """Let time go by, and work off what is due by then.

        Raises:
            HandlerFailed: as for `settle`.
        """
        __tracebackhide__ = True
        if not is_number(seconds) or not 0 <= seconds < float("inf"):
            raise ConfigurationError(f"advance({seconds!r}): give seconds, 0 or more")
        self._run(self._core.world.advanced(seconds))
        self._core.world.monitor.check()

    @overload
    def request(
        self,
        topic: str,
        payload: object = None,
        *,
        timeout: float = _TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        bus: str | None = None,
    ) -> bytes: ...

    @overload
    def request(
        self,
        topic: str,
        payload: object = None,
        *,
        reply: type[T],
        timeout: float = _TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        bus: str | None = None,
    ) -> T: ...

    def request(
        self,
        topic: str,
        payload: object = None,
        *,
        reply: Any = bytes,
        timeout: float = _TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        bus: str | None = None,
    ) -> Any:
        """Send a request from outside, and wait for the reply.

        Args:
            topic: where to.
            payload: as for `Socket.request`, and so are the other options.
            reply: the type of the reply.
            timeout: virtual seconds.
            key: see there.
            headers: see there.
            bus: as for `publish`.

        Raises:
            RemoteError: the answer; its cause is what failed. As the test has got it, that does not
                fail the test later.
            RequestTimeout, NoResponder: as `Socket.request` does.
        """
        socket = self._core.socket(bus)
        call = socket.request(
            topic, payload, reply=reply, timeout=timeout, key=key, headers=headers
        )
        try:
            return self._run(self._core.world.outcome(call, timeout))
        except RemoteError as answer:
            self._core.answered(topic, answer)
            raise

    def replay(
        self,
        file: str | PathLike[str],
        *,
        actor: str | None = None,
        keep_times: bool = False,
        keep_own: bool = False,
    ) -> int:
        """Put in the messages of a recording, in its order, and `settle`.

        They go through the buses, as they did: each once, however many actors got it. Left out is
        what actors of these applications sent that get their own messages from the recording, for
        they send it again; in what was recorded on a bus those are all that have a filter for any
        of its messages, and replies and dead letters are left out, too. What producers sent is put
        in; those of the applications run all the same. Ids, headers and times of sending stay;
        replies go to nobody, unless they were to go to a topic of yours.

        Args:
            file: of a `Recorder`, or of ``spa-dat record``.
            actor: put in what this actor got, all of it, right into its mailbox: retained,
                redelivered, partition and offset stay, too, and nobody else gets it.
            keep_times: let as much virtual time go by between two messages as there was.
            keep_own: leave nothing out that these applications sent.

        Returns:
            How many messages were put in.

        Raises:
            HandlerFailed, NotSettled: as for `settle`.
            ConfigurationError: the file cannot be read, a line is wrong, or there is no such
                actor; says which.
        """
        count = self._run(
            replay(self._core, file, actor=actor, keep_times=keep_times, keep_own=keep_own)
        )
        self._core.world.monitor.check()
        return count

    def restart(self, application: DistributedApplication | None = None) -> None:
        """Start an application again; one that runs is stopped first, as by a signal.

        Args:
            application: None for all.

        Raises:
            Exception: whatever it raises when it starts.
        """
        self._run(self._core.world.outcome(self._core.restart(application)))

    def stop(self, application: DistributedApplication | None = None) -> None:
        """Stop an application, as a signal does. `restart` starts it again.

        Args:
            application: None for all.
        """
        self._run(self._core.world.outcome(self._core.stop(application)))

    # Where it runs.

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._core.closed:
            coroutine.close()
            raise ConfigurationError(NO_MORE)
        world = self._core.world
        if world.loop.is_running():
            coroutine.close()
            raise ConfigurationError(
                "the harness is at work already: its methods that take time are for the test, not"
                " for handlers"
            )
        try:
            result = self._thread.call(lambda: world.run(coroutine))
        except BaseException as error:
            for problem in world.take_problems():
                error.add_note(problem)
            raise
        for problem in world.take_problems():
            warnings.warn(problem, UnannouncedThread, stacklevel=3)
        return result
