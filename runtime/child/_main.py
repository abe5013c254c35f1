"""The entry point of a child process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import select
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from io import FileIO
from typing import TYPE_CHECKING, Any

from ..._environment import Environment
from ..._texts import encodable
from ...actors import RestartPolicy
from ...transports import DeliveryState, Envelope, Identity, TopicFilter
from ..application._lifecycle import Run
from ..application._program import IMPORTING, end_loop
from ..application._signals import ignore_signals
from ..hosting._actor_observer import Receive
from ..hosting._actor_runner import ActorRunner
from ..hosting._application_settings import Settings
from ..hosting._lane import Lane
from ..options._actor_options import ActorOptions
from ..processes._channel import Channel
from ..processes._child_process import HUNG
from ..processes._code_pickling import Shipment, unpack
from ..processes._delivery_progress import MISSED, STARTED, Progress
from ..processes._frames import (
    Begin,
    DefineRoute,
    Deliver,
    Ended,
    Failed,
    Measured,
    NotStarted,
    ProblemsChanged,
    Ready,
    Recall,
    Recalled,
    Start,
    Stats,
    Stop,
    StopActor,
    Stopped,
    ToChild,
    problem_of,
)
from ..registration._specs import Spec
from ..registration._specs_from_code import class_spec, function_spec
from ..routing._routed_deliveries import Route, RoutedDelivery
from ..routing._router import Router
from ..routing._subscriptions import router_of
from ._child_loop import child_loop
from ._parent_bus import Book, ParentProvider, delivery_in
from ._parent_log import ParentLog

if TYPE_CHECKING:
    from ..diagnostics._stop_report import StopReport
    from ..metrics._measurements import Measurements

__all__ = ["main"]

_MOST_LETTERS = 2**62
_LAST_STOP = 5.0
_OFTEN = 0.5
# Counted by the parent.
_NOT_COUNTED = frozenset({"dead_letters.stored", "loop.blocked"})
_INTERRUPTED = 130
# Frames carry no larger numbers.
_LARGEST_EXIT = 2**63 - 1
_HIGH = 200
_BROKEN = 70


class ChildRun(Run):
    """The run of the one actor in a child process, whose end is its parent's affair.

    Args:
        child: whose run it is.
        settings: as in `Run`.
        spec: the actor.
        resources: as in `Run`.
    """

    def __init__(
        self, child: ChildMain, settings: Settings, spec: Spec[Any], resources: Any
    ) -> None:
        super().__init__(settings, (spec,), resources)
        self._child = child

    def stop_actor(self, actor: ActorRunner) -> None:
        """Leave it to the parent, which stops the actor's other processes with it."""
        self._child.channel.send(StopActor())
        self._child.give_back_all()

    def tell_stopped(self, report: StopReport) -> None:
        """Leave it to the parent, which tells of the whole application."""

    def thread_lost(self, lane: Lane) -> None:
        """End the process, which alone ends a handler that goes on after its deadline."""
        self._child.end_hung(lane)


class _Failures:
    """Tells the parent's observer of failures."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        return receive

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        pass

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        topic = None if envelope is None else envelope.topic
        self._channel.send(Failed(where, problem_of(error), topic))

    def troubled(self, actor: str, reason: str) -> None:
        pass


class ChildMain:
    """A child process, inside.

    Args:
        reading: descriptor of the pipe from the parent.
        writing: descriptor of the pipe to the parent.
        memory: descriptor of what `Progress` is written to.
    """

    def __init__(self, reading: int, writing: int, memory: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.progress = Progress(memory)
        self.progress.seal()
        self.channel = Channel(
            FileIO(reading, "rb"),
            FileIO(writing, "wb"),
            ToChild,
            self._received,
            self._parent_ended,
            self.progress.from_child,
            self.progress.to_child,
        )
        self.book = Book(self.channel, self.progress)
        self.book.on_settled = self._count
        self._run: ChildRun | None = None
        self._provider: ParentProvider | None = None
        self._routers: dict[bool, Router] = {}
        self._routes: dict[int, Route] = {}
        self._counted: dict[str, int | float] = {}
        self._texts: list[str] = []
        self._tick = _OFTEN
        self._stop_timeout = _LAST_STOP
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._stopping = False
        self._gives_back = False
        self._log: ParentLog | None = None

    # The parent's frames.

    def _received(self, frame: Any) -> None:
        if isinstance(frame, Deliver):
            self._deliver(frame)
        elif isinstance(frame, DefineRoute):
            self._define(frame)
        elif isinstance(frame, Start):
            self._in_background(self._start(frame))
        elif isinstance(frame, Recall):
            self.recall()
            self.book.tell()
            self.channel.send(Recalled())
        elif isinstance(frame, Stop):
            self._in_background(self._stop(frame.seconds))
        elif isinstance(frame, Begin):
            if self._run is not None:
                self._run.begin()
        elif self._provider is not None and self._provider.bus is not None:
            self._provider.bus.outcome(frame)

    def _deliver(self, frame: Deliver) -> None:
        route = self._routes[frame.route]
        delivery = delivery_in(frame, self.book)
        route.router.put_in(delivery, route)
        if self._gives_back:
            self.recall()

    def _define(self, frame: DefineRoute) -> None:
        assert self._run is not None
        (runner,) = self._run.actors
        router = self._routers.get(frame.shared)
        if router is None:
            router = router_of(runner, f"{runner.name}.pipe", self._run.settings.stats)
            router.shared = frame.shared
            self._routers[frame.shared] = router
        route = runner.route(router, frame.handler, TopicFilter.parse(frame.filter))
        router.add(route)
        self._routes[frame.number] = route

    def give_back_all(self) -> None:
        """Start nothing more: also return what the parent has sent before it hears of that."""
        self._gives_back = True
        self.recall()

    def recall(self) -> None:
        """Return what has not been started to the parent."""
        for router in self._routers.values():
            router.hold()
            # What ends its wait for another attempt now is returned, too.
            router.resume(redelivered=True)

    def _parent_ended(self, error: BaseException | None) -> None:
        # Nobody hears anything any more; what is open is closed, and that is all.
        self._in_background(self._stop(0.0))

    # Start and stop.

    async def _start(self, frame: Start) -> None:
        self._log = ParentLog(self.channel, frame.levels)
        try:
            self._run = run = self._make_run(frame)
            await run.start()
        except BaseException as error:  # noqa: BLE001 (the parent decides)
            self.channel.send(NotStarted(problem_of(error)))
            self._end()
            return
        (runner,) = run.actors
        limits = [one for one in (runner.options.deadline, frame.blocked) if one is not None]
        self._tick = min([_OFTEN, *(limit / 4 for limit in limits)])
        self._beat()
        self._in_background(self._until_over(run))
        self.channel.send(Ready())

    def _make_run(self, frame: Start) -> ChildRun:
        token = IMPORTING.set(True)
        try:
            shipment = unpack(frame.shipped)
        finally:
            IMPORTING.reset(token)
        self._provider = provider = ParentProvider(self.channel, frame.bus)
        spec = _spec_of(shipment, provider)
        settings = Settings(
            identity=Identity(frame.application, frame.instance, frame.ephemeral),
            environment=Environment(),
            stats=Counter(),
            provider=None,
            stop_timeout=self._stop_timeout,
            dead_letter_limit=_MOST_LETTERS,
            restart=RestartPolicy(*frame.restart),
            slow=frame.slow,
            blocked=frame.blocked,
            observer=_Failures(self.channel) if frame.bus["observed"] else None,
            number=frame.number,
            middleware=list(shipment.middleware),
            measurements=_measurements() if frame.bus["measured"] else None,
        )
        return ChildRun(self, settings, spec, shipment.resources)

    async def _until_over(self, run: ChildRun) -> None:
        try:
            await run.wait()
        except (SystemExit, KeyboardInterrupt) as error:
            self._send_exit(error)
        except asyncio.CancelledError:
            if not (self._stopping or self.over.done()):
                problem = "code in this process has cancelled tasks that are not its own"
                self.over.set_exception(RuntimeError(problem))
        except BaseException as error:  # noqa: BLE001 (the parent decides)
            self._send_rest(Ended(problem_of(error)))
        else:
            if not self._stopping:
                self._send_rest(Ended(None))

    def _send_exit(self, error: SystemExit | KeyboardInterrupt) -> None:
        code = error.code if isinstance(error, SystemExit) else _INTERRUPTED
        if not (code is None or (isinstance(code, int) and abs(code) <= _LARGEST_EXIT)):
            code = encodable(str(code))
        self._send_rest(Ended(problem_of(error), 0 if code is None else code))

    def _send_rest(self, frame: Any) -> None:
        self._count()
        self.channel.send(frame)
        self.channel.flush()

    async def _stop(self, seconds: float) -> None:
        if self._stopping:
            return
        self._stopping = True
        given_up: list[str] = []
        if self._run is not None:
            await self._run.stop_within(seconds)
            given_up = self._run.given_up.reasons
            exit_ = self._run.reason.failure
            if isinstance(exit_, SystemExit | KeyboardInterrupt):
                # Perhaps for the second time: nothing waits for the first any more.
                self._send_exit(exit_)
        self._send_rest(Stopped(given_up))
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def end_hung(self, lane: Lane) -> None:
        """End the process, because a handler of the lane does not end."""
        mine = [
            delivery
            for delivery in self.book.known.values()
            if delivery.state is DeliveryState.RUNNING
            and delivery.route.target is lane  # type: ignore[attr-defined]
            and self.progress.states[delivery.token] == STARTED
        ]
        since = self.progress.since
        last = max(mine, key=lambda delivery: since[delivery.token], default=None)
        if last is not None:
            self.progress.states[last.token] = MISSED
        self.book.tell()
        self._count()
        self.channel.flush()
        os._exit(HUNG)

    # From time to time.

    def _beat(self) -> None:
        self.progress.beat()
        self._loop.call_later(self._tick, self._beat)
        self._count()
        if self._run is not None:
            texts = [
                text
                for name, text in self._run.health_report.problems.items()
                if not self._stopping
            ]
            if texts != self._texts:
                self._texts = texts
                self.channel.send(ProblemsChanged(texts))

    def _send_measured(self, measurements: Measurements) -> None:
        all_series = measurements.all_series()
        taken = [(one.template, part) for one in all_series if (part := one.take()) is not None]
        if taken:
            self.channel.send(Measured(taken))

    def _count(self) -> None:
        if self._run is None:
            return
        if self._run.settings.measurements is not None:
            self._send_measured(self._run.settings.measurements)
        stats, before = self._run.settings.stats, self._counted
        if stats == before:
            return
        changes = {
            name: number - before.get(name, 0)
            for name, number in stats.items()
            if number != before.get(name, 0) and name not in _NOT_COUNTED
        }
        self._counted = dict(stats)
        if changes:
            self.channel.send(Stats(changes))

    def _in_background(self, work: Any) -> None:
        task = self._loop.create_task(work)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Task[Any]] = set()


def _spec_of(shipment: Shipment, provider: ParentProvider) -> Spec[Any]:
    options = ActorOptions(**shipment.options, socket_provider=provider)
    shared = tuple(shipment.resources)
    if shipment.factory is None:
        return function_spec(
            shipment.source, shipment.name, shipment.kind, shipment.topics, options, shared
        )
    spec = class_spec(shipment.source, shipment.factory, options, shared)
    spec.reconfigure(options)
    spec.name = shipment.name
    return spec


def _measurements() -> Measurements:
    # Not at the top: most applications have no metrics.
    from ..metrics._measurements import Measurements

    return Measurements()


def _end_with_parent(reading: int) -> None:
    # In a thread: the event loop may be blocked for ever.
    poll = select.poll()
    poll.register(reading, 0)
    poll.poll()
    threading.Event().wait(_LAST_STOP * 2)
    os._exit(1)


def main(reading: int, writing: int, memory: int) -> None:
    """Run the actor that the parent sends, until the parent stops it or ends.

    Args:
        reading: descriptor of the pipe from the parent.
        writing: descriptor of the pipe to the parent.
        memory: descriptor of what `Progress` is written to.
    """
    # Where nobody looks for one of his own, and nobody gets one that was closed.
    inherited = reading, writing, memory
    reading, watched, writing, memory = (
        fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        for descriptor in (reading, reading, writing, memory)
    )
    for descriptor in inherited:
        os.close(descriptor)
    # Both are meant for the program; it is the parent that stops the child then.
    ignore_signals()
    threading.Thread(
        target=_end_with_parent, args=(watched,), name="spa_dat parent", daemon=True
    ).start()
    loop = child_loop(reading)
    asyncio.set_event_loop(loop)
    task = loop.create_task(_serve(reading, writing, memory))
    code = 0
    try:
        try:
            loop.run_until_complete(task)
        finally:
            end_loop(loop, task)
    except BaseException:  # noqa: BLE001 (such as a handler that has closed what the loop needs)
        code = _BROKEN
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            # Either may be closed, missing, or something that the program has put there.
            with contextlib.suppress(Exception):
                stream.flush()
    logging.shutdown()
    # Threads of the user's that go on must not keep the process.
    os._exit(code)


async def _serve(reading: int, writing: int, memory: int) -> None:
    child = ChildMain(reading, writing, memory)
    await child.over
    await child.channel.drain(_LAST_STOP)
