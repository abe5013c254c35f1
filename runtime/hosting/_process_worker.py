"""One child process of an actor, and those that take its place when it ends."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from ..._logs import known_levels
from ..._texts import describe, escaped
from ...actors import RestartCounter
from ...errors import ActorStopped, ProcessCrashed, RestartLimitReached, SpaDatError
from ...transports import Envelope
from ..handling._failures_and_retries import deadline_missed
from ..processes._child_process import HUNG, ChildProcess
from ..processes._delivery_progress import DONE, MISSED, SENT, SLOTS, STARTED
from ..processes._frames import (
    Begin,
    Connected,
    DefineRoute,
    Deliver,
    Ended,
    Failed,
    NotStarted,
    Problem,
    ProblemsChanged,
    Ready,
    Recall,
    Recalled,
    Returned,
    Settled,
    Start,
    Stop,
    StopActor,
    Stopped,
    error_of,
    tag_of,
)
from ..routing._routed_deliveries import Route, RoutedDelivery
from ..routing._router import Router
from ._child_services import ChildServices

if TYPE_CHECKING:
    from ._process_lane import ProcessLane

__all__ = ["ProcessState", "ProcessWorker"]

_DELIVER = tag_of(Deliver)
_BUSY = 0.05
"""Seconds of work that a process is given in advance."""
_ENOUGH = 0.002
"""Seconds of work in advance with which it surely does not wait for the next."""
_MOST = 1_000
_LEAST_TIME = 1e-6
_REST = 1.0
"""Seconds after its deadline that an attempt may take to end by itself."""
_GRACE = 1.0
_START_AGAIN = 1.0
"""Seconds until a process is started again that the operating system did not allow."""


class ProcessState(enum.Enum):
    """How far a worker has come."""

    NEW = "new"
    STARTING = "starting"
    """Its process starts, and the actor in it."""
    RUNNING = "running"
    WAITING = "waiting"
    """Its process has ended, and the next one is started after a while."""
    STOPPED = "stopped"
    FAILED = "failed"
    """Its processes have ended too often; there is no further one."""


# The diagram of docs/design.md.
_NEXT = {
    ProcessState.NEW: (ProcessState.STARTING, ProcessState.STOPPED),
    ProcessState.STARTING: (
        ProcessState.RUNNING,
        ProcessState.WAITING,
        ProcessState.FAILED,
        ProcessState.STOPPED,
    ),
    ProcessState.RUNNING: (ProcessState.WAITING, ProcessState.STOPPED),
    ProcessState.WAITING: (ProcessState.STARTING, ProcessState.FAILED, ProcessState.STOPPED),
    ProcessState.FAILED: (ProcessState.STOPPED,),
    ProcessState.STOPPED: (),
}


class ProcessWorker:
    """One child process of an actor, and those that take its place when it ends.

    Args:
        lane: whose messages it handles.
        number: which of several it is; None for the only one.
        shipped: the actor, pickled.

    Attributes:
        state: how far it has come.
        load: how many deliveries it has.
        finished: how many its processes have finished with.
        was_killed: it did not stop in time.
    """

    def __init__(self, lane: ProcessLane, number: int | None, shipped: bytes) -> None:
        self._lane = lane
        self._number = number
        self._shipped = shipped
        self._loop = asyncio.get_running_loop()
        self.state = ProcessState.NEW
        self._process: ChildProcess | None = None
        self._services: ChildServices | None = None
        self._in_flight: dict[int, RoutedDelivery] = {}
        # How many recalls the process has not answered. What it would get meanwhile, it could begin
        # before what it returns.
        self._recalls = 0
        self._bytes = 0
        self._slots: list[int] = []
        self._routes: dict[Route, int] = {}
        # What a process has ended under, to be tried alone and before all else, with what
        # the last attempt failed with.
        self._first: deque[tuple[RoutedDelivery, BaseException | None]] = deque()
        self.finished = 0
        self._deciding: asyncio.Task[None] | None = None
        self._failing_since: dict[int, float] = {}
        self._late: dict[int, None] = {}
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] | None = None
        self._restarts: RestartCounter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._may_begin = False
        self._connected = True
        self._problems: list[str] = []
        self._problem: str | None = None
        self.was_killed = False
        options = lane.options
        lanes = options.lanes
        size = 1 if options.batch is None else options.batch[0]
        self._least = min(2 * lanes * size, SLOTS // 2)
        self._most = max(_MOST, self._least)
        self._credit = self._least
        self._most_bytes = lane.runner.window_bytes
        self._a_message = 0.0
        self._since = 0.0

    def _become(self, state: ProcessState) -> None:
        assert state in _NEXT[self.state], f"{self._lane.name}: {self.state} to {state}"
        self.state = state

    # Start and end.

    def start(self) -> None:
        """Start a process; `started` waits until the actor runs in it."""
        self._timer = None
        self._become(ProcessState.STARTING)
        try:
            self._process = process = ChildProcess(
                self._lane.actor_name, self._received, self._process_ended
            )
        except SpaDatError as error:
            self._not_launched(error)
            return
        self._slots = list(range(SLOTS - 1, -1, -1))
        self._recalls = 0
        self._routes = {}
        self._problems = []
        self._services = services = ChildServices(self._lane, process.channel)
        process.progress.beat()
        self._connected = self._lane.connection.bus.connected
        identity = self._lane.connection.surroundings.identity
        settings = self._lane.runner.run.settings
        restart = self._lane.restart
        process.channel.send(
            Start(
                self._shipped,
                identity.application,
                identity.instance,
                identity.ephemeral,
                self._number,
                known_levels(),
                services.about_bus(),
                settings.slow,
                settings.blocked,
                (restart.intensity, restart.period, restart.backoff_min, restart.backoff_max),
                SLOTS,
            )
        )

    def _not_launched(self, error: SpaDatError) -> None:
        if not self._started.done():
            self._fail(error)
            return
        # Others had been started before: a lack of memory, files or processes passes.
        self._become(ProcessState.WAITING)
        self._problem = f"{describe(error)}; tried again every {_START_AGAIN:g} s"
        self._lane.log.error("%s", self._problem)
        self._timer = self._loop.call_later(_START_AGAIN, self.start)

    async def started(self) -> None:
        """Wait until the actor runs in the process; raises why it does not."""
        await asyncio.shield(self._started)

    def begin(self) -> None:
        """Everybody has started: a producer may make its first call."""
        self._may_begin = True
        if self.state is ProcessState.RUNNING:
            self._send(Begin())

    async def stop(self, deadline: float, rest: float) -> None:
        """Stop in good order.

        Args:
            deadline: loop time until which handlers may go on.
            rest: loop time at which the process is ended, whatever it does.
        """
        if self._timer is not None:
            self._timer.cancel()
        if not self._started.done():
            self._started.set_exception(ActorStopped("it was stopped while it was starting"))
            self._started.exception()  # who starts it may be gone
        process = self._process
        if self.state is ProcessState.STARTING and process is not None:
            # It may wait for anything.
            process.kill("was still starting")
        if process is not None and process.alive:
            self._over = self._loop.create_future()
            self._send(Stop(max(0.0, deadline - self._loop.time())))
            left = max(0.0, rest - self._loop.time())
            await asyncio.wait((self._over,), timeout=left)
            if not self._over.done():
                self.was_killed = True
                process.kill("did not stop in time")
                await asyncio.wait((self._over,), timeout=_GRACE)
        if self._deciding is not None:
            await asyncio.wait((self._deciding,), timeout=_GRACE)
            self._deciding.cancel()
        if self.state is not ProcessState.STOPPED:
            self._become(ProcessState.STOPPED)

    def abandon(self) -> None:
        """End the process after the application was killed."""
        if self._process is not None:
            self._process.abandon()

    def kill(self, why: str) -> None:
        """End the process; it is replaced."""
        if self._process is not None:
            self._process.kill(why)

    # Looked at from outside.

    @property
    def load(self) -> int:
        """How many deliveries it has."""
        return len(self._in_flight)

    @property
    def has_room(self) -> bool:
        """Whether it may be given one more delivery."""
        return (
            self.state is ProcessState.RUNNING
            and not self._recalls
            and not self._first
            and len(self._in_flight) < self._credit
            and (self._bytes < self._most_bytes or not self._in_flight)
        )

    @property
    def enough(self) -> int:
        """How many deliveries it needs, lest it waits for the next."""
        if not self._a_message:
            return self._least
        return max(self._least, int(_ENOUGH / self._a_message))

    @property
    def is_idle(self) -> bool:
        """Whether it runs and waits for work."""
        return not self._in_flight and self.state is ProcessState.RUNNING

    @property
    def is_quiet(self) -> bool:
        """Whether it has nothing to do."""
        return not self._in_flight and not self._first

    @property
    def is_up(self) -> bool:
        """Whether it has started, or does not start any more."""
        return self.state not in (ProcessState.STARTING, ProcessState.WAITING)

    @property
    def trouble(self) -> str | None:
        """What is not as it should be; None when nothing is."""
        if self._problem is not None:
            return self._problem
        return self._problems[0] if self._problems else None

    # Deliveries.

    def send(self, delivery: RoutedDelivery) -> None:
        """Hand out a started delivery."""
        process = self._process
        assert process is not None
        envelope = delivery.envelope
        route = delivery.route
        number = self._routes.get(route)
        if number is None:
            number = self._define(route)
        if envelope.response_topic is not None or delivery.deadline is not None:
            usable = self._usable(delivery)
            if usable is None:
                return
            envelope = usable
        alone = not self._in_flight
        if alone:
            self._since = self._loop.time()
        slot = self._slots.pop()
        process.progress.states[slot] = SENT
        self._in_flight[slot] = delivery
        self._bytes += len(envelope.payload)
        last = self._lane.stopping or route.router.is_last_copy(delivery)
        head = (_DELIVER, slot, number, delivery.attempts, last)
        process.channel.send_envelope(head, envelope, at_once=alone)

    def _define(self, route: Route) -> int:
        self._routes[route] = number = len(self._routes)
        shared = route.router.shared
        self._send(DefineRoute(number, route.handler, route.filter.text, shared))
        return number

    def _usable(self, delivery: RoutedDelivery) -> Envelope | None:
        """Return the message as the process gets it; None if it has expired.

        The process knows neither when it arrived nor where replies may go.
        """
        envelope = delivery.envelope
        processor = self._lane.processor
        changes: dict[str, Any] = {}
        if delivery.deadline is not None:
            if not delivery.attempts and processor.is_late(delivery):
                processor.drop(delivery)
                return None
            changes["expiry"] = max(0.0, delivery.deadline - self._loop.time())
        if envelope.response_topic is not None and not processor.may_answer(delivery):
            changes["response_topic"] = None
        return msgspec.structs.replace(envelope, **changes) if changes else envelope

    def recall(self) -> None:
        """Have what was not started returned."""
        if self._in_flight and self._process is not None:
            self._recalls += 1
            self._send(Recall())

    def interrupt(self, router: Router) -> None:
        """Give back what waits for its turn to be tried alone, of this router."""
        decided = [
            delivery
            for delivery, error in self._first
            if error is None and delivery.route.router is router
        ]
        self._first = deque(one for one in self._first if one[0] not in decided)
        self._lane.take_back(decided)

    def give_up(self) -> list[RoutedDelivery]:
        """Return what is left, after the end."""
        left = [*self._in_flight.values(), *(delivery for delivery, _ in self._first)]
        self._in_flight.clear()
        self._first.clear()
        return left

    def _freed(self, slot: int) -> RoutedDelivery | None:
        delivery = self._in_flight.pop(slot, None)
        if delivery is not None:
            self._slots.append(slot)
            self._bytes -= len(delivery.envelope.payload)
        return delivery

    def _settled(self, slots: list[int]) -> None:
        # A process that has done something may end as often as it likes.
        self._restarts = None
        count = len(slots)
        self.finished += count
        # One message at a time says how long the way there and back takes, and not the work.
        if count > 1 or (count and (len(self._in_flight) > 1 or self._lane.outlet.items)):
            self._note_pace(count)
        for slot in slots:
            delivery = self._freed(slot)
            if delivery is not None:
                delivery.settle()
        if self._failing_since:
            self._failing_since.clear()
        self._go_on()

    def _note_pace(self, count: int) -> None:
        now = self._loop.time()
        took = max((now - self._since) / count, _LEAST_TIME)
        before = self._a_message
        self._a_message = took if not before else 0.7 * before + 0.3 * took
        self._since = now
        self._credit = min(self._most, max(self._least, int(_BUSY / self._a_message)))

    def _returned(self, deliveries: list[tuple[int, int]]) -> None:
        back = []
        for slot, attempts in deliveries:
            delivery = self._freed(slot)
            if delivery is not None:
                delivery.attempts = attempts
                back.append(delivery)
        self._lane.take_back(back)
        self._go_on()

    def _recalled(self) -> None:
        self._recalls -= 1
        self._go_on()

    def _go_on(self) -> None:
        if self._first:
            self._try_first()
        self._lane.pump()

    def _try_first(self) -> None:
        """Deal with what a process has ended under: one after the other, and alone."""
        if self._deciding is not None or not self._first:
            return
        delivery, error = self._first[0]
        if error is not None:
            self._deciding = self._loop.create_task(self._decide(delivery, error))
        elif self.state is ProcessState.RUNNING and not self._in_flight:
            self._first.popleft()
            self.send(delivery)

    async def _decide(self, delivery: RoutedDelivery, error: BaseException) -> None:
        since = self._failing_since.setdefault(id(delivery), self._loop.time())
        again = False
        try:
            again = await self._lane.processor.failed_apart(delivery, error, since)
        finally:
            self._deciding = None
            self._first.popleft()
        if again:
            self._first.appendleft((delivery, None))
        else:
            self._failing_since.pop(id(delivery), None)
        self._go_on()

    # What the process says.

    def _received(self, frame: Any) -> None:
        if isinstance(frame, Settled):
            self._settled(frame.slots)
        elif isinstance(frame, Returned):
            self._returned(frame.deliveries)
        elif isinstance(frame, Recalled):
            self._recalled()
        elif isinstance(frame, Ready):
            self._is_ready()
        elif isinstance(frame, NotStarted):
            self._not_started(frame.problem)
        elif isinstance(frame, Ended):
            self._actor_ended(frame)
        elif isinstance(frame, StopActor):
            self._lane.request_stop()
        elif isinstance(frame, Stopped):
            self._lane.gave_up(frame.given_up)
        elif isinstance(frame, ProblemsChanged):
            self._problems = frame.texts
        elif isinstance(frame, Failed):
            self._failure(frame)
        elif self._services is not None:
            self._services.do(frame)

    def _is_ready(self) -> None:
        self._become(ProcessState.RUNNING)
        self._problem = None
        if self._may_begin:
            self._send(Begin())
        if not self._started.done():
            self._started.set_result(None)
        self._go_on()

    def _not_started(self, problem: Problem) -> None:
        error = error_of(problem)
        if not self._started.done():
            self._fail(error)
        else:
            self._lane.log.error("its new process could not start it: %s", describe(error))

    def _fail(self, error: BaseException) -> None:
        """There is no further process."""
        self._become(ProcessState.FAILED)
        self._problem = describe(error)
        if not self._started.done():
            self._started.set_exception(error)
            self._started.exception()  # who starts it may be gone

    def _actor_ended(self, frame: Ended) -> None:
        if frame.exit is not None:
            self._lane.runner.end(SystemExit(frame.exit))
        elif frame.problem is not None:
            self._lane.runner.end(error_of(frame.problem))
        else:
            self._lane.runner.end(None)

    def _failure(self, frame: Failed) -> None:
        envelope = None
        if frame.topic is not None:
            found = (one.envelope for one in self._in_flight.values())
            envelope = next((one for one in found if one.topic == frame.topic), None)
        self._lane.failed(frame.where, error_of(frame.problem), envelope)

    def _send(self, frame: Any) -> None:
        if self._process is not None:
            self._process.channel.send(frame)

    # When the process ends.

    def _process_ended(self, why: str) -> None:
        process, self._process = self._process, None
        assert process is not None
        if self.state is not ProcessState.FAILED:
            self._become(ProcessState.WAITING)
        if self._services is not None:
            self._services.close()
            self._services = None
        if process.exit_code == HUNG:
            why = "has ended because a handler did not end at its deadline"
        self._sort_out(process, f"its process {why}")
        process.progress.close()
        over = self._over
        if over is not None and not over.done():
            over.set_result(None)
        if self.state is ProcessState.FAILED:
            return
        if over is not None:
            # It was told to stop.
            self._become(ProcessState.STOPPED)
            return
        self._replace(why)
        self._go_on()

    def _sort_out(self, process: ChildProcess, why: str) -> None:
        """Settle, blame, or take back what the process had."""
        states = process.progress.states
        begun: list[tuple[int, RoutedDelivery]] = []
        unharmed: list[RoutedDelivery] = []
        in_flight, self._in_flight, self._bytes = self._in_flight, {}, 0
        for slot, delivery in in_flight.items():
            if states[slot] == DONE:
                delivery.settle()
            elif states[slot] == SENT:
                unharmed.append(delivery)
            else:
                begun.append((slot, delivery))
        late = {slot for slot, _ in begun if states[slot] == MISSED or slot in self._late}
        self._late.clear()
        error: BaseException = ProcessCrashed(
            f"{escaped(why)} while it was handling this message and no other"
        )
        blamed = {slot for slot, _ in begun} if len(begun) == 1 else set()
        if late:
            deadline = self._lane.options.deadline
            # What the process has noticed itself it has counted.
            self._lane.stats["messages.cut_off"] += sum(states[slot] != MISSED for slot in late)
            error = deadline_missed(
                f"the handler took longer than its deadline of {deadline or 0:g} s; its process is"
                " ended"
            )
            blamed = late
        if begun:
            stopping = self._lane.stopping
            for slot, delivery in reversed(begun):
                if slot in blamed:
                    self._first.appendleft((delivery, error))
                elif stopping:
                    unharmed.insert(0, delivery)
                else:
                    self._first.appendleft((delivery, None))
        if begun or unharmed or self._over is None:
            self._lane.log.warning(
                "%s; %d messages were being handled in it, %d were waiting there",
                why,
                len(begun),
                len(unharmed),
            )
        self._lane.start_over(unharmed)

    def _replace(self, why: str) -> None:
        lane = self._lane
        if lane.stopping and not self._first and not lane.outlet.items:
            self._become(ProcessState.STOPPED)
            return
        delay: float | None = 0.0
        if not self._first:
            # It died of nothing that is bounded by the attempts at a message.
            if self._restarts is None:
                random = lane.environment.random
                self._restarts = RestartCounter(lane.restart, random)
            error = ProcessCrashed(f"its process {why}")
            delay = self._restarts.next_delay(error, self._loop.time())
            if delay is None:
                limit = RestartLimitReached(
                    f"its process has ended {lane.restart.intensity + 1} times within"
                    f" {lane.restart.period:g} s, the last time it {why}; it is not started again"
                )
                self._fail(limit)
                lane.unhealthy(describe(limit))
                return
        self._problem = f"its process {why}, and another one takes its place"
        if delay:
            self._timer = self._loop.call_later(delay, self.start)
        else:
            self.start()

    # From time to time.

    def watch(self, deadline: float | None, blocked: float | None, *, overslept: bool) -> None:
        """See whether the process goes on."""
        process = self._process
        if process is None or self.state is not ProcessState.RUNNING:
            return
        connected = self._lane.connection.bus.connected
        if connected != self._connected:
            self._connected = connected
            self._send(Connected(connected))
        if overslept:
            return
        if deadline is not None:
            states = process.progress.states
            for slot in self._in_flight:
                late = process.progress.at_work_for(slot) > deadline + _REST
                if states[slot] == STARTED and late:
                    self._late[slot] = None
            if self._late:
                process.kill("was ended because a handler did not end at its deadline")
                return
        silent = process.progress.silent_for
        if blocked is not None and silent > blocked:
            if self._problem is None:
                self._lane.stats["loop.blocked"] += 1
                self._lane.log.error(
                    "its process %d has not answered for %.0f s", process.pid, silent
                )
            self._problem = f"its process {process.pid} has not answered for {silent:.0f} s"
        else:
            self._problem = None
