"""Applications under test on real brokers, in real time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Never, TypeVar

from ..._busy_threads import BusyThread
from ..._environment import Environment
from ...runtime.application._application import DistributedApplication, runs_of
from ...transports import Envelope, SocketProvider, is_reserved
from .._errors import NotSettled, NotSimulated
from .._harness import Harness
from ..loop._stacks import stack_of
from ..loop._tasks_and_timers import OWNER
from ..world._settling import unfinished
from ..world._world import World
from ._live_bus import LiveBus, LiveProvider, PublishedMessage
from ._real_brokers import RealBrokers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...runtime.hosting._lane import Lane
    from ..world._application_under_test import Life

__all__ = ["LiveHarness"]

T = TypeVar("T")

_PATIENCE = 30.0
_LIMIT = 100_000
# What moves between two queues within one iteration of the loop may be in neither when we look.
_LOOKS = 3
_BETWEEN_LOOKS = 0.005
_ENDING = 10.0


class LiveHarness(Harness):
    """A `Harness` whose applications run on real brokers, in real time.

    As with every harness, things happen only in `settle`, `request` and `restart`. What needs a
    simulated bus or virtual time raises NotSimulated: `advance`, `cut`, `rebalance`, `crash`,
    `restart_actor`.

    Args:
        applications: as for `Harness`.
        brokers: makes the brokers; they are closed with the harness.
        allow_failures: as for `Harness`.
        patience: real seconds within which `settle` must succeed.
        limit: as for `Harness`.
    """

    def __init__(
        self,
        *applications: DistributedApplication,
        brokers: Callable[[], RealBrokers],
        allow_failures: type[BaseException] | tuple[type[BaseException], ...] = (),
        patience: float = _PATIENCE,
        limit: int = _LIMIT,
    ) -> None:
        super().__init__(*applications, allow_failures=allow_failures)
        self._make_world = lambda: LiveWorld(brokers(), patience, limit)


class LiveWorld(World):
    """Applications on real buses.

    Args:
        brokers: make the buses; closed at the end.
        patience: seconds within which all has to settle.
        limit: messages that may be published before that.
    """

    def __init__(self, brokers: RealBrokers, patience: float, limit: int) -> None:
        loop = asyncio.new_event_loop()
        super().__init__(0, loop, loop.time())
        loop.set_exception_handler(self._unhandled)
        self.buses: dict[str, LiveBus] = {}
        self._brokers = brokers
        self._patience = patience
        self._limit = limit
        self._sent: list[PublishedMessage] = []
        self._before = 0
        self._announced: dict[BusyThread, None] = {}
        # This is where `spa_dat.busy_thread` looks.
        loop.announce = self.announce  # type: ignore[attr-defined]

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self.monitor.failed("a background task", "task", error, None)

    # For applications.

    def stand_in(self, provider: SocketProvider) -> SocketProvider:
        """See `World.stand_in`."""
        bus = self.buses.get(provider.address)
        if bus is None:
            bus = self.buses[provider.address] = LiveBus(self._brokers.bus(), self)
        return LiveProvider(provider, bus)

    def environment(self, seed: int) -> Environment:
        """See `World.environment`; a real one, since brokers remember what they have seen."""
        return Environment()

    def simulated_buses(self, what: str) -> Never:
        """See `World.simulated_buses`."""
        self.check_simulated(what)

    def check_simulated(self, what: str) -> Never:
        """See `World.check_simulated`."""
        raise NotSimulated(
            f"{what} needs a simulated bus and virtual time, and this test runs on a real"
            f" {self._brokers.profile} broker"
        )

    def begin(self) -> None:
        """See `World.begin`."""

    def end(self) -> None:
        """See `World.end`."""

    def announce(self, name: str, place: str) -> BusyThread:
        """See `World.announce`."""
        work = BusyThread(name, place, lambda work: self._announced.pop(work, None))
        self._announced[work] = None
        return work

    def silence(self, life: Life) -> None:
        """See `World.silence`."""

    def restart_actor(self, lane: Lane) -> None:
        """See `World.restart_actor`."""
        self.check_simulated("restart_actor()")

    # For buses.

    def publishing(self, envelope: Envelope) -> PublishedMessage:
        """See `PublishObserver.publishing`."""
        published = PublishedMessage(envelope)
        self._sent.append(published)
        return published

    def refused(self, envelope: Envelope, error: BaseException) -> None:
        """See `PublishObserver.refused`."""
        self.monitor.failed(envelope.source or "the test", "publish", error, envelope)

    def published(self, *, reserved: bool) -> Iterator[Envelope]:
        """See `World.published`; in the order of sending."""
        return (
            one.envelope
            for one in self._sent
            if one.taken and is_reserved(one.envelope.topic) is reserved
        )

    # Time.

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """See `World.run`."""
        context = contextvars.copy_context()
        context.run(OWNER.set, None)
        return self.loop.run_until_complete(self.loop.create_task(coroutine, context=context))

    async def settled(self) -> None:
        """See `World.settled`.

        Raises:
            HandlerFailed: something failed that nobody expected.
        """
        self._before = len(self._sent)
        until = self.loop.time() + self._patience
        looks = 0
        while looks < _LOOKS:
            await asyncio.sleep(_BETWEEN_LOOKS)
            # If the test has failed, there is no need to wait for further attempts.
            self.monitor.check()
            what = self._under_way()
            looks = looks + 1 if what is None else 0
            if what is None:
                continue
            if len(self._sent) - self._before > self._limit:
                raise NotSettled(
                    f"the application does not come to rest: {self._limit} messages were"
                    f" published, the last one on {self._sent[-1].envelope.topic!r}; if that is no"
                    " loop, give the harness a higher limit="
                )
            if self.loop.time() > until:
                raise NotSettled(
                    "the application does not come to rest: after"
                    f" {self._patience:g} seconds still: {what}"
                )

    def _under_way(self) -> str | None:
        for work in self.monitor.work():
            if work.counts:
                about = "" if work.topic is None else f" on a message on {work.topic!r}"
                return f"{work.lane.address} is at work{about}{stack_of(work.task)}"
        for busy in tuple(self._announced):
            return f"a thread is busy with {busy.name}, announced in {busy.place}"
        return unfinished(self)

    async def advanced(self, seconds: float) -> None:
        """See `World.advanced`."""
        self.check_simulated("advance()")

    async def outcome(self, coroutine: Coroutine[Any, Any, T], seconds: float = 0.0) -> T:
        """See `World.outcome`."""
        task = self.spawn(coroutine, Context())
        # Stopping ends by itself, and leaves nothing open if it is given the time.
        stops = [runs_of(tested.application).settings.stop_timeout for tested in self.tested]
        timeout = seconds + self._patience + sum(stops) + _ENDING
        done, _ = await asyncio.wait((task,), timeout=timeout)
        if not done:
            where = stack_of(task)
            task.cancel()
            raise NotSettled(f"it is not done after {timeout:g} seconds{where}")
        return task.result()

    # The end.

    def close(self) -> None:
        """See `World.close`."""
        loop = self.loop
        loop.set_exception_handler(lambda loop, context: None)
        try:
            loop.run_until_complete(_cancel_all())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            for tested in self.tested:
                tested.restore()
            loop.close()
            self._brokers.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_ENDING)
