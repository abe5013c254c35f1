"""Settling: decides when all is settled, and gives up when that does not happen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...transports import Envelope
from .._errors import NotSettled
from ..loop._stacks import stack_of
from ._actor_monitor import Activity

if TYPE_CHECKING:
    from ..loop._loop_watchdog import Heartbeat
    from ._simulated_world import SimulatedWorld
    from ._world import World

__all__ = ["Settling", "unfinished"]

_MOST_STEPS_AT_ONCE = 200_000
_MANY = 1000
_NAMED = 5


def unfinished(world: World) -> str | None:
    """Describe something that an application or a bus has not finished; None if all is finished.

    What actors are working on is not looked at; see `ActorMonitor.work`.
    """
    for tested in world.tested:
        what = tested.under_way()
        if what is not None:
            return what
    for bus in world.buses.values():
        what = bus.under_way()
        if what is not None:
            return what
    return None


class _TestWait:
    """What the test is waiting for, and until when."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, condition: Callable[[], bool], until: float
    ) -> None:
        self.condition = condition
        self.until = until
        self.future: asyncio.Future[None] = loop.create_future()


class Settling:
    """Waits for the test until all in a simulated world is settled, or until a time.

    Args:
        world: the world.
        heartbeat: tells whether the event loop was blocked.
        patience: virtual seconds within which all has to settle.
        limit: messages that may be published before all has settled.
    """

    def __init__(
        self, world: SimulatedWorld, heartbeat: Heartbeat, patience: float, limit: int
    ) -> None:
        self._world = world
        self._loop = world.loop
        self._heartbeat = heartbeat
        self._patience = patience
        self._limit = limit
        self._wait: _TestWait | None = None
        self._steps = 0
        self._steps_since = -1.0
        self._occasions = 0
        self._published = 0
        self._all_handled = False
        self._routes: Counter[tuple[str, str]] = Counter()

    def note(self, envelope: Envelope) -> None:
        """Count a message that a bus has accepted."""
        self._published += 1
        self._routes[envelope.source or "somebody", envelope.topic] += 1

    # For the test.

    async def settled(self) -> None:
        """See `World.settled`."""
        self._start_counting()
        self._all_handled = False
        for bus in self._world.buses.values():
            bus.begin_to_settle()
        await self._until(self._is_settled, self._patience)

    def _is_settled(self) -> bool:
        if self.under_way() is not None:
            return False
        if not self._all_handled:
            self._all_handled = True
            for bus in self._world.buses.values():
                bus.all_handled()
        return self.under_way() is None

    async def time_has_come(self, target: float) -> None:
        """Wait until the clock shows a time, and all that is due by then is done."""
        self._start_counting()
        timer = self._loop.call_at(target, _nothing)
        try:
            seconds = target - self._loop.time()
            await self._until(lambda: self._loop.time() >= target, seconds + self._patience)
        finally:
            timer.cancel()

    async def done(self, task: asyncio.Task[object], seconds: float) -> None:
        """Wait until a task is done, which may take so many seconds beyond the patience."""
        await self._until(task.done, seconds + self._patience)

    def _start_counting(self) -> None:
        self._published = 0
        self._routes.clear()

    async def _until(self, condition: Callable[[], bool], patience: float) -> None:
        if self._wait is not None:
            raise RuntimeError("the harness is already waiting; await one of its methods at a time")
        self._wait = _TestWait(self._loop, condition, self._loop.time() + patience)
        try:
            await self._wait.future
        finally:
            self._wait = None

    # For the event loop.

    def on_step(self) -> bool:
        """Check what must not go on forever, and let faults strike; return whether either acted."""
        now = self._loop.time()
        self._steps = self._steps + 1 if now == self._steps_since else 0
        self._steps_since = now
        return self._wait is not None and self._look_after()

    def _look_after(self) -> bool:
        if self._heartbeat.blocked is not None:
            self.give_up(self._heartbeat.blocked)
            self._heartbeat.blocked = None
        elif self._published > self._limit:
            self.give_up(self._storm())
        elif self._steps > _MOST_STEPS_AT_ONCE:
            self._steps = 0
            self.give_up(
                self._storm()
                if self._published > _MANY
                else f"something keeps running without time passing: {self._busy_tasks()}"
            )
        elif self._world.dice.at_steps and self._is_occasion():
            dice = self._world.dice
            left = dice.left
            self._world.injector.roll()
            return dice.left < left
        else:
            return False
        return True

    def _is_occasion(self) -> bool:
        self._occasions += 1
        pace = max((bus.pace for bus in self._world.buses.values()), default=1)
        return self._occasions % pace == 0

    def on_idle(self, timeout: float | None) -> bool:
        """End the wait of the test if it is over; return whether it was ended.

        Args:
            timeout: seconds to the next timer; None if there is none.
        """
        wait = self._wait
        if wait is None or wait.future.done():
            return False
        if wait.condition():
            wait.future.set_result(None)
            return True
        if timeout is None and self._loop.may_hear():
            return False
        if timeout is None:
            self.give_up(f"nothing will ever happen that could end this: {self.reason()}")
            return True
        if self._loop.time() + timeout > wait.until:
            self.give_up(f"after {self._patience:g} virtual seconds still: {self.reason()}")
            return True
        return False

    def give_up(self, why: str) -> None:
        """Make the wait of the test fail with NotSettled."""
        wait = self._wait
        if wait is not None and not wait.future.done():
            wait.future.set_exception(NotSettled(f"the application does not come to rest: {why}"))

    # What is going on.

    def under_way(self) -> str | None:
        """Describe one thing that is not settled; None if all is."""
        for work in self._world.monitor.work():
            if work.counts:
                return f"{work.lane.address} is at work"
        return unfinished(self._world)

    def reason(self) -> str:
        """Describe what is not settled, in detail."""
        working = [work for work in self._world.monitor.work() if work.counts]
        threads = self._loop.foreign.describe()
        if not working:
            return f"{self.under_way() or 'all is settled'}{threads}"
        return "; ".join(self._described(work) for work in working[:_NAMED]) + threads

    def _described(self, work: Activity) -> str:
        about = "" if work.topic is None else f" on a message on {work.topic!r}"
        since = self._loop.time() - work.since
        trouble = self._world.monitor.troubles.get(work.lane.address)
        why = "" if trouble is None else f" (last trouble: {trouble})"
        return (
            f"{work.lane.address} has been at work{about} for {since:g} virtual seconds{why}"
            f"{stack_of(work.task)}"
        )

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
        for handle in self._loop._ready:  # type: ignore[attr-defined]
            task = getattr(handle._callback, "__self__", None)
            if isinstance(task, asyncio.Task):
                names[f"{task.get_name()}{stack_of(task)}"] = None
        return "; ".join(tuple(names)[:_NAMED]) or "an unknown callback"


def _nothing() -> None:
    pass
