"""One run of an application: the order of starting and of stopping."""

from __future__ import annotations

import asyncio
import enum
import os
import threading
from collections.abc import Coroutine, Mapping
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..._busy_threads import has_own_clock
from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, reason_of
from ...actors import ActorSystem
from ...errors import ActorStopped, ConfigurationError, SpaDatError
from ...transports import Envelope, SocketProvider
from ..admin._actor_controls import ActorControls
from ..diagnostics._unclean_stop import GivenUp
from ..handling._dead_letter_store import DeadLetterLimit
from ..hosting._actor_observer import Observer
from ..hosting._actor_runner import ActorRunner
from ..hosting._application_settings import Settings
from ..hosting._lane import Lane
from ..hosting._resource_manager import ResourceManager
from ..hosting._waiting_for_tasks import wait_for_each
from ..hosting._watchdog import Watchdog
from ..messaging._bus_connection import BusConnection
from ..messaging._logged_fields import make_records_with_fields
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..options._resources import LEAST_FOR_RESOURCES, RequiredResources, Resource
from ..registration._specs import Spec
from ..routing._routed_deliveries import Route
from ..routing._router import Router
from ..routing._subscriptions import NoSubscription, Subscriptions
from ._buses import Buses
from ._start_progress import (
    StartProgress,
    check_names,
    connect,
    connection_of,
    start_of,
    subscription_of,
)
from ._stopping import (
    StopReason,
    close,
    log_stop,
    report_of_stop,
    shielded_from_scopes,
    stop_actors,
    tell_middleware,
)

if TYPE_CHECKING:
    from ..admin._dead_letter_commands import LetterCommands
    from ..admin._dead_letters import DeadLetters
    from ..diagnostics._stop_report import StopReport
    from ..hosting._durable_states import DurableStates
    from ._metrics_export import MetricsExport

__all__ = ["Run", "RunState"]

log = get_logger("spa_dat")

T = TypeVar("T")


class RunState(enum.IntEnum):
    """The states of a run, which only moves forward; see "States" in docs/design.md."""

    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    STOPPED = 4
    """Nothing of it is left."""


class Run:
    """One run of an application, from start to stop.

    Args:
        settings: the application's.
        specs: its actors.
        resources: the resources that its actors share.

    Attributes:
        state: the state of the run.
        reason: the reason to stop, once there is one.
        health_report: what can be told about its health.
        durable_states: the states of durable keys; None if no actor has any.
        stop_report: what became of its messages; None until it has stopped.
    """

    def __init__(
        self,
        settings: Settings,
        specs: tuple[Spec[Any], ...],
        resources: Mapping[str, Resource],
    ) -> None:
        self.settings = settings
        self._name = settings.identity.application
        self._specs = specs
        self._resources = resources
        self._loop = asyncio.get_running_loop()
        admin = None if has_own_clock(self._loop) else settings.admin
        self._buses = Buses(settings, self._lost_for_good, counted=admin is not None)
        self._actors: list[ActorRunner] = []
        # Those that may have something to do; none is looked at again once it has ended.
        self._not_ended: list[ActorRunner] = []
        self._lane_names: frozenset[str] = frozenset()
        self._subscriptions = Subscriptions(settings.identity, settings.stats)
        self._routers: list[Router] = []
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self.state = RunState.STARTING
        self.reason = StopReason()
        self.stop_report: StopReport | None = None
        self._stop_task: asyncio.Task[None] | None = None
        self._context = copy_context()
        self._leaving: dict[ActorRunner, asyncio.Task[None]] = {}
        self._confirming: asyncio.Task[None] | None = None
        self._log = LimitedLog(log)
        self._letters = DeadLetterLimit(settings.dead_letter_limit)
        self._progress = StartProgress(self._name, self._refuse_if_stopping)
        self._given_up = GivenUp(self._name, settings.stats)
        self._watchdog = Watchdog(settings, self._lanes)
        # Not at the top: what is not started has nothing to report.
        from ..admin._endpoint import AdminEndpoint
        from ._health_report import HealthReport

        self._metrics = self._metrics_export()
        exposition = None if self._metrics is None else self._metrics.exposition
        self.controls = ActorControls(self._name, lambda: self._actors, self._why_no_control)
        self._admin = AdminEndpoint(self, admin, exposition)
        self._observer = self._admin.observing(settings.observer)
        self.health_report = HealthReport(
            self, self._subscriptions, self._letters, self._watchdog, self._progress
        )
        self._dead_letters: DeadLetters | None = None
        self.durable_states: DurableStates | None = None
        self._commands: LetterCommands | None = None
        self._resource_manager = ResourceManager(
            self._given_up, self._resource_failed, self._lost_for_good
        )
        self._system = ActorSystem(
            name=f"{settings.identity.application}/{settings.identity.instance}",
            environment=settings.environment,
            on_failure=self._actor_failed,
            on_unhandled=self._left_unhandled,
        )

    def _metrics_export(self) -> MetricsExport | None:
        if not self.settings.exporters:
            return None
        # Not at the top: most applications have no metrics.
        from ._metrics_export import MetricsExport

        return MetricsExport(self.settings, lambda: self.health_report.health)

    def _enter(self, state: RunState) -> None:
        """Move on to a later state. Nothing else changes the state."""
        self.state = max(self.state, state)

    # For the runners of its actors.

    @property
    def system(self) -> ActorSystem:
        """The registry of the running actors."""
        return self._system

    @property
    def observer(self) -> Observer | None:
        """What is told about everything the actors do."""
        return self._observer

    @property
    def given_up(self) -> GivenUp:
        """What could not be finished before the end."""
        return self._given_up

    @property
    def resources(self) -> Mapping[str, Resource]:
        """What its actors share."""
        return self._resources

    def thread_lost(self, lane: Lane) -> None:
        """Do nothing about a handler that goes on after its deadline: it is left to itself."""

    def take_letter(self, actor: str) -> bool:
        """Claim a place for one more dead letter of the actor; return False at its limit."""
        taken = self._letters.take(actor)
        if not taken:
            self.unhealthy(actor, self._letters.problem)
        return taken

    def return_letter(self, actor: str) -> None:
        """Give back a place that was claimed, because the dead letter is not stored after all."""
        self._letters.give_back(actor)

    def parked(self, actor: str, lane: str) -> None:
        """Note that a dead letter was stored, so whatever prevented it is over."""
        self.health_report.noted.pop(lane, None)
        self.settings.stats["dead_letters.stored"] += 1
        if self._letters.stored(actor):
            self.unhealthy(actor, self._letters.problem)
        elif (warning := self._letters.warning(actor)) is not None:
            self._log.warning("%s: actor %r: %s", self._name, actor, warning)

    def letter_gone(self, actor: str) -> bool:
        """Note that a dead letter of the actor was taken away; return if another has room now."""
        has_place = self._letters.gone(actor)
        if self.health_report.noted.get(actor) == self._letters.problem:
            del self.health_report.noted[actor]
        return has_place

    def letter_kept(self, actor: str) -> None:
        """Note that a dead letter for which `letter_gone` was true is still there."""
        if self._letters.kept(actor):
            self.unhealthy(actor, self._letters.problem)

    def unhealthy(self, actor: str, reason: str) -> None:
        """Note, and log, why an actor cannot do its work."""
        if self.health_report.noted.get(actor) != reason:
            self.health_report.noted[actor] = reason
            log.error("%s: actor %r: %s", self._name, actor, reason)

    def stop_actor(self, actor: ActorRunner) -> None:
        """Stop one actor and leave the others running; called from inside it."""
        if actor not in self._leaving and self.state < RunState.STOPPING:
            routers = self._subscriptions.leave(actor)
            for router in routers:
                router.stop_intake()
            self._leaving[actor] = asyncio.ensure_future(self._leave(actor, routers))

    async def _leave(self, actor: ActorRunner, routers: list[Router]) -> None:
        deadline = self._loop.time() + self.settings.stop_timeout
        await stop_actors([actor], routers, self._system, deadline)
        actor.ended = True
        self.actor_ended(None)

    def actor_ended(self, error: BaseException | None) -> None:
        """Note that an actor has nothing more to do.

        Args:
            error: what to stop the application with; None when the others may go on.
        """
        if error is not None:
            self.end(error)
            return
        while self._not_ended and self._not_ended[-1].ended:
            self._not_ended.pop()
        if not self._not_ended and self._confirming is None:
            self._confirming = asyncio.ensure_future(self._end_when_confirmed())

    async def _end_when_confirmed(self) -> None:
        # Nobody asked for a stop, so confirmations may take as long as they need.
        await wait_for_each(connection.bus.drain() for connection in self._buses)
        self.end(next((actor.failure for actor in self._actors if actor.failure), None))

    def end(self, error: BaseException | None) -> None:
        """Give the reason to stop the application: a failure, or None if somebody asked for it."""
        if self.reason.given:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                self.reason.give_exit(error)
            return
        if self.state is RunState.STARTING:
            # The start may still succeed, and gets as much time as handlers get at a stop.
            self._loop.call_later(self.settings.stop_timeout, self._give_up_start)
        self.reason.give(error)
        if error is not None:
            self.health_report.noted[self._name] = f"it has failed: {reason_of(error)}"

    def _give_up_start(self) -> None:
        if self.state is RunState.STARTING:
            self._begin_stop(0.0)

    def _resource_failed(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self.end(error)
        if self.observer is not None:
            self.observer.failed(self._system.name, "resource", error, None)

    def _lost_for_good(self, error: BaseException) -> None:
        # A program that embeds the application need not be in `wait`, where this is raised.
        log.error("%s: %s", self._name, describe(error))
        self.end(error)

    # For the application.

    def has_stopped(self, actor: ActorRunner) -> bool:
        """Return whether an actor has ended, or is leaving."""
        return actor.ended or self.is_leaving(actor)

    def is_leaving(self, actor: ActorRunner) -> bool:
        """Return whether an actor is being stopped, or was, while the others go on."""
        return actor in self._leaving

    def _why_no_control(self) -> str | None:
        if self.state is RunState.RUNNING:
            return None
        return "it is starting" if self.state is RunState.STARTING else "it is stopping"

    @property
    def dead_letters(self) -> DeadLetters:
        """What can be done with its dead letters."""
        if self._dead_letters is None:
            # Most runs never need it.
            from ..admin._dead_letters import DeadLetters

            self._dead_letters = DeadLetters(self)
        return self._dead_letters

    def own_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Return a task that belongs to the run, whoever has asked for it."""
        return self._loop.create_task(work, context=self._context.copy())

    @property
    def is_starting(self) -> bool:
        """Whether it has not started yet, and is not stopping."""
        return self.state is RunState.STARTING

    @property
    def is_running(self) -> bool:
        """Whether it has started, and is not stopping."""
        return self.state is RunState.RUNNING

    def working(self, name: str) -> ActorRunner | None:
        """Return the actor with this name if it is running and gets messages."""
        if not self.is_running:
            return None
        found = (actor for actor in self._actors if actor.name == name)
        return next((one for one in found if not self.has_stopped(one)), None)

    @property
    def actors(self) -> tuple[ActorRunner, ...]:
        """The registered actors, in the order of registration."""
        return tuple(self._actors)

    def routes_to(self, actor: ActorRunner) -> list[Route]:
        """Return the routes to a registered actor from its filters, and those of reminders."""
        reminders = None if actor.keyed is None else actor.keyed.reminders
        of_reminders = [] if reminders is None else reminders.routes_by_topic()
        return [*self._subscriptions.routes_to(actor), *of_reminders]

    @property
    def connections(self) -> tuple[BusConnection, ...]:
        """The buses in use."""
        return tuple(self._buses)

    @property
    def changing(self) -> bool:
        """Whether it, or one of its actors, is stopping."""
        leaving = any(not leaving.done() for leaving in self._leaving.values())
        return leaving or self.state is RunState.STOPPING

    def socket(self, provider: SocketProvider | None) -> Socket:
        """Return a socket that belongs to no actor, on this bus or on the default one.

        Raises:
            ConfigurationError: no actor uses this bus, or there is no default one.
        """
        provider = provider or self.settings.provider
        if provider is None:
            raise ConfigurationError(
                "the application has no default socket provider, so it has no socket of its own"
            )
        connection = self._buses.in_use(provider)
        identity = self.settings.identity
        source = f"{identity.application}/{identity.instance}"
        return Socket(connection, source, NoSubscription(), self.settings.codec)

    def sync_socket(self, provider: SocketProvider | None) -> SyncSocket:
        """Return a blocking socket for other threads; works in any thread. See `socket`."""
        return SyncSocket(self.socket(provider), self._loop, self._thread)

    def request_stop(self) -> None:
        """Make `wait` return. Works from any thread."""
        self._loop.call_soon_threadsafe(self.end, None)

    async def wait(self) -> None:
        """Wait until there is a reason to stop; raises it if it is a failure."""
        await self.reason.wait()

    async def start(self) -> None:
        """Start everything except the producers; if that fails, stop what was started.

        Raises:
            ActorStopped: the application was stopped in the meantime.
            SystemExit: an actor raised it while it started.
        """
        make_records_with_fields()
        identity = self.settings.identity
        if identity.ephemeral:
            log.info(
                "application %r has no name: no messages are kept for it while it is away",
                identity.application,
            )
        self._watchdog.watch_loop()
        try:
            await self._start(self._progress)
        except BaseException as error:
            # What is being stopped fails in many ways; none of them is why the start ends.
            stopped = self.state >= RunState.STOPPING and isinstance(error, SpaDatError)
            before = self.reason.failure
            with shielded_from_scopes():
                await asyncio.shield(self.stop())
            over = KeyboardInterrupt | SystemExit
            failure = self.reason.failure
            stopped = stopped or isinstance(error, ActorStopped)
            if isinstance(error, Exception) and not stopped:
                # A resource that exits while it is closed again is not why it does not start.
                failure = before
            if isinstance(failure, over) or (failure and stopped):
                raise failure from error
            if stopped and not isinstance(error, ActorStopped):
                raise self._stopped_early() from error
            raise
        finally:
            self._progress.end()
        self._enter(RunState.RUNNING)
        self._watchdog.start()
        self.health_report.start()
        log.info(
            "application %r instance %r has started: %d actors, %s",
            identity.application,
            identity.instance,
            len(self._actors),
            ", ".join(connection.provider.address for connection in self._buses) or "no bus",
        )

    async def _start(self, progress: StartProgress) -> None:
        await self._admin.open()
        if self._metrics is not None:
            self._metrics.start()
        self._make_connections()
        await progress.all(
            (partial(connection_of, connection), connect(connection)) for connection in self._buses
        )
        if self.settings.outbox is not None:
            # Not at the top: it imports SQLite.
            from ._durable_files import tell_of_other_outboxes

            addresses = [connection.provider.address for connection in self._buses]
            await tell_of_other_outboxes(self.settings.outbox, self.settings.identity, addresses)
        if self.durable_states is not None:
            durable = [
                actor
                for actor in self._actors
                if actor.options.durable
                and not actor.options.are_kept_by(actor.connection.provider)
            ]
            sending = self.durable_states.open({actor.name: actor.connection for actor in durable})
            await progress.all([(lambda: "what an earlier run has left to be sent", sending)])
        owners = [
            RequiredResources("application", self._resources),
            *(actor.required_resources for actor in self._actors),
        ]
        opening = asyncio.ensure_future(self._resource_manager.open(owners))
        await progress.all([(lambda: self._resource_manager.opening, opening)])
        shared, *own = opening.result()
        # Before the actors start, because they may publish to each other at once. What arrives in
        # the meantime waits in their mailboxes.
        routers = self._routers = self._subscriptions.open(self._system)
        await progress.all((partial(subscription_of, router), router.start()) for router in routers)
        for actor, resources in zip(self._actors, own, strict=True):
            actor.spawn(self.settings.restart, shared | resources)
        await progress.all((partial(start_of, lane), lane.started()) for lane in self._lanes())

    def begin(self) -> None:
        """Start the producers, now that everything else is running."""
        for actor in self._actors:
            actor.begin()
        if not self._actors:
            self.end(None)

    def _refuse_if_stopping(self) -> None:
        if self.state >= RunState.STOPPING:
            raise self._stopped_early()

    def _stopped_early(self) -> ActorStopped:
        return ActorStopped(f"application {self._name!r} was stopped while it started")

    def _make_connections(self) -> None:
        check_names(self._specs)
        self.durable_states = self._states()
        for spec in self._specs:
            connection = self._buses.of(spec)
            actor = ActorRunner(self, spec, connection)
            self._actors.append(actor)
            self._subscriptions.add(actor)
            for filter_ in spec.filters:
                connection.filters.add(filter_.pattern, filter_.text)
        self._admin.watch(self._actors)
        self._not_ended = list(self._actors)
        self._lane_names = frozenset(lane.name for lane in self._lanes())
        if self.settings.provider is not None:
            self._buses.use(self.settings.provider, "the application's own socket")
        if not self.settings.identity.ephemeral:
            for connection in self._buses:
                connection.bus.take_commands(partial(self._take_command, connection))

    def _take_command(self, connection: BusConnection, envelope: Envelope) -> None:
        if self._commands is None:
            from ..admin._dead_letter_commands import LetterCommands

            self._commands = LetterCommands(self, self.dead_letters)
        self._commands.take(connection, envelope)

    def _states(self) -> DurableStates | None:
        durable = [spec.options for spec in self._specs if spec.options.durable]
        # Buses with transactions keep the states themselves.
        if all(options.are_kept_by(options.socket_provider) for options in durable):
            return None
        # Not at the top: it imports SQLite, and most applications have no durable actors.
        from ._durable_files import states_of

        return states_of(self.settings, self._specs, self._lost_for_good)

    async def stop(self) -> None:
        """Stop everything, in order. Never raises; calling it again waits for the same stop.

        It does not wait when one of its own actors calls it, because the stop waits for that one.
        """
        stopping = self._begin_stop(self.settings.stop_timeout)
        if not self._system.is_at_work():
            await asyncio.shield(stopping)

    async def stop_within(self, seconds: float) -> None:
        """As `stop`, with so many seconds for handlers that still run."""
        await asyncio.shield(self._begin_stop(seconds))

    def _begin_stop(self, seconds: float) -> asyncio.Task[None]:
        if self._stop_task is None:
            has_run = self.state is RunState.RUNNING
            self._enter(RunState.STOPPING)
            # In a context of its own: the caller may be one of the actors.
            self._stop_task = self._loop.create_task(
                self._stop(seconds, has_run=has_run), context=self._context
            )
        return self._stop_task

    async def stopped(self) -> None:
        """Wait for a stop in progress, even if its caller no longer waits for it."""
        stopping, own = self._stop_task, self._loop is asyncio.get_running_loop()
        if stopping is not None and own and not self._system.is_at_work():
            await asyncio.wait((stopping,))

    @property
    def is_running_here(self) -> bool:
        """Whether it has not stopped, and belongs to the event loop that is running."""
        return self.state < RunState.STOPPED and self._loop is asyncio.get_running_loop()

    def refuse_other_loop(self, call: str) -> None:
        """Raise ConfigurationError unless its event loop is the one that is running here.

        Args:
            call: what was called, for the error.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                f"{call} of application {self._name!r} was awaited where no event loop is running,"
                " as in a process that a handler or a test has forked off: end that with os._exit()"
            ) from None
        if here is not self._loop:
            raise ConfigurationError(
                f"{call} of application {self._name!r} was awaited on another event loop than the"
                " one that it was started on: await both on one loop, which a test and the fixtures"
                " that it uses may not have in common, or end it with app.stop() from anywhere"
            )

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process runs it; one that was forked off only has a copy of it."""
        return self._process == os.getpid()

    @property
    def is_lost(self) -> bool:
        """Whether its event loop was closed, so that nothing can stop it any more."""
        return self._loop.is_closed()

    def _lanes(self) -> list[Lane]:
        return [lane for actor in self._actors for lane in actor.lanes]

    def abandon(self) -> None:
        """Release what is held outside the event loop after all tasks of the run were killed."""
        for connection in self._buses:
            connection.abandon()
        for actor in self._actors:
            actor.abandon()
        if self.durable_states is not None:
            self.durable_states.abandon()
        self._let_go()
        self._admin.abandon()
        self._enter(RunState.STOPPED)

    def _let_go(self) -> None:
        """Look at it no more, and let another run use its buses."""
        self._watchdog.stop()
        self.health_report.stop()
        if self._metrics is not None:
            self._metrics.stop()
        self._buses.release()

    async def _stop(self, seconds: float, *, has_run: bool) -> None:
        began = self._loop.time()
        try:
            if self._confirming is not None:
                self._confirming.cancel()
            deadline = began + seconds
            routers = [
                router for actor in self._actors for router in self._subscriptions.leave(actor)
            ]
            await stop_actors(self._actors, routers, self._system, deadline)
            if self._dead_letters is not None:
                await self._dead_letters.close()
            await wait_for_each(self._leaving.values())
            if self.durable_states is not None:
                left = max(deadline - self._loop.time(), LEAST_FOR_RESOURCES)
                await self.durable_states.close(left, self._given_up)
            await close(self.connections, self._resource_manager, self.reason.failure, deadline)
            await tell_middleware(self.settings.middleware)
            self._given_up.posts(connection.lost_posts for connection in self._buses)
        finally:
            self._let_go()
            await self._admin.close()
            self._account(self._loop.time() - began)
            assert self.stop_report is not None
            # Of a start that has failed there is nothing to tell but that.
            if has_run or self.stop_report.actors or self.stop_report.given_up:
                self.tell_stopped(self.stop_report)
            self.end(None)
            self._enter(RunState.STOPPED)

    def _account(self, seconds: float) -> None:
        own = [actor.runtime.router for actor in self._actors if actor.runtime.router is not None]
        self.stop_report = report_of_stop(
            self.settings.identity,
            seconds,
            self._actors,
            [*self._routers, *own],
            self._letters.stored_by,
            self._given_up,
        )

    def tell_stopped(self, report: StopReport) -> None:
        """Log what became of the messages, now that it has stopped."""
        log_stop(report)

    def _left_unhandled(self, ref: Any, count: int) -> None:
        if self.state >= RunState.STOPPING and ref.name in self._lane_names:
            self._given_up.unhandled(ref.name, count)

    def _actor_failed(self, ref: Any, error: BaseException, where: str) -> None:
        if where == "cancellation":
            self.settings.stats["actors.cancellations_cleared"] += 1
            return
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.end(error)
        elif where == "on_stop":
            self._given_up.unstopped(ref.name, error)
        self.settings.stats["actors.failed"] += 1
        if self.observer is not None:
            self.observer.failed(f"{self._system.name}/{ref.name}", where, error, None)
        if where in ("restart", "task"):
            self.health_report.noted[ref.name] = describe(error)
