"""One application under test, and its lives, one after the other."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, ConnectFailed
from ...runtime.application._application import DistributedApplication, runs_of
from ...runtime.application._lifecycle import Run
from ...runtime.hosting._lane import Lane
from ...transports._commit_steps import CommitStep
from ..loop._tasks_and_timers import OWNER
from ._memory_states import MemoryStates

if TYPE_CHECKING:
    from ._world import World

__all__ = ["ApplicationUnderTest", "Life"]

_PAUSE = 1.0


class Life:
    """One life of an application, from its start until it stops or is killed.

    Attributes:
        over: whether it was killed, so that nothing of it may run any more.
        tasks: the tasks that it has started.
        files: release what it has open, as the system does when a process is killed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over = False
        self._killed: asyncio.Future[None] = loop.create_future()
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.files: list[Callable[[], None]] = []
        self.context = contextvars.Context()
        self.context.run(OWNER.set, self)

    async def wait_for(self, task: asyncio.Task[None]) -> bool:
        """Wait for one of its tasks; return False if it was killed first."""
        await asyncio.wait((task, self._killed), return_when="FIRST_COMPLETED")
        if self.over:
            return False
        task.result()
        return True

    def end(self) -> None:
        """End it by force."""
        self.over = True
        for release in self.files:
            release()
        if not self._killed.done():
            self._killed.set_result(None)


class ApplicationUnderTest:
    """One application in a world.

    Until `restore`, its buses, clock, randomness and counters are those of the world.

    Args:
        world: the world.
        application: an application that is not running.
        number: tells ephemeral applications apart.

    Attributes:
        life: the current life; None if it is not running.
        stats: the counters of all lives.
        returns: whether it was killed and is going to be started again.
        crash_at: the step at which it is to be killed, once.
    """

    def __init__(self, world: World, application: DistributedApplication, number: int) -> None:
        runs = self._runs = runs_of(application)
        if runs.current is not None:
            raise ConfigurationError(f"application {application.name!r} is already running")
        self._world = world
        self.application = application
        self.life: Life | None = None
        self._last_run: Run | None = None
        self.returns = False
        self.crash_at: CommitStep | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        # Kept until the end: closing their coroutines earlier would run code of the user's.
        self._remains: list[asyncio.Task[Any]] = []
        self._before = runs.settings
        identity = application.identity
        if identity.ephemeral:
            identity = replace(identity, application=f"ephemeral-{number}")
        seed = hashlib.sha256(f"{world.seed} {identity.application} {identity.instance}".encode())
        environment = world.environment(int.from_bytes(seed.digest()[:8], "big"))
        self.stats: Counter[str] = Counter()
        runs.settings = replace(
            runs.settings,
            identity=identity,
            environment=environment,
            stats=self.stats,
            stand_in=world.stand_in,
            outbox=world.outbox_of(runs.settings.outbox),
            # Outlives the lives of the application, as a disk does.
            state_store=MemoryStates(),
            reached=self._reached,
        )
        runs.observe(world.monitor)

    @property
    def name(self) -> str:
        """``application/instance``."""
        identity = self.application.identity
        return f"{identity.application}/{identity.instance}"

    @property
    def run(self) -> Run | None:
        """The current run of the application, or the last one."""
        return self._runs.current or self._last_run

    @property
    def lanes(self) -> list[Lane]:
        """All lanes of all actors."""
        return (
            [] if self.run is None else [lane for actor in self.run.actors for lane in actor.lanes]
        )

    def restore(self) -> None:
        """Restore the application as it was."""
        self._runs.settings = self._before

    # Start and stop.

    async def prepare(self) -> bool:
        """Start everything but the producers; return False if it was killed meanwhile."""
        self.returns = False
        life = self.life = Life(self._world.loop)
        self._world.trace.add(self.name, "start")
        self._last_run = None
        self._starting = self._world.spawn(self._runs.start(), life.context)
        return await life.wait_for(self._starting)

    def begin(self) -> None:
        """Start the producers, and stop the application when something ends it."""
        if self.life is None:
            return
        self.life.context.copy().run(self._runs.begin)
        # Not one of its own tasks: it must not stop itself.
        self._ending = self._world.spawn(self._stop_when_ended(), self._world.outside)

    async def _stop_when_ended(self) -> None:
        try:
            await self.application.wait()
        except Exception as error:  # noqa: BLE001 (whatever ends it)
            if all(failure.error is not error for failure in self._world.monitor.failures):
                self._world.monitor.failed(self.name, "application", error, None)
        await self.stop()

    async def start(self) -> None:
        """Start the application, producers included."""
        if await self.prepare():
            self.begin()

    async def stop(self) -> None:
        """Stop it, as a signal does."""
        life = self.life
        if life is None:
            return
        self._last_run = self.run
        stopping = self._world.spawn(self.application.aclose(), life.context.copy())
        if await life.wait_for(stopping):
            self.life = None
            self._world.trace.add(self.name, "stop")
        if self._ending is not None and self._ending is not asyncio.current_task():
            self._ending.cancel()

    async def _reached(self, step: CommitStep) -> None:
        """Kill it if it was to be killed here; then whoever has called this never goes on."""
        if self.life is None:
            return
        after = None if step == self.crash_at else self._world.crashes_in_commit()
        if after is None and step != self.crash_at:
            return
        self._world.trace.add(self.name, "reached", step)
        self._world.free(self.kill)
        if after is not None:
            self.come_back(after)
        self.crash_at = None
        await self._world.loop.create_future()

    def kill(self) -> None:
        """End it like ``kill -9``: nothing of it runs or is sent any more, its state is lost."""
        life = self.life
        if life is None:
            return
        self._world.trace.add(self.name, "crash")
        life.end()
        self.life = None
        self._remains.extend(task for task in life.tasks if not task.done())
        if self._ending is not None:
            self._ending.cancel()
        run = self._last_run = self.run
        self._runs.forget()
        for bus in self._world.buses.values():
            bus.kill(life)
        if run is not None:
            run.abandon()
        for lane in self.lanes:
            self._world.monitor.forget(lane)
        self._world.silence(life)

    def come_back(self, delay: float) -> None:
        """Start it again so many seconds after a `kill`."""
        self.returns = True
        self._world.loop.call_later(delay, self._come_back, context=self._world.outside)

    def _come_back(self) -> None:
        if self.returns and self.life is None:
            restarting = self._world.spawn(self.start(), self._world.outside)
            restarting.add_done_callback(self._came_back)

    def _came_back(self, restarting: asyncio.Task[None]) -> None:
        error = None if restarting.cancelled() else restarting.exception()
        if isinstance(error, ConnectFailed):
            # Faults can outlast its attempts to connect; a supervisor would start it once more.
            self.life = None
            self.come_back(_PAUSE)
        elif error is not None:
            self._world.monitor.failed(self.name, "start", error, None)

    # What goes on.

    def under_way(self) -> str | None:
        """Describe what is unfinished; None if nothing is."""
        if self.returns:
            return f"{self.name}: it is to start again"
        if self._starting is not None and not self._starting.done() and self.life is not None:
            return f"{self.name}: it is starting"
        run = self.run
        if self.life is None or run is None:
            return None
        if run.changing:
            return f"{self.name}: it, or one of its actors, is stopping"
        for connection in run.connections:
            if len(connection.requests):
                return f"{self.name}: {len(connection.requests)} requests are waiting for replies"
        for lane in self.lanes:
            if not lane.up:
                return f"{lane.address}: it is starting"
            if len(lane.mailbox) or len(lane.local):
                return f"{lane.address}: {len(lane.mailbox)} messages are waiting in its mailbox"
            if len(lane.processor.settlements):
                return f"{lane.address}: handled messages are waiting for what they have sent"
        return None
