"""The actor runner: one registered actor while the application runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Context
from typing import Any, Protocol

from ...actors import ActorSystem, RestartPolicy
from ...transports import TopicFilter
from ..diagnostics._given_up import GivenUp
from ..messaging._connection import BusConnection
from ..registration._resources import RequiredResources
from ..registration._specs import Spec
from ..routing._router import Router
from ..routing._routes import Route
from ..routing._subscriptions import RuntimeSubscription
from ._lane import Lane
from ._observer import Observer
from ._producer import CallSource
from ._waiting import wait_for_each

__all__ = ["ActorRunner", "ApplicationRun"]


class ApplicationRun(Protocol):
    """What a runner needs of the run of the application that it is part of."""

    @property
    def system(self) -> ActorSystem: ...

    @property
    def observer(self) -> Observer | None: ...

    @property
    def given_up(self) -> GivenUp: ...

    def take_letter(self, actor: str) -> bool: ...

    def return_letter(self, actor: str) -> None: ...

    def parked(self, actor: str, lane: str) -> None: ...

    def unhealthy(self, lane: str, reason: str) -> None: ...

    def stop_actor(self, actor: ActorRunner) -> None: ...

    def actor_ended(self, error: BaseException | None) -> None: ...


class ActorRunner:
    """One registered actor while the application runs.

    It is one name, one address, one subscription and one set of resources. Its messages are
    handled in its lanes, of which most actors have one.

    Attributes:
        name: the actor's.
        address: ``application/instance/actor``.
        lanes: where its messages are handled: as many as ``concurrency`` says.
        calls: what calls a producer; None for an actor that reacts to messages.
        required_resources: those that it needs open before it is spawned.
        ended: it has nothing more to do: a producer that ran through, an actor that stopped.

    Args:
        run: what it is part of.
        spec: its registration.
        connection: its bus.
    """

    def __init__(self, run: ApplicationRun, spec: Spec[Any], connection: BusConnection) -> None:
        identity = connection.surroundings.identity
        self.run = run
        self.spec = spec
        self.connection = connection
        self.name = spec.name
        self.address = f"{identity.application}/{identity.instance}/{spec.name}"
        self.options = options = spec.options
        self.handlers = spec.handlers
        provider = connection.provider
        self.qos = provider.default_qos if options.qos is None else options.qos
        self.window = options.window_for(provider.default_window)
        self.window_bytes = options.window_bytes or provider.default_window_bytes
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] | None = None
        self.runtime = RuntimeSubscription(self, run.system, connection.surroundings.stats)
        required = RequiredResources(f"actor {self.name!r}", options.ressources)
        if options.concurrency > 1:
            # No thread is that of all lanes.
            self.required_resources = required
            self.lanes = tuple(Lane(self, number) for number in range(options.concurrency))
        else:
            self.lanes = (Lane(self),)
            self.required_resources = self.lanes[0].take_thread_resources(required)
        source = self.lanes[0].work_source
        self.calls = source if isinstance(source, CallSource) else None

    # What subscriptions use.

    def check_filter(self, filter_: TopicFilter) -> None:
        """Raise ConfigurationError when it cannot take what comes through a further filter."""
        if self.options.key is not None or len(self.lanes) > 1:
            self.spec.message_key.check_filter(filter_)

    def route(self, router: Router, handler: int, filter_: TopicFilter) -> Route:
        """The way from a filter of the router to one of its handlers, in the message's lane."""
        routes = tuple(Route(router, lane, handler, filter_) for lane in self.lanes)
        if len(routes) == 1:
            return routes[0]
        key = self.spec.message_key.of
        return Route(router, self.lanes[0], handler, filter_, lanes=routes, key=key)

    # What the run uses.

    @property
    def trouble(self) -> str | None:
        """What keeps messages from being received or handled; None when nothing does."""
        return self.runtime.trouble or next(
            filter(None, (lane.trouble for lane in self.lanes)), None
        )

    def spawn(self, restart: RestartPolicy, resources: Mapping[str, Any]) -> None:
        """Start all lanes; `Lane.started` waits until one has succeeded."""
        self.spec.started(tuple(lane.spawn(restart, resources) for lane in self.lanes))

    def begin(self) -> None:
        """All subscriptions are in force: a producer may make its first call."""
        if self.calls is not None:
            self.calls.begin()

    async def stop_producing(self, deadline: float) -> None:
        """Start no messages any more; wait for a producer's call until ``deadline`` (loop time)."""
        if self.calls is not None:
            await self.calls.stop(deadline)

    def stop_attempts(self) -> None:
        """Start no attempt at a message any more, and run nothing that was put off."""
        self.runtime.stop_intake()
        for lane in self.lanes:
            lane.stop_attempts()

    async def stop(self, deadline: float) -> None:
        """Finish what is running, until ``deadline`` (loop time); then cut it off.

        Calling it again waits for the same stop.
        """
        if self._stop is None:
            self._stop = asyncio.ensure_future(self._finish(deadline))
        await asyncio.shield(self._stop)

    async def _finish(self, deadline: float) -> None:
        try:
            await wait_for_each(lane.finish(deadline) for lane in self.lanes)
        finally:
            await self.runtime.close()
            self.spec.started(())
        if self.calls is not None:
            await self.calls.finish()

    def abandon(self) -> None:
        """The application was killed: let go of what is not on the event loop."""
        for lane in self.lanes:
            lane.abandon()
        self.spec.started(())

    # What its lanes use.

    def request_stop(self) -> None:
        """Stop the actor, all its lanes. Works from any thread; see `Context.stop`."""
        if self.calls is not None:
            self._loop.call_soon_threadsafe(self.calls.make_no_more)
            return
        # A context of its own: whoever stops the actor must not count as part of its message.
        context = Context()
        if asyncio._get_running_loop() is self._loop:
            # At once: the next message may be handled before the loop has its turn.
            context.run(self.run.stop_actor, self)
        else:
            self._loop.call_soon_threadsafe(self.run.stop_actor, self, context=context)

    def end(self, error: BaseException | None) -> None:
        """It has nothing more to do; with an error when it is the reason to stop all."""
        self.ended = True
        self.run.actor_ended(error)
