"""The simulated world: simulated buses, virtual time, and faults."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from ..._busy_threads import BusyThread
from ..._environment import Environment
from ...runtime.hosting._lane import Lane
from ...transports import Envelope, SocketProvider
from .._errors import HandlerFailed
from .._faults import Dice, Faults
from ..loop._loop_watchdog import Heartbeat, watched
from ..loop._tasks_and_timers import (
    OWNER,
    bury_tasks,
    drop_due,
    drop_timers,
    lost_failures,
    make_task,
)
from ..loop._virtual_time import START, VirtualEnvironment, VirtualLoop
from ..simulated._harness_bus import SimulatedBus
from ..simulated._stand_ins import Profile, simulate
from ._application_under_test import Life
from ._fault_injection import FaultInjector
from ._settling import Settling
from ._world import World

__all__ = ["SimulatedWorld"]

T = TypeVar("T")


class SimulatedWorld(World):
    """Applications on simulated buses, on one event loop with virtual time.

    Args:
        seed: the seed of all randomness.
        profile: as for `simulate`.
        faults: the faults to inject.
        grace: real seconds for what cannot be hurried.
        patience: virtual seconds within which all has to settle.
        limit: messages that may be published before all has settled.
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
        self.buses: dict[str, SimulatedBus] = {}
        self._profile = profile
        self.loop.set_task_factory(make_task)
        self.loop.set_exception_handler(self._unhandled)
        self.loop.on_iteration = self._step
        self.loop.on_stuck = self._stuck
        self.loop.threads.may_outlast = self._may_outlast
        self.dice = Dice(seed, faults)
        self.injector = FaultInjector(self)
        self._heartbeat = Heartbeat(grace, lambda: self.loop.is_waiting)
        self.settling = Settling(self, self._heartbeat, patience, limit)
        self.loop.on_idle = self.settling.on_idle
        self._over: list[Life] = []

    # For buses; see `BusWorld`.

    def note(self, envelope: Envelope) -> None:
        """See `BusWorld.note`."""
        super().note(envelope)
        self.settling.note(envelope)

    # For applications.

    def stand_in(self, provider: SocketProvider) -> SocketProvider:
        """See `World.stand_in`."""
        return simulate(provider, self, self.buses, self._profile)

    def environment(self, seed: int) -> Environment:
        """See `World.environment`."""
        return VirtualEnvironment(seed, loop=self.loop)

    def simulated_buses(self, what: str) -> Collection[SimulatedBus]:
        """See `World.simulated_buses`."""
        return self.buses.values()

    def check_simulated(self, what: str) -> None:
        """See `World.check_simulated`."""

    def begin(self) -> None:
        """See `World.begin`.

        No sooner, since no broker keeps anything for an application that was never there.
        """
        self.dice.start()

    def end(self) -> None:
        """See `World.end`."""
        self.dice.stop()

    def crashes_in_commit(self) -> float | None:
        """See `World.crashes_in_commit`."""
        dice = self.dice
        return dice.seconds() if dice.strikes(dice.faults.crash_in_commit) else None

    def look_for_lost_failures(self) -> None:
        """See `World.look_for_lost_failures`."""
        for name, error in lost_failures(self.loop):
            self.monitor.failed(name, "task", error, None)

    def restart_actor(self, lane: Lane) -> None:
        """See `World.restart_actor`."""
        self.loop.call_soon(self.injector.restart, lane, context=self.outside)

    def silence(self, life: Life) -> None:
        """See `World.silence`."""
        self._over.append(life)
        drop_timers(self.loop, life)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self.monitor.failed("a background task", "task", error, None)

    # The event loop.

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """See `World.run`."""
        context = contextvars.copy_context()
        context.run(OWNER.set, None)
        task = self.loop.create_task(coroutine, context=context)
        try:
            with watched(self._heartbeat):
                return self.loop.run_until_complete(task)
        except RuntimeError as error:
            if task.done():
                raise
            raise HandlerFailed(
                "the application under test has stopped the event loop (loop.stop)"
            ) from error
        except asyncio.CancelledError as error:
            raise HandlerFailed(
                "the application under test has cancelled the harness's own task, as code does that"
                " cancels all tasks"
            ) from error

    async def settled(self) -> None:
        """See `World.settled`."""
        await self.settling.settled()

    async def advanced(self, seconds: float) -> None:
        """See `World.advanced`."""
        await self.settling.time_has_come(self.loop.time() + seconds)

    async def outcome(self, coroutine: Coroutine[Any, Any, T], seconds: float = 0.0) -> T:
        """See `World.outcome`."""
        task = self.spawn(coroutine, contextvars.copy_context())
        try:
            await self.settling.done(task, seconds)
        except BaseException:
            task.cancel()
            raise
        return task.result()

    def _step(self) -> bool:
        self._heartbeat.count += 1
        struck = self.settling.on_step()
        if self._over:
            drop_due(self.loop)
        return struck

    def _stuck(self, text: str) -> None:
        self.settling.give_up(f"{text}; {self.settling.reason()}")

    def _may_outlast(self, executor: Executor) -> bool:
        """Tell whether threads may exceed the grace: something else ends the wait for them."""
        return any(
            work.lane.runs_in(executor)
            and (work.lane.options.deadline is not None or not work.counts)
            for work in self.monitor.work()
        )

    def announce(self, name: str, place: str) -> BusyThread:
        """See `World.announce`."""
        return self.loop.announce(name, place)

    # The end.

    def close(self) -> None:
        """See `World.close`."""
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
