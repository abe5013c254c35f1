"""The simulated world: buses as brokers behave, virtual time, and faults that strike."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from ..._busy_threads import BusyThread
from ..._environment import Environment
from ...runtime.hosting._lane import Lane
from ...transports import Envelope, SocketProvider
from .._errors import NotSettled
from .._faults import Dice, Faults
from ..loop._loop_watchdog import Heartbeat, watched
from ..loop._stacks import stack_of
from ..loop._tasks import OWNER, bury_tasks, lost_failures, make_task
from ..loop._virtual_time import START, VirtualEnvironment, VirtualLoop
from ..simulated._stand_ins import Profile, simulate
from ._actor_monitor import Activity
from ._application import Life
from ._fault_injection import FaultInjector
from ._world import World

__all__ = ["SimulatedWorld"]

T = TypeVar("T")

_MOST_STEPS_AT_ONCE = 200_000
_MANY = 1000
_NAMED = 5


class _TestWait:
    """What the test waits for."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, condition: Callable[[], bool], until: float
    ) -> None:
        self.condition = condition
        self.until = until
        self.future: asyncio.Future[None] = loop.create_future()


class SimulatedWorld(World):
    """Applications on simulated buses, on one event loop with virtual time.

    Args:
        seed: of everything random.
        profile: as for `simulate`.
        faults: that strike.
        grace: real seconds for what cannot be hurried.
        patience: virtual seconds within which things have to come to rest.
        limit: messages that may be published before things come to rest.
    """

    def __init__(
        self,
        *,
        seed: int,
        profile: Profile | None,
        faults: Faults | None,
        grace: float,
        patience: float,
        limit: int,
    ) -> None:
        loop = VirtualLoop(grace, one_at_a_time=True)
        super().__init__(seed, loop, START)
        self.loop: VirtualLoop = loop
        self.problems = loop.foreign.problems
        self._profile = profile
        self._patience = patience
        self._grace = grace
        self._limit = limit
        self.loop.set_task_factory(make_task)
        self.loop.set_exception_handler(self._unhandled)
        self.loop.on_iteration = self._step
        self.loop.on_idle = self._idle
        self.loop.on_stuck = self._stuck
        self.loop.threads.may_outlast = self._may_outlast
        self.dice = Dice(seed, faults)
        self.injector = FaultInjector(self)
        self._heartbeat = Heartbeat(grace, lambda: self.loop.is_waiting)
        self._wait: _TestWait | None = None
        self._steps = 0
        self._steps_since = -1.0
        self._occasions = 0
        self._published = 0
        self._all_handled = False
        self._routes: Counter[tuple[str, str]] = Counter()
        self._over: list[Life] = []

    # BusWorld.

    def note(self, envelope: Envelope) -> None:
        """See `BusWorld.note`."""
        super().note(envelope)
        self._published += 1
        self._routes[envelope.source or "somebody", envelope.topic] += 1

    # For applications.

    def stand_in(self, provider: SocketProvider) -> SocketProvider:
        """What an application uses in place of a provider."""
        return simulate(provider, self, self.buses, self._profile)

    def environment(self, seed: int) -> Environment:
        """See `World.environment`."""
        return VirtualEnvironment(seed, loop=self.loop)

    def check_simulated(self, what: str) -> None:
        """See `World.check_simulated`."""

    def begin(self) -> None:
        """See `World.begin`.

        Not sooner, for nobody keeps anything for an application that was never there.
        """
        self.dice.start()

    def end(self) -> None:
        """See `World.end`."""
        self.dice.stop()

    def look_for_lost_failures(self) -> None:
        """See `World.look_for_lost_failures`."""
        for name, error in lost_failures(self.loop):
            self.monitor.failed(name, "task", error, None)

    def restart_actor(self, lane: Lane) -> None:
        """See `World.restart_actor`."""
        self.loop.call_soon(self.injector.restart, lane, context=self.outside)

    def silence(self, life: Life) -> None:
        """Nothing of this life happens any more."""
        self._over.append(life)
        self._drop_dead()
        for handle in tuple(self.loop._scheduled):  # type: ignore[attr-defined]
            if handle._context.get(OWNER) is life:
                handle.cancel()

    def _drop_dead(self) -> None:
        for handle in self.loop._ready:  # type: ignore[attr-defined]
            owner = handle._context.get(OWNER)
            if owner is not None and owner.over:
                handle.cancel()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self.monitor.failed("a background task", "task", error, None)

    # The event loop.

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the loop until the coroutine has ended."""
        context = contextvars.copy_context()
        context.run(OWNER.set, None)
        with watched(self._heartbeat):
            return self.loop.run_until_complete(self.loop.create_task(coroutine, context=context))

    async def settled(self) -> None:
        """Wait until nothing moves.

        Raises:
            NotSettled: that does not happen; says why.
        """
        self._published = 0
        self._routes.clear()
        self._all_handled = False
        for bus in self.buses.values():
            bus.begin_to_settle()
        await self._until(self._is_settled, self._patience)

    def _is_settled(self) -> bool:
        if self.under_way() is not None:
            return False
        if not self._all_handled:
            self._all_handled = True
            for bus in self.buses.values():
                bus.all_handled()
        return self.under_way() is None

    async def advanced(self, seconds: float) -> None:
        """Let so much time go by, and work off what is due then."""
        self._published = 0
        self._routes.clear()
        target = self.loop.time() + seconds
        timer = self.loop.call_at(target, _nothing)
        try:
            await self._until(lambda: self.loop.time() >= target, seconds + self._patience)
        finally:
            timer.cancel()

    async def outcome(self, coroutine: Coroutine[Any, Any, T], seconds: float = 0.0) -> T:
        """Run something until it is done and all that was ready has run.

        Args:
            coroutine: what to run.
            seconds: for how long it may wait by itself.
        """
        task = self.spawn(coroutine, contextvars.copy_context())
        try:
            await self._until(task.done, seconds + self._patience)
        except BaseException:
            task.cancel()
            raise
        return task.result()

    async def _until(self, condition: Callable[[], bool], patience: float) -> None:
        if self._wait is not None:
            raise RuntimeError("the harness is already waiting; await one of its methods at a time")
        self._wait = _TestWait(self.loop, condition, self.loop.time() + patience)
        try:
            await self._wait.future
        finally:
            self._wait = None

    def _step(self) -> bool:
        self._heartbeat.count += 1
        now = self.loop.time()
        self._steps = self._steps + 1 if now == self._steps_since else 0
        self._steps_since = now
        struck = self._wait is not None and self._look_after()
        if self._over:
            self._drop_dead()
        return struck

    def _look_after(self) -> bool:
        if self._heartbeat.blocked is not None:
            self._give_up(self._heartbeat.blocked)
            self._heartbeat.blocked = None
        elif self._published > self._limit:
            self._give_up(self._storm())
        elif self._steps > _MOST_STEPS_AT_ONCE:
            self._steps = 0
            self._give_up(
                self._storm()
                if self._published > _MANY
                else f"something goes round and round without time passing: {self._busy_tasks()}"
            )
        elif self.dice.at_steps and self._is_occasion():
            left = self.dice.left
            self.injector.roll()
            return self.dice.left < left
        else:
            return False
        return True

    def _is_occasion(self) -> bool:
        self._occasions += 1
        return self._occasions % max((bus.pace for bus in self.buses.values()), default=1) == 0

    def _idle(self, timeout: float | None) -> bool:
        wait = self._wait
        if wait is None or wait.future.done():
            return False
        if wait.condition():
            wait.future.set_result(None)
            return True
        if timeout is None and self.loop.may_hear():
            return False
        if timeout is None:
            self._give_up(f"nothing will ever happen that could end it: {self.reason()}")
            return True
        if self.loop.time() + timeout > wait.until:
            self._give_up(f"after {self._patience:g} virtual seconds still: {self.reason()}")
            return True
        return False

    def _stuck(self, text: str) -> None:
        self._give_up(f"{text}; {self.reason()}")

    def _may_outlast(self, executor: Executor) -> bool:
        """Whether a thread may take longer than the grace: something else ends the wait for it."""
        return any(
            work.lane.runs_in(executor)
            and (work.lane.options.deadline is not None or not work.counts)
            for work in self.monitor.work()
        )

    def _give_up(self, why: str) -> None:
        wait = self._wait
        if wait is not None and not wait.future.done():
            wait.future.set_exception(NotSettled(f"the application does not come to rest: {why}"))

    def _storm(self) -> str:
        most = ", ".join(
            f"{source} -> {topic} ({count} times)"
            for (source, topic), count in self._routes.most_common(_NAMED)
        )
        return (
            f"{self._published} messages were published; most of them: {most}; if that is no loop,"
            " give the harness a higher limit="
        )

    def _busy_tasks(self) -> str:
        names: dict[str, None] = {}
        for handle in self.loop._ready:  # type: ignore[attr-defined]
            task = getattr(handle._callback, "__self__", None)
            if isinstance(task, asyncio.Task):
                names[f"{task.get_name()}{stack_of(task)}"] = None
        return "; ".join(tuple(names)[:_NAMED]) or "nobody knows what"

    # What goes on.

    def announce(self, name: str, place: str) -> BusyThread:
        """See `World.announce`."""
        return self.loop.announce(name, place)

    def under_way(self) -> str | None:
        """One of the things that are not done, in words; None when everything is at rest."""
        for work in self.monitor.work():
            if work.counts:
                return f"{work.lane.address} is at work"
        for tested in self.tested:
            what = tested.under_way()
            if what is not None:
                return what
        for bus in self.buses.values():
            what = bus.under_way()
            if what is not None:
                return what
        return None

    def reason(self) -> str:
        """What is not done, in as many words as it takes."""
        working = [work for work in self.monitor.work() if work.counts]
        threads = self.loop.foreign.describe()
        if not working:
            return f"{self.under_way() or 'it is at rest'}{threads}"
        return "; ".join(self._described(work) for work in working[:_NAMED]) + threads

    def _described(self, work: Activity) -> str:
        about = "" if work.topic is None else f" on a message on {work.topic!r}"
        since = self.loop.time() - work.since
        trouble = self.monitor.troubles.get(work.lane.address)
        why = "" if trouble is None else f" (last trouble: {trouble})"
        return (
            f"{work.lane.address} has been at work{about} for {since:g} virtual seconds{why}"
            f"{stack_of(work.task)}"
        )

    # The end.

    def close(self) -> None:
        """Let go of everything."""
        loop = self.loop
        loop.on_iteration = loop.on_idle = loop.on_stuck = None
        loop.set_exception_handler(lambda loop, context: None)
        try:
            for tested in self.tested:
                self.free(tested.kill)
            for bus in self.buses.values():
                self.free(bus.kill, None)
            loop.run_until_complete(loop.create_task(self._bury()))
        finally:
            for bus in self.buses.values():
                bus.close()
            for tested in self.tested:
                tested.restore()
            loop.close()

    async def _bury(self) -> None:
        await self.loop.shutdown_asyncgens()
        bury_tasks(self.loop)


def _nothing() -> None:
    pass
