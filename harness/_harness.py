"""The harness: applications under test, without brokers and without waiting."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from ..errors import ConfigurationError, RemoteError
from ..runtime.application._application import DistributedApplication
from ..runtime.messaging._requests import RequestOptions
from ..runtime.messaging._socket import NOT_GIVEN
from ..runtime.messaging._typed_topic import P, R, Topic, address_meant
from ..runtime.options._option_checks import is_number
from ..transports._wire_formats import WireName
from ._async_harness import AsyncHarness
from ._errors import NotSettled
from ._faults import Faults
from ._harness_base import HarnessBase
from ._harness_core import NAME, NO_MORE, HarnessCore, check_options, failure_classes
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
    ``with Harness(app) as harness:`` starts them for plain tests, and ``async with`` for ``async
    def`` tests, under any runner: it gives an `AsyncHarness`. Leaving the block lets everything
    settle, raises unexpected failures, and stops the applications.

    Time is virtual: `asyncio.sleep`, timeouts, timers, backoff and expiry take no real time. It
    passes only in `settle`, `advance`, `request` and `restart`, and not while a thread is working:
    ``def`` handlers run in their threads, one at a time, while the event loop waits for them; work
    in the program's own threads is announced with `spa_dat.busy_thread` or `busy_thread`.

    Args:
        applications: applications that are not running; they share a bus if their addresses are
            equal.
        seed: the seed of all randomness; the same seed gives the same run.
        profile: ``mqtt`` or ``kafka``: how the simulated buses behave; None for what fits each
            address (``memory://`` behaves like MQTT).
        faults: how likely which faults strike; None for no faults.
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
        # Kept when it is closed: the test may still read what happened.
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
            ConfigurationError: one of them is already running, or raises it when it starts.
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
            in_thread: whether the harness will be used where an event loop is running.
        """
        self._start(in_thread=in_thread)
        self._started_ahead = True

    @property
    def is_in_block(self) -> bool:
        """Whether it is in a ``with`` block, which will close it."""
        return self._in_block

    def excuse(self) -> None:
        """Raise nothing when the block is left: the test has failed already."""
        self._excused = True

    @property
    def was_started(self) -> bool:
        """Whether it was started, so that there is something to read."""
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
        """Let everything settle, raise unexpected failures, and stop the applications.

        After an exception in the block the applications are only stopped.
        """
        # pytest should show the test and the handler, and not the harness.
        __tracebackhide__ = True
        self._in_block = False
        failed = error is not None or self._excused
        try:
            try:
                if not failed:
                    self.settle()
                    self._core.world.monitor.check_expected()
                    self._core.check_crashes()
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
        """Start the applications, for an ``async def`` test; see ``__enter__``."""
        self.__enter__()
        return AsyncHarness(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Settle, check and stop; see ``__exit__``."""
        self.__exit__(kind, error, traceback)

    # Time.

    def settle(self) -> None:
        """Let things happen until nothing moves any more.

        Deliveries, mailboxes, handlers, confirmations, commits, requests, retries: all of it is
        finished, and the clock jumps as far as that takes (on Kafka about a second, since groups
        commit that often). It does not wait for what is only due later: ticks of ``every=``, calls
        of ``context.later``, the sleep of a producer that runs once.

        Raises:
            HandlerFailed: something failed unexpectedly; its cause is the error.
            NotSettled: things keep happening; the text says what, in which actor, and where in the
                code.
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
        """Let time pass, and do everything that is due by then.

        Raises:
            HandlerFailed: as for `settle`.
        """
        __tracebackhide__ = True
        if not is_number(seconds) or not 0 <= seconds < float("inf"):
            raise ConfigurationError(f"advance({seconds!r}): give a number of seconds, 0 or more")
        self._run(self._core.world.advanced(seconds))
        self._core.world.monitor.check()

    @overload
    def request(
        self,
        topic: Topic[P, R],
        payload: P,
        *,
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> R: ...

    @overload
    def request(
        self,
        topic: str,
        payload: object = None,
        *,
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> bytes: ...

    @overload
    def request(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        reply: type[T],
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T: ...

    @overload
    def request(
        self,
        topic: str,
        payload: object = None,
        *,
        reply: type[T],
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T: ...

    def request(
        self,
        topic: str | Topic[Any, Any],
        payload: object = None,
        *,
        reply: Any = NOT_GIVEN,
        timeout: float = _TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        wire: WireName | None = None,
        bus: str | None = None,
    ) -> Any:
        """Send a request from outside, and wait for the reply.

        Args:
            topic: where to send it.
            payload: as for `Socket.request`.
            reply: the type of the reply; by default that of a `Topic`, else bytes.
            timeout: virtual seconds.
            key: as for `Socket.request`.
            headers: as for `Socket.request`.
            wire: as for `Socket.request`.
            bus: as for `publish`.

        Raises:
            RemoteError: the responder answered with an error; the cause is what failed there. Since
                the test has received it, that failure does not fail the test again.
            RequestTimeout, NoResponder: as `Socket.request` does.
        """
        socket = self._core.socket(bus)
        call = socket.request(
            topic, payload, reply=reply, timeout=timeout, key=key, headers=headers, wire=wire
        )
        try:
            return self._run(self._core.world.outcome(call, timeout))
        except RemoteError as answer:
            self._core.answered(address_meant(topic), answer)
            raise

    def replay(
        self,
        file: str | PathLike[str],
        *,
        actor: str | None = None,
        keep_times: bool = False,
        keep_own: bool = False,
    ) -> int:
        """Replay the messages of a recording in order, and `settle`.

        They go through the buses, as they did: each once, however many actors received it. Messages
        from actors of these applications are left out if the actors get their own messages from
        the recording, since they send them again. For a recording of a bus these are all actors
        with a filter for any of its messages, and replies and dead letters are left out, too.
        Messages from producers are replayed; the producers of the applications run all the same.
        Ids, headers and times of sending stay; replies go to nobody, unless they were sent to one
        of your own topics.

        Args:
            file: written by a `Recorder`, or by ``spa-dat record``.
            actor: replay all that this actor received, directly into its mailbox: retained,
                redelivered, partition and offset stay, too, and nobody else receives it.
            keep_times: let as much virtual time pass between two messages as did in the recording.
            keep_own: do not leave out what these applications sent.

        Returns:
            How many messages were replayed.

        Raises:
            HandlerFailed, NotSettled: as for `settle`.
            ConfigurationError: the file cannot be read, a line is wrong, or there is no such
                actor; the text says which.
        """
        count = self._run(
            replay(self._core, file, actor=actor, keep_times=keep_times, keep_own=keep_own)
        )
        self._core.world.monitor.check()
        return count

    def restart(self, application: DistributedApplication | None = None) -> None:
        """Start an application again; if it is running, stop it first, as a signal does.

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

    # Running the event loop.

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._core.closed:
            coroutine.close()
            raise ConfigurationError(NO_MORE)
        world = self._core.world
        if world.loop.is_running():
            coroutine.close()
            raise ConfigurationError(
                "the harness is already running: its methods that take time are for the test, not"
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
