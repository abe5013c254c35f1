"""The health of a run: made when it is asked for, from any thread, and paid for only then."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..._busy_threads import has_own_clock
from ...transports import Delivery, DeliveryState, Tracker
from ..diagnostics._health import (
    ActorHealth,
    ConnectionHealth,
    Health,
    HealthState,
    StalledCall,
    reasons_not_ready,
)
from ..diagnostics._problems import Problems
from ..diagnostics._unsettled_ages import UnsettledAges
from ..handling._dead_letter_store import DeadLetterLimit
from ..hosting._actor_runner import ActorRunner
from ..hosting._lane import Lane
from ..hosting._watchdog import Watchdog
from ..messaging._bus_connection import BusConnection
from ..routing._router import Router
from ..routing._subscriptions import Subscriptions
from ._start_progress import StartProgress

if TYPE_CHECKING:
    from ._lifecycle import Run

__all__ = ["HealthReport"]

_PAUSE = 2.0


class HealthReport:
    """What a run can tell about its actors and connections.

    Messages cost nothing for it: what they do not carry, such as when they arrived, comes from a
    look every 2 seconds. In virtual time, which a timer would keep going, only reports look.

    Args:
        run: the run.
        subscriptions: those of the actors.
        letters: the dead letters of the run.
        watchdog: knows what has been running for too long.
        progress: what its start waits for.

    Attributes:
        noted: problems that were noted when they came up, by name, until they are over.
    """

    def __init__(
        self,
        run: Run,
        subscriptions: Subscriptions,
        letters: DeadLetterLimit,
        watchdog: Watchdog,
        progress: StartProgress,
    ) -> None:
        self.noted: dict[str, str] = {}
        self._run = run
        self._progress = progress
        self._subscriptions = subscriptions
        self._letters = letters
        self._watchdog = watchdog
        self._loop = asyncio.get_running_loop()
        self._ages = UnsettledAges()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look at the messages of the actors; called on the loop."""
        if has_own_clock(self._loop):
            return
        self._look()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_PAUSE, self._look)
        self.look()

    def look(self) -> None:
        """Note how old messages are."""
        trackers = (tracker for actor in self._run.actors for tracker in self._trackers(actor))
        self._ages.look(trackers, self._loop.time())

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong, in words, by actor, address of a bus, or application."""
        found = Problems(self.noted)
        name = self._run.settings.identity.application
        if self._run.is_starting:
            found.add(name, f"it {self._progress}")
        elif not self._run.is_running:
            found.add(name, "it is stopping")
        for connection in self._run.connections:
            found.add(connection.provider.address, connection.bus.trouble)
        for actor in self._run.actors:
            if not self._run.is_leaving(actor):
                for trouble in (*self._subscriptions.troubles(actor), actor.trouble):
                    found.add(actor.name, trouble)
            if self._is_paused(actor):
                found.add(actor.name, "it is paused")
        for name, text in self._watchdog.problems:
            found.add(name, text)
        return found.texts()

    @property
    def health(self) -> Health:
        """All that can be told about it now. Works from any thread."""
        identity, problems = self._run.settings.identity, self.problems
        self.look()
        return Health(
            application=identity.application,
            instance=identity.instance,
            state=self.state(problems),
            problems=problems,
            actors=tuple(map(self.actor, self._run.actors)),
            connections=self.connections,
            loop_lag=self.loop_lag,
        )

    @property
    def connections(self) -> tuple[ConnectionHealth, ...]:
        """What can be told about its connections."""
        return tuple(map(self._connection, self._run.connections))

    @property
    def loop_lag(self) -> float | None:
        """As in `Health`."""
        return self._watchdog.lag

    def reasons_not_ready(self) -> dict[str, str]:
        """Return why it cannot be given work, as `Health` does; cheaper than all of that."""
        problems = self.problems
        state = self.state(problems)
        if state not in ("ready", "degraded"):
            return reasons_not_ready(state, problems, (), ())
        away = [each.provider.address for each in self._run.connections if not each.bus.connected]
        deaf = [
            actor.name
            for actor in self._run.actors
            if not self._run.has_stopped(actor) and self._receiving(actor) is False
        ]
        return reasons_not_ready(state, problems, away, deaf)

    def state(self, problems: Mapping[str, str]) -> HealthState:
        """Return the state that its health tells.

        Args:
            problems: what is wrong with it.
        """
        if self._run.reason.failure is not None:
            return "failed"
        if self._run.is_starting:
            return "starting"
        if not self._run.is_running:
            return "stopping"
        return "degraded" if problems else "ready"

    def _routers(self, actor: ActorRunner) -> list[Router]:
        routers = self._subscriptions.routers_of(actor)
        if actor.runtime.router is not None:
            routers.append(actor.runtime.router)
        return routers

    def _trackers(self, actor: ActorRunner) -> list[Tracker]:
        return [tracker for router in self._routers(actor) for tracker in router.trackers]

    def actor(self, actor: ActorRunner) -> ActorHealth:
        """Return what can be told about one actor."""
        now = self._loop.time()
        trackers = self._trackers(actor)
        ages = [self._ages.age(tracker, now) for tracker in trackers]
        lags = (router.lag for router in self._routers(actor))
        known = [number for number in lags if number is not None]
        waiting = [item for mailbox in actor.mailboxes for item in mailbox.waiting()]
        in_process = actor.options.placement == "process"
        return ActorHealth(
            name=actor.name,
            bus=actor.connection.provider.address,
            receiving=self._receiving(actor),
            paused=self._is_paused(actor),
            stopped=self._run.has_stopped(actor),
            mailbox=len(waiting),
            mailbox_bytes=sum(
                len(item.envelope.payload) for item in waiting if isinstance(item, Delivery)
            ),
            in_work=sum(
                delivery.state is DeliveryState.RUNNING
                for tracker in trackers
                for delivery in tracker.unreleased()
            ),
            attempts=None if in_process else sum(map(_is_at_work, actor.lanes)),
            oldest_unsettled=max((age for age in ages if age is not None), default=None),
            stalled=tuple(
                StalledCall(where=where, seconds=seconds)
                for lane in actor.lanes
                for where, seconds in self._watchdog.stalled(lane.name)
            ),
            dead_letters=self._letters.stored_by(actor.name),
            dead_letter_limit=self._letters.limit,
            lag=sum(known) if known else None,
            keys=None if actor.keyed is None else actor.keyed.keys,
        )

    def _connection(self, connection: BusConnection) -> ConnectionHealth:
        bus = connection.bus
        at = bus.connected_at if bus.connected else None
        return ConnectionHealth(
            bus=connection.provider.address,
            connected=bus.connected,
            connected_for=None if at is None else self._loop.time() - at,
            outbox=bus.pending,
        )

    def _is_paused(self, actor: ActorRunner) -> bool:
        # Its last message may have ended it, and then nobody can resume it.
        return actor.name in self._run.controls.paused and not self._run.has_stopped(actor)

    def _receiving(self, actor: ActorRunner) -> bool | None:
        if actor.runtime.router is None and not actor.spec.filters:
            return None
        if not self._run.is_running or self._run.has_stopped(actor):
            return False
        return not any((*self._subscriptions.troubles(actor), actor.runtime.trouble))


def _is_at_work(lane: Lane) -> bool:
    return lane.running_code.call is not None
