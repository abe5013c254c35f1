"""The health report of a run: asked for from any thread, and paid for only then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ..._busy_threads import has_own_clock
from ...transports import Delivery, DeliveryState, Tracker
from ..diagnostics._health import ActorHealth, ConnectionHealth, StalledCall
from ..diagnostics._unsettled_ages import UnsettledAges
from ..handling._dead_letter_store import DeadLetterLimit
from ..hosting._actor_runner import ActorRunner
from ..hosting._lane import Lane
from ..hosting._watchdog import Watchdog
from ..messaging._bus_connection import BusConnection
from ..routing._router import Router
from ..routing._subscriptions import Subscriptions

__all__ = ["HealthReport"]

_PAUSE = 2.0


class HealthReport:
    """What a run can tell about its actors and connections.

    Messages cost nothing for it: what they do not carry, such as when they arrived, comes from a
    look every 2 seconds. In virtual time, which a timer would keep going, only reports look.

    Args:
        subscriptions: those of the actors.
        letters: the dead letters of the run.
        watchdog: knows what has been running for too long.
    """

    def __init__(
        self, subscriptions: Subscriptions, letters: DeadLetterLimit, watchdog: Watchdog
    ) -> None:
        self._subscriptions = subscriptions
        self._letters = letters
        self._watchdog = watchdog
        self._loop = asyncio.get_running_loop()
        self._ages = UnsettledAges()
        self._timer: asyncio.TimerHandle | None = None
        self._actors: tuple[ActorRunner, ...] = ()

    def start(self, actors: Iterable[ActorRunner]) -> None:
        """Begin to look at the messages of these actors; called on the loop."""
        self._actors = tuple(actors)
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
        trackers = (tracker for actor in self._actors for tracker in self._trackers(actor))
        self._ages.look(trackers, self._loop.time())

    def _routers(self, actor: ActorRunner) -> list[Router]:
        routers = self._subscriptions.routers_of(actor)
        if actor.runtime.router is not None:
            routers.append(actor.runtime.router)
        return routers

    def _trackers(self, actor: ActorRunner) -> list[Tracker]:
        return [tracker for router in self._routers(actor) for tracker in router.trackers]

    def actor(
        self, actor: ActorRunner, *, receiving: bool | None, paused: bool, stopped: bool
    ) -> ActorHealth:
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
            receiving=receiving,
            paused=paused,
            stopped=stopped,
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

    def connection(self, connection: BusConnection) -> ConnectionHealth:
        """Return what can be told about the connection to one bus."""
        bus = connection.bus
        at = bus.connected_at if bus.connected else None
        return ConnectionHealth(
            bus=connection.provider.address,
            connected=bus.connected,
            connected_for=None if at is None else self._loop.time() - at,
            outbox=bus.pending,
        )


def _is_at_work(lane: Lane) -> bool:
    return lane.running_code.call is not None
