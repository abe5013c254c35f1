"""One run of an application: the order of starting and of stopping."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

from ..._logs import get_logger
from ..._texts import describe, reason_of
from ...actors import ActorSystem
from ...errors import ActorStopped, ConfigurationError
from ...transports import SocketProvider
from ..diagnostics._given_up import GivenUp
from ..diagnostics._problems import Problems
from ..handling._dead_letter_store import DeadLetterLimit
from ..hosting._actor_runner import ActorRunner
from ..hosting._lane import Lane
from ..hosting._observer import Observer
from ..hosting._settings import Settings
from ..hosting._waiting import wait_for_each
from ..hosting._watchdog import Watchdog
from ..messaging._connection import BusConnection
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..registration._resources import RequiredResources, Resource, ResourceManager
from ..registration._specs import Spec
from ..routing._router import Router
from ..routing._routes import Route
from ..routing._subscriptions import NoSubscription, Subscriptions
from ._buses import Buses
from ._starting import StartProgress, check_names, connect, connection_of, start_of, subscription_of
from ._stopping import StopReason, close, stop_actors

__all__ = ["Run", "RunState"]

log = get_logger("spa_dat")


class RunState(enum.IntEnum):
    """Where a run is on its way, which has one direction; see "States" in docs/design.md."""

    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    STOPPED = 4
    """Nothing of it is left."""


class Run:
    """One run of an application, from start to stop.

    Args:
        settings: of the application.
        specs: its actors.
        resources: what its actors share.

    Attributes:
        state: where it is on its way.
        reason: why it is to stop, once there is a reason.
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
        self._buses = Buses(settings, self._lost_for_good)
        self._actors: list[ActorRunner] = []
        # Those that may have something to do; none is looked at again once it has ended.
        self._not_ended: list[ActorRunner] = []
        self._lane_names: frozenset[str] = frozenset()
        self._subscriptions = Subscriptions(settings.identity, settings.stats)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.state = RunState.STARTING
        self.reason = StopReason()
        self._stop_task: asyncio.Task[None] | None = None
        self._context = copy_context()
        self._leaving: dict[ActorRunner, asyncio.Task[None]] = {}
        self._confirming: asyncio.Task[None] | None = None
        self._problems: dict[str, str] = {}
        self._letters = DeadLetterLimit(settings.dead_letter_limit)
        self._waits = StartProgress(self._name, self._refuse_if_stopping)
        self._given_up = GivenUp(self._name, settings.stats)
        self._watchdog = Watchdog(settings, self._lanes)
        self._resource_manager = ResourceManager(
            self._given_up, self._resource_failed, self._lost_for_good
        )
        self._system = ActorSystem(
            name=f"{settings.identity.application}/{settings.identity.instance}",
            environment=settings.environment,
            on_failure=self._actor_failed,
            on_unhandled=self._left_unhandled,
        )

    def _enter(self, state: RunState) -> None:
        """Go on to a later state. Nothing else changes the state."""
        self.state = max(self.state, state)

    # What the runners of its actors use.

    @property
    def system(self) -> ActorSystem:
        """The registry of the running actors."""
        return self._system

    @property
    def observer(self) -> Observer | None:
        """Who hears of what the actors do."""
        return self.settings.observer

    @property
    def given_up(self) -> GivenUp:
        """What could not be finished before the end."""
        return self._given_up

    def take_letter(self, actor: str) -> bool:
        """Claim a place for one more dead letter of the actor; False when it has no more."""
        taken = self._letters.take(actor)
        if not taken:
            self.unhealthy(actor, self._letters.problem)
        return taken

    def return_letter(self, actor: str) -> None:
        """A dead letter of the actor with a place is not going to be stored."""
        self._letters.give_back(actor)

    def parked(self, actor: str, lane: str) -> None:
        """A dead letter of the actor was stored, so whatever was in the way is gone."""
        self._problems.pop(lane, None)
        self.settings.stats["dead_letters.stored"] += 1
        if self._letters.stored(actor):
            self.unhealthy(actor, self._letters.problem)

    def unhealthy(self, actor: str, reason: str) -> None:
        """An actor cannot go on as it should."""
        if self._problems.get(actor) != reason:
            self._problems[actor] = reason
            log.error("%s: actor %r: %s", self._name, actor, reason)

    def stop_actor(self, actor: ActorRunner) -> None:
        """Stop one actor and leave the others; called from inside it."""
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
        """An actor has nothing more to do; with an error when it is the reason to stop all."""
        if error is not None:
            self.end(error)
            return
        while self._not_ended and self._not_ended[-1].ended:
            self._not_ended.pop()
        if not self._not_ended and self._confirming is None:
            self._confirming = asyncio.ensure_future(self._end_when_confirmed())

    async def _end_when_confirmed(self) -> None:
        # Nobody asked for a stop, so what was published has all the time it needs.
        await wait_for_each(connection.bus.drain() for connection in self._buses)
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """There is reason to stop the application."""
        if self.reason.given:
            return
        if self.state is RunState.STARTING:
            # It may still succeed, and has as long for it as handlers have at a stop.
            self._loop.call_later(self.settings.stop_timeout, self._give_start_up)
        self.reason.give(error)
        if error is not None:
            self._problems[self._name] = f"it has failed: {reason_of(error)}"

    def _give_start_up(self) -> None:
        if self.state is RunState.STARTING:
            self._begin_stop(0.0)

    def _resource_failed(self, error: BaseException) -> None:
        if self.observer is not None:
            self.observer.failed(self._system.name, "resource", error, None)

    def _lost_for_good(self, error: BaseException) -> None:
        # Whoever embeds the application need not be in `wait`, where it is raised.
        log.error("%s: %s", self._name, describe(error))
        self.end(error)

    # For the application.

    @property
    def problems(self) -> dict[str, str]:
        """What is not as it should be, in words, by actor, address of a bus, or application."""
        found = Problems(self._problems)
        if self.state >= RunState.STOPPING:
            found.add(self._name, "it is stopping")
        elif self.state is RunState.STARTING:
            found.add(self._name, f"it {self._waits}")
        for connection in self._buses:
            found.add(connection.provider.address, connection.bus.trouble)
        for actor in self._actors:
            if actor not in self._leaving:
                for trouble in (*self._subscriptions.troubles(actor), actor.trouble):
                    found.add(actor.name, trouble)
        for name, text in self._watchdog.problems:
            found.add(name, text)
        return found.texts()

    @property
    def actors(self) -> tuple[ActorRunner, ...]:
        """The registered actors, in the order of registration."""
        return tuple(self._actors)

    def routes_to(self, actor: ActorRunner) -> list[Route]:
        """The ways to a registered actor from its declared filters."""
        return self._subscriptions.routes_to(actor)

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
        """A socket that belongs to no actor, on this bus or on the default one.

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
        return Socket(connection, f"{identity.application}/{identity.instance}", NoSubscription())

    def sync_socket(self, provider: SocketProvider | None) -> SyncSocket:
        """What `socket` gives, for other threads; works in any thread."""
        return SyncSocket(self.socket(provider), self._loop, self._thread)

    def request_stop(self) -> None:
        """Let `wait` return. Works from any thread."""
        self._loop.call_soon_threadsafe(self.end, None)

    async def wait(self) -> None:
        """Wait until there is reason to stop; raises what made it necessary."""
        await self.reason.wait()

    async def start(self) -> None:
        """Start everything but the producers; when it fails, what was started is stopped again.

        Raises:
            ActorStopped: it was stopped meanwhile.
            SystemExit: so an actor's start wants it.
        """
        identity = self.settings.identity
        if identity.ephemeral:
            log.info(
                "application %r has no name: no messages are kept for it while it is away",
                identity.application,
            )
        self._watchdog.watch_loop()
        try:
            await self._start(self._waits)
        except BaseException as error:
            await asyncio.shield(self.stop())
            over = KeyboardInterrupt | SystemExit
            failure = self.reason.failure
            if isinstance(failure, over) or (failure and isinstance(error, ActorStopped)):
                raise failure from error
            raise
        finally:
            self._waits.end()
        self._enter(RunState.RUNNING)
        self._watchdog.start()
        log.info(
            "application %r instance %r has started: %d actors, %s",
            identity.application,
            identity.instance,
            len(self._actors),
            ", ".join(connection.provider.address for connection in self._buses) or "no bus",
        )

    async def _start(self, waits: StartProgress) -> None:
        self._make_connections()
        await waits.all(
            (partial(connection_of, connection), connect(connection)) for connection in self._buses
        )
        owners = [
            RequiredResources("application", self._resources),
            *(actor.required_resources for actor in self._actors),
        ]
        opening = asyncio.ensure_future(self._resource_manager.open(owners))
        await waits.all([(lambda: self._resource_manager.opening, opening)])
        shared, *own = opening.result()
        # Before the actors start, which may publish to each other at once. What comes meanwhile
        # waits in their mailboxes.
        routers = self._subscriptions.open(self._system)
        await waits.all((partial(subscription_of, router), router.start()) for router in routers)
        for actor, resources in zip(self._actors, own, strict=True):
            actor.spawn(self.settings.restart, shared | resources)
        await waits.all((partial(start_of, lane), lane.started()) for lane in self._lanes())

    def begin(self) -> None:
        """Everything is started: start the producers."""
        for actor in self._actors:
            actor.begin()
        if not self._actors:
            self.end(None)

    def _refuse_if_stopping(self) -> None:
        if self.state >= RunState.STOPPING:
            raise ActorStopped(f"application {self._name!r} was stopped while it started")

    def _make_connections(self) -> None:
        check_names(self._specs)
        for spec in self._specs:
            connection = self._buses.of(spec)
            actor = ActorRunner(self, spec, connection)
            self._actors.append(actor)
            self._subscriptions.add(actor)
            for filter_ in spec.filters:
                connection.filters.add(filter_.pattern, None)
        self._not_ended = list(self._actors)
        self._lane_names = frozenset(lane.name for lane in self._lanes())
        if self.settings.provider is not None:
            self._buses.use(self.settings.provider, "the application's own socket")

    async def stop(self) -> None:
        """Stop everything, in order. Never raises; calling it again waits for the same stop.

        One of its own actors does not wait: the stop waits for what that is doing.
        """
        stopping = self._begin_stop(self.settings.stop_timeout)
        if not self._system.is_at_work():
            await asyncio.shield(stopping)

    def _begin_stop(self, seconds: float) -> asyncio.Task[None]:
        if self._stop_task is None:
            self._enter(RunState.STOPPING)
            # Not as part of whatever asks for it, which may be one of the actors.
            self._stop_task = self._loop.create_task(self._stop(seconds), context=self._context)
        return self._stop_task

    async def stopped(self) -> None:
        """Wait for a stop that is under way, which whoever asked for it may have left."""
        stopping, own = self._stop_task, self._loop is asyncio.get_running_loop()
        if stopping is not None and own and not self._system.is_at_work():
            await asyncio.wait((stopping,))

    @property
    def is_lost(self) -> bool:
        """Whether its event loop was closed, and nobody can stop it any more."""
        return self._loop.is_closed()

    def _lanes(self) -> list[Lane]:
        return [lane for actor in self._actors for lane in actor.lanes]

    def abandon(self) -> None:
        """What is left to do when the whole application was killed, and its tasks with it."""
        for connection in self._buses:
            connection.ended = True
        for actor in self._actors:
            actor.abandon()
        self._watchdog.stop()
        self._buses.release()
        self._enter(RunState.STOPPED)

    async def _stop(self, seconds: float) -> None:
        try:
            if self._confirming is not None:
                self._confirming.cancel()
            deadline = self._loop.time() + seconds
            routers = [
                router for actor in self._actors for router in self._subscriptions.leave(actor)
            ]
            await stop_actors(self._actors, routers, self._system, deadline)
            await wait_for_each(self._leaving.values())
            await close(self.connections, self._resource_manager, self.reason.failure, deadline)
            self._given_up.posts(connection.lost_posts for connection in self._buses)
        finally:
            self._watchdog.stop()
            self._buses.release()
            self.end(None)
            self._enter(RunState.STOPPED)

    def _left_unhandled(self, ref: Any, count: int) -> None:
        if self.state >= RunState.STOPPING and ref.name in self._lane_names:
            self._given_up.unhandled(ref.name, count)

    def _actor_failed(self, ref: Any, error: BaseException, where: str) -> None:
        if where == "cancellation":
            self.settings.stats["actors.cancellations_cleared"] += 1
            return
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.end(error)
        self.settings.stats["actors.failed"] += 1
        if self.observer is not None:
            self.observer.failed(f"{self._system.name}/{ref.name}", where, error, None)
        if where in ("restart", "task"):
            self._problems[ref.name] = describe(error)
