"""Lanes in child processes: what the application keeps of an actor with ``placement="process"``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..._busy_threads import has_own_clock
from ...actors import Mailbox, Overflow, RestartPolicy
from ...transports import Delivery, Envelope
from ..options._resources import LEAST_FOR_RESOURCES, RequiredResources, Resource
from ..processes._code_pickling import pack
from ..registration._message_keys import lane_of
from ..routing._routed_deliveries import RoutedDelivery
from ..routing._router import Router
from ._lane import Lane
from ._message_source import WorkSource, mailbox_of, processor_of
from ._process_worker import ProcessState, ProcessWorker
from ._waiting_for_tasks import wait_for_each

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner

__all__ = ["ProcessLane", "process_lanes"]

_SHORTEST = 0.1
_LOOK = 0.5
_OVERSLEPT = 3


def process_lanes(runner: ActorRunner, resources: Mapping[str, Resource]) -> tuple[Lane, ...]:
    """Return the lanes of an actor that is to run in child processes.

    None where time is virtual, as in the test harness: there the actor runs in the process of the
    test, after a look whether it could be sent to another one.

    Args:
        runner: the actor.
        resources: those of the application.

    Raises:
        ConfigurationError: something of the actor cannot be pickled.
    """
    shipped = pack(runner.spec, resources, runner.run.settings.middleware)
    if has_own_clock(asyncio.get_running_loop()):
        return ()
    count = runner.options.processes
    if count > 1 and runner.options.key is not None:
        return tuple(ProcessLane(runner, shipped, (number,), number) for number in range(count))
    numbers = (None,) if count == 1 else tuple(range(count))
    return (ProcessLane(runner, shipped, numbers),)


class Outlet(Mailbox):
    """A mailbox that nobody takes items from one by one: it says when there are some."""

    __slots__ = ("filled",)

    def __init__(
        self, capacity: int, overflow: Overflow, key: Callable[[Any], Any] | None = None
    ) -> None:
        self.filled: Callable[[], None] = lambda: None
        super().__init__(capacity, overflow, key)

    def offer(self, item: Any) -> bool:
        """As `Mailbox.offer`."""
        taken = super().offer(item)
        self.filled()
        return taken

    def wake(self) -> None:
        """As `Mailbox.wake`."""
        self.filled()


class _Pipes:
    """The work of a lane goes to its child processes."""

    task = None

    def __init__(self, lane: Lane) -> None:
        self.outlet = self.mailbox = self.local = mailbox_of(lane, Outlet)
        self.processor = processor_of(lane)

    async def receive(self, instance: Any, item: Any) -> None:
        """Raise TypeError: nothing is handled in this process."""
        raise TypeError(f"{item!r} is not handled here")

    def flush(self) -> None:
        """Do nothing: it holds nothing back."""


class ProcessLane(Lane):
    """A lane whose messages are handled in child processes, each in one of them.

    It keeps the mailbox, and hands out to each process as much as that needs to stay busy.

    Args:
        runner: the actor.
        shipped: the actor, pickled.
        numbers: of its processes; None for the only one of the actor.
        number: which of several lanes it is; None when it is the only one.
    """

    def __init__(
        self,
        runner: ActorRunner,
        shipped: bytes,
        numbers: tuple[int | None, ...],
        number: int | None = None,
    ) -> None:
        super().__init__(runner, number)
        self._restart = RestartPolicy()
        self._pumping: asyncio.Handle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._stopping = False
        self._paused = False
        self._ended = False
        self._all_quiet: asyncio.Future[None] | None = None
        self.workers = tuple(ProcessWorker(self, one, shipped) for one in numbers)
        self.outlet.filled = self._filled

    def _make_work_source(self) -> WorkSource:
        self._pipes = _Pipes(self)
        self.outlet = self._pipes.outlet
        return self._pipes

    def take_thread_resources(self, required: RequiredResources) -> RequiredResources:
        """Take nothing: the processes open what they need."""
        return required

    @property
    def observed(self) -> bool:
        """Whether somebody wants to hear of failures."""
        return self._run.observer is not None

    @property
    def restart(self) -> RestartPolicy:
        """How often a process that ends is replaced."""
        return self._restart

    @property
    def stopping(self) -> bool:
        """Whether nothing new is begun."""
        return self._stopping

    @property
    def finished_elsewhere(self) -> int | None:
        """As in `Lane`; None for a producer."""
        if self.spec.kind == "producer":
            return None
        return sum(worker.finished for worker in self.workers)

    # Start and stop.

    def pause(self) -> None:
        """Hand out nothing more, and have returned what the processes have not begun with."""
        if not self._stopping:
            self._paused = True
            for worker in self.workers:
                worker.recall()

    def resume(self) -> None:
        """As in `Lane`."""
        if self._paused:
            self._paused = False
            self.pump()

    def spawn(self, restart: RestartPolicy, resources: Mapping[str, Any]) -> None:
        """Start the processes; `started` waits until that has succeeded."""
        self._restart = restart
        self.outlet.bind(self._loop, self.name)
        for worker in self.workers:
            worker.start()
        self._looked = self._loop.time()
        self._watch()

    async def started(self) -> None:
        """Wait until the actor has started in all processes; raises why it does not."""
        await asyncio.gather(*(worker.started() for worker in self.workers))

    def begin(self) -> None:
        """Everybody has started: a producer may make its first call."""
        for worker in self.workers:
            worker.begin()

    def stop_attempts(self) -> None:
        """Have what was not started returned, and begin no attempt any more."""
        self._stopping = True
        self.processor.stop()
        for worker in self.workers:
            worker.recall()

    async def finish(self, deadline: float) -> None:
        """Let the processes finish until ``deadline`` (loop time), then end them."""
        self._stopping = True
        self.resume()
        deadline = max(deadline, self._loop.time() + _SHORTEST)
        in_time = await self._quiet(deadline)
        rest = max(deadline, self._loop.time() + LEAST_FOR_RESOURCES)
        await wait_for_each(worker.stop(deadline, rest) for worker in self.workers)
        self._ended = True
        if self._watching is not None:
            self._watching.cancel()
        if not in_time or any(worker.was_killed for worker in self.workers):
            self._report_cut_off()
        self.outlet.close()
        self._run.given_up.left_over(self.name, self._left())
        self.log.flush()

    def _left(self) -> list[RoutedDelivery]:
        left = [delivery for worker in self.workers for delivery in worker.give_up()]
        return [*left, *self.outlet.extract(lambda item: isinstance(item, Delivery))]

    async def _quiet(self, deadline: float) -> bool:
        """Wait until nothing is at work; False when the time is up before."""
        while not self.is_quiet:
            self._all_quiet = self._loop.create_future()
            left = deadline - self._loop.time()
            done, _ = await asyncio.wait((self._all_quiet,), timeout=max(0.0, left))
            if not done:
                return False
        return True

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits for its processes, or is in one."""
        if all(worker.state is ProcessState.FAILED for worker in self.workers):
            return True
        return not self.outlet.items and all(worker.is_quiet for worker in self.workers)

    def abandon(self) -> None:
        """End the processes after the application was killed."""
        self._ended = True
        for worker in self.workers:
            worker.abandon()

    @property
    def trouble(self) -> str | None:
        """What keeps its handlers from being called; None when nothing does."""
        return next(filter(None, (worker.trouble for worker in self.workers)), None)

    @property
    def up(self) -> bool:
        """Whether all processes have started, or will not start any more."""
        return all(worker.is_up for worker in self.workers)

    # Messages.

    def _filled(self) -> None:
        if self._ended or self._pumping is not None:
            return
        for worker in self.workers:
            if worker.is_idle:
                # What comes alone is not to wait for more.
                self.pump()
                return
        self._pumping = self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Hand out what waits, as far as the processes have room."""
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None
        outlet = self.outlet
        items = outlet.items
        if not items and self._all_quiet is None:
            return
        observer = self._run.observer
        measured = self.measurements is not None
        while items and not self._paused:
            worker = self._free_worker(items[0])
            if worker is None:
                break
            delivery = outlet.get_nowait()
            if not delivery.start():
                continue
            if observer is not None:
                observer.collected(self, (delivery,))
            if measured:
                self.processor.taken(delivery)
            worker.send(delivery)
        if self._all_quiet is not None and not self._all_quiet.done() and self.is_quiet:
            self._all_quiet.set_result(None)

    def _free_worker(self, item: Any) -> ProcessWorker | None:
        workers = self.workers
        if len(workers) == 1:
            return workers[0] if workers[0].has_room else None
        key = getattr(item, "item", item).envelope.key
        if key is not None:
            # Whoever gives its messages keys wants those of one key in order.
            worker = workers[lane_of(key, len(workers))]
            return worker if worker.has_room else None
        best: ProcessWorker | None = None
        for worker in workers:
            if worker.has_room and (best is None or worker.load < best.load):
                best = worker
        if best is None or best.load < max(best.enough, len(self.outlet.items) // len(workers)):
            return best
        # The rest is for whoever is free first, so that all are busy until the end.
        return None

    def take_back(self, deliveries: list[RoutedDelivery]) -> None:
        """Put deliveries that no process has begun in front of all others, in their order."""
        for delivery in reversed(deliveries):
            router = delivery.route.router
            if not router.give_back(delivery):
                # Nobody else has it.
                delivery.requeue()
                self.outlet.push_front((delivery,))

    def start_over(self, deliveries: list[RoutedDelivery]) -> None:
        """As `take_back`, without an outage that would bring them again."""
        for delivery in reversed(deliveries):
            if self._stopping or delivery.route.router.holding:
                self.take_back([delivery])
            else:
                delivery.route.router.start_over(delivery)

    # What its processes tell.

    def count(self, counted: Mapping[str, int | float]) -> None:
        """Add what one of its processes has counted, by the names of counters."""
        for name, number in counted.items():
            self.stats[name] += number  # type: ignore[assignment]
        self.tallies.elsewhere += int(counted.get("messages.handled", 0))
        self.processor.settlements.unconfirmed += int(counted.get("posts.unconfirmed", 0))
        self._run.given_up.messages[self.name] += int(counted.get("messages.given_up", 0))

    def gave_up(self, reasons: Sequence[str]) -> None:
        """Note what one of its processes, which has logged it, could not finish."""
        known = self._run.given_up.reasons
        for reason in reasons:
            # What holds up the process holds up the lane as well.
            if reason not in known:
                self._run.given_up.add(reason)

    def receive(self, instance: Any, item: Any) -> Awaitable[None]:
        """Raise TypeError: nothing is handled in this process."""
        return self._pipes.receive(instance, item)

    def crash(self, unfinished: Any) -> bool:
        """End the processes; they are replaced."""
        for worker in self.workers:
            worker.kill("was ended by a test")
        return True

    # What routers call.

    def interrupt(self, router: Router) -> None:
        """Have what was not started returned to the router."""
        super().interrupt(router)
        for worker in self.workers:
            worker.interrupt(router)
            worker.recall()

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """Answer a request that would wait for itself; True when that happened."""
        # With several lanes or processes another one could handle it, as the process can tell.
        alone = len(self.workers) == 1 and self.options.lanes == 1
        return alone and super().refuses(envelope, handler)

    # From time to time.

    def _watch(self) -> None:
        deadline = self.options.deadline
        pause = _LOOK if deadline is None else min(_LOOK, deadline / 2)
        now = self._loop.time()
        # Whoever was stopped itself has nobody to blame.
        overslept = now - self._looked > pause * _OVERSLEPT + _LOOK
        self._looked = now
        self._watching = self._loop.call_later(pause, self._watch)
        for worker in self.workers:
            worker.watch(deadline, self._run.settings.blocked, overslept=overslept)
