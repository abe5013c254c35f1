"""The actor runner: one registered actor while the application is running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

from ..._texts import describe
from ...actors import ActorSystem, Mailbox, RestartPolicy
from ...errors import NotHere
from ...transports import Envelope, TopicFilter
from ..diagnostics._unclean_stop import GivenUp
from ..messaging._bus_connection import BusConnection
from ..options._resources import RequiredResources, Resource
from ..registration._specs import Handler, Spec
from ..routing._routed_deliveries import Route
from ..routing._router import Router
from ..routing._subscriptions import RuntimeSubscription
from ._actor_observer import Observer
from ._application_settings import Settings
from ._lane import Lane
from ._producer import CallSource
from ._waiting_for_tasks import wait_for_each

if TYPE_CHECKING:
    from ..metrics._measurements import Measurements
    from ..options._actor_options import ActorOptions
    from ._durable_states import DurableStates
    from ._keyed_host import KeyedHost

__all__ = ["ActorRunner", "ApplicationRun"]


class ApplicationRun(Protocol):
    """What a runner uses of the application's run, which it is part of."""

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

    @property
    def resources(self) -> Mapping[str, Resource]: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def durable_states(self) -> DurableStates | None: ...

    def thread_lost(self, lane: Lane) -> None: ...

    def routes_to(self, actor: ActorRunner) -> Sequence[Route]: ...

    def stop_actor(self, actor: ActorRunner) -> None: ...

    def actor_ended(self, error: BaseException | None) -> None: ...


class ActorRunner:
    """One registered actor while the application is running.

    It has one name, one address, one subscription and one set of resources. Its messages are
    handled in its lanes; most actors have one.

    Attributes:
        name: the actor's.
        address: ``application/instance/actor``.
        place: which of several processes of the actor this is, as the end of the names of its
            lanes; empty for the only one.
        lanes: its lanes, as many as ``concurrency`` says.
        keyed: the host of its keys, if it has a state for each; else None.
        calls: the calls of a producer; None for an actor that reacts to messages.
        required_resources: the resources that must be open before it is spawned.
        measurements: those of the application; None if nothing is measured.
        ended: whether it has nothing more to do: its producer has returned, or it was stopped.
        failure: why it has stopped by itself; None if it has not.

    Args:
        run: the run that it is part of.
        spec: its registration.
        connection: its bus.
    """

    def __init__(self, run: ApplicationRun, spec: Spec[Any], connection: BusConnection) -> None:
        identity = connection.surroundings.identity
        self.run = run
        self.spec = spec
        self.connection = connection
        self.name: str = spec.name
        self.address: str = f"{identity.application}/{identity.instance}/{spec.name}"
        options = spec.options
        self.options: ActorOptions = options
        self.handlers: tuple[Handler, ...] = spec.handlers
        self.measurements: Measurements | None = run.settings.measurements
        provider = connection.provider
        self.qos: int = provider.default_qos if options.qos is None else options.qos
        self.window: int = options.window_for(provider.default_window)
        self.window_bytes: int = options.window_bytes or provider.default_window_bytes
        self.ended: bool = False
        self.failure: BaseException | None = None
        number = run.settings.number
        self.place: str = "" if number is None else f"/{number}"
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] | None = None
        self.runtime: RuntimeSubscription = RuntimeSubscription(
            self, run.system, connection.surroundings.stats
        )
        required = RequiredResources(f"actor {self.name!r}", options.ressources)
        lanes = options.lanes
        self.keyed: KeyedHost | None = None
        self.lanes: tuple[Lane, ...] = ()
        if options.placement == "process":
            # Only who needs them pays for the modules.
            from ._process_lane import process_lanes

            self.lanes = process_lanes(self, run.resources)
            lanes *= options.processes
        if options.per is not None:
            # Only who needs them pays for the modules.
            from ._keyed_host import KeyedHost

            self.keyed = KeyedHost(self)
            self.lanes = self.keyed.lanes
            self.required_resources: RequiredResources = required
        elif self.lanes:
            # They are opened where they are used.
            self.required_resources = required._replace(resources={})
        elif lanes > 1:
            # Each lane has a thread of its own, so no thread can open them for all.
            self.required_resources = required
            make = self._lane_class()
            self.lanes = tuple(make(self, number) for number in range(lanes))
        else:
            self.lanes = (self._lane_class()(self),)
            self.required_resources = self.lanes[0].take_thread_resources(required)
        source = self.lanes[0].work_source
        self.calls: CallSource | None = source if isinstance(source, CallSource) else None

    def _lane_class(self) -> type[Lane]:
        if not self.options.exactly_once:
            return Lane
        # Only who needs it pays for the module.
        from ._exactly_once_lane import ExactlyOnceLane

        return ExactlyOnceLane

    # For subscriptions.

    def check_filter(self, filter_: TopicFilter) -> None:
        """Raise ConfigurationError if the actor cannot take messages from a further filter."""
        if self.keyed or self.options.key is not None or len(self.lanes) > 1:
            self.spec.message_key.check_filter(filter_)

    def route(self, router: Router, handler: int, filter_: TopicFilter) -> Route:
        """Return the route from a filter of the router to a handler, in the message's lane."""
        series = None
        if self.measurements is not None:
            # Not at the top: most applications measure nothing.
            from ..metrics._conventions import system_of

            system = system_of(self.connection.provider.address)
            series = self.measurements.series(self.name, filter_.text, system)
        if self.keyed is not None:
            return Route(router, self.keyed, handler, filter_, per=self.options.per, series=series)
        routes = tuple(
            Route(router, lane, handler, filter_, tally=lane.tallies.of(filter_), series=series)
            for lane in self.lanes
        )
        if len(routes) == 1:
            return routes[0]
        key = self._salted_key if self.place else self.spec.message_key.of
        return Route(router, self.lanes[0], handler, filter_, lanes=routes, key=key)

    def _salted_key(self, envelope: Envelope, filter_: TopicFilter) -> str:
        # All keys of one of several processes have the same checksum in common.
        return f"{self.spec.message_key.of(envelope, filter_)}\0"

    # What the run uses.

    @property
    def mailboxes(self) -> tuple[Mailbox, ...]:
        """Where its deliveries wait: one mailbox for each lane, or one for all keys."""
        if self.keyed is not None:
            return (self.keyed.mailbox,)
        return tuple(lane.mailbox for lane in self.lanes)

    @property
    def trouble(self) -> str | None:
        """What prevents messages from being received or handled; None if nothing does."""
        return self.runtime.trouble or next(
            filter(None, (lane.trouble for lane in self.lanes)), None
        )

    def spawn(self, restart: RestartPolicy, resources: Mapping[str, Any]) -> None:
        """Begin to start all lanes; `Lane.started` waits until a lane is up."""
        refs = [lane.spawn(restart, resources) for lane in self.lanes]
        if self.keyed is not None:
            self.keyed.spawned(restart, resources)
        self.spec.started(tuple(ref for ref in refs if ref is not None), self._peek())

    def _peek(self) -> Callable[[str], Awaitable[Any]] | None:
        if self.keyed is None or not self.options.durable:
            return None
        # Only who needs it pays for the module.
        from ._durable_lane import DurableLane

        lane, loop = self.lanes[0], self._loop
        assert isinstance(lane, DurableLane)

        async def peek(key: str) -> Any:
            if asyncio.get_running_loop() is not loop:
                raise NotHere(
                    f"actor {self.name!r} runs on another event loop, and peek() has to be awaited"
                    " on that one"
                )
            return await lane.peek(key)

        return peek

    def begin(self) -> None:
        """Make a producer's first call, now that all subscriptions are active."""
        if self.calls is not None:
            self.calls.begin()
        for lane in self.lanes:
            lane.begin()

    def stop_attempts(self) -> None:
        """Start no further attempt at a message, and run no scheduled call."""
        self.runtime.stop_intake()
        if self.keyed is not None:
            self.keyed.stop_timers()
        for lane in self.lanes:
            lane.stop_attempts()

    def stop(self, deadline: float) -> Awaitable[None]:
        """Finish what is running, until ``deadline`` (loop time); then cut it off.

        Await it; calling it again is to wait for the same stop.
        """
        if self._stop is None:
            self._stop = asyncio.ensure_future(self._finish(deadline))
        return asyncio.shield(self._stop)

    async def _finish(self, deadline: float) -> None:
        if self.keyed is not None:
            self.keyed.stop()
        try:
            await wait_for_each(lane.finish(deadline) for lane in self.lanes)
        finally:
            if self.keyed is not None:
                self.run.given_up.left_over(self.name, self.keyed.close())
            await self.runtime.close()
            self.spec.started(())
        if self.calls is not None:
            await self.calls.finish()

    def abandon(self) -> None:
        """Release what is held outside the event loop, after the application was killed."""
        for lane in self.lanes:
            lane.abandon()
        self.spec.started(())

    # For its lanes.

    def request_stop(self) -> None:
        """Stop the actor with all its lanes. Works from any thread; see `Context.stop`."""
        if self._loop.is_closed():
            return
        if self.calls is not None:
            self._loop.call_soon_threadsafe(self.calls.make_no_more)
            return
        # In a context of its own: the stop must not count as part of the caller's message.
        context = Context()
        if asyncio._get_running_loop() is self._loop:
            # At once: by the next iteration of the loop another message may have been handled.
            context.run(self.run.stop_actor, self)
        else:
            self._loop.call_soon_threadsafe(self.run.stop_actor, self, context=context)

    def fail(self, error: BaseException) -> None:
        """Stop the actor because of an error that another attempt would meet, too.

        Messages stay with the bus, and the others go on.
        """
        if self.failure is None:
            self.failure = error
            self.run.unhealthy(self.name, f"it has stopped: {describe(error)}")
            self.request_stop()

    def end(self, error: BaseException | None) -> None:
        """Note that the actor has nothing more to do; an error stops the application."""
        self.ended = True
        self.run.actor_ended(error)
