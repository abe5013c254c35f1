"""An actor that handles messages of different keys at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ...actors import ActorRef, ActorSystem, RestartPolicy
from ...transports import TopicFilter
from ..diagnostics._given_up import GivenUp
from ..messaging._connection import Link
from ..registration._resources import Wanted
from ..registration._specs import Spec
from ..routing._router import Router
from ..routing._routes import Route
from ..routing._subscriptions import RuntimeSubscription
from ._batch_host import BatchHost
from ._host import Host
from ._hosted import Hosted, Runner
from ._observer import Observer
from ._producer import ProducerHost
from ._waiting import wait_for_all, wait_for_each

__all__ = ["Lanes", "make_host"]


class Lanes:
    """One registered actor with several lanes, while the application runs.

    To the run it is one actor, with one subscription, name and set of resources. Each lane is an
    actor of its own: instance, state, mailbox, thread. A key's messages all go to one lane.

    Attributes:
        ended: its lanes have stopped.

    Args:
        runner: the run that it is part of.
        spec: its registration.
        link: its bus.
    """

    def __init__(self, runner: Runner, spec: Spec[Any], link: Link) -> None:
        self._runner = runner
        self._spec = spec
        self.name = spec.name
        self.link = link
        self.options = spec.options
        self.handlers = spec.handlers
        self.ended = False
        self._stop: asyncio.Future[None] | None = None
        self._runtime = RuntimeSubscription(self, runner.system, link.surroundings.stats)
        kind = Host if spec.options.batch is None else BatchHost
        self._lanes = [
            kind(self, spec, link, lane=lane, runtime=self._runtime)
            for lane in range(spec.options.concurrency)
        ]
        self.qos = self._lanes[0].qos
        self.window = self._lanes[0].window
        self.window_bytes = self._lanes[0].window_bytes

    # What the subscriptions use.

    def check_filter(self, filter_: TopicFilter) -> None:
        """See `Host.check_filter`."""
        self._spec.message_key.check_filter(filter_)

    def route(self, router: Router, handler: int, filter_: TopicFilter) -> Route:
        """The way from a filter of the router to one of the handlers, in the message's lane."""
        return Route(
            router,
            self._lanes[0],
            handler,
            filter_,
            lanes=tuple(lane.route(router, handler, filter_) for lane in self._lanes),
            key=self._spec.message_key.of,
        )

    # What the lanes use.

    @property
    def system(self) -> ActorSystem:
        """The registry of the running actors."""
        return self._runner.system

    @property
    def observer(self) -> Observer | None:
        """Who hears of what the lanes do."""
        return self._runner.observer

    @property
    def given_up(self) -> GivenUp:
        """What the run could not finish before its end."""
        return self._runner.given_up

    @property
    def trouble(self) -> str | None:
        """See `Hosted.trouble`."""
        return next((text for lane in self._lanes if (text := lane.trouble) is not None), None)

    @property
    def lanes(self) -> tuple[Host, ...]:
        """All of them."""
        return tuple(self._lanes)

    def abandon(self) -> None:
        """See `Hosted.abandon`."""
        for lane in self._lanes:
            lane.abandon()

    def take_letter(self, actor: str) -> bool:
        """A lane claims a place for one more dead letter."""
        return self._runner.take_letter(actor)

    def return_letter(self, actor: str) -> None:
        """A lane does not need its place for a dead letter."""
        self._runner.return_letter(actor)

    def parked(self, actor: str, lane: str) -> None:
        """A lane has stored a dead letter."""
        self._runner.parked(actor, lane)

    def unhealthy(self, actor: str, reason: str) -> None:
        """A lane cannot go on as it should."""
        self._runner.unhealthy(actor, reason)

    def stop_actor(self, host: Hosted) -> None:
        """One lane wants the actor to stop: all of them."""
        self._runner.stop_actor(self)

    def actor_ended(self, error: BaseException | None) -> None:
        """A lane has nothing more to do."""
        self._runner.actor_ended(error)

    # What the run uses.

    @property
    def wanted(self) -> Wanted:
        """What the lanes share: no thread is that of all of them."""
        return Wanted(f"actor {self.name!r}", self.options.ressources)

    def spawn(
        self, restart: RestartPolicy, resources: Mapping[str, Any]
    ) -> tuple[ActorRef[Any], ...]:
        """Start all lanes; `started` waits until that has succeeded."""
        return tuple(ref for lane in self._lanes for ref in lane.spawn(restart, resources))

    async def started(self) -> None:
        """Wait until all lanes have started; raises RestartLimitReached when one does not."""
        await wait_for_all(lane.started() for lane in self._lanes)

    def begin(self) -> None:
        """All subscriptions are in force."""

    async def stop_producing(self, deadline: float) -> None:
        """Only producers do."""

    def stop_attempts(self) -> None:
        """Start no attempt at a message any more; see `Host.stop_attempts`."""
        self._runtime.stop_intake()
        for lane in self._lanes:
            lane.stop_attempts()

    async def stop(self, deadline: float) -> None:
        """Finish what is running in all lanes; see `Host.stop`."""
        if self._stop is None:
            self._stop = asyncio.ensure_future(self._finish(deadline))
        await asyncio.shield(self._stop)

    async def _finish(self, deadline: float) -> None:
        await wait_for_each(lane.stop(deadline) for lane in self._lanes)
        await self._runtime.close()
        self._spec.started(())


def make_host(runner: Runner, spec: Spec[Any], link: Link) -> Hosted:
    """What runs a registered actor, not started."""
    if spec.kind == "producer":
        return ProducerHost(runner, spec, link)
    if spec.options.concurrency > 1:
        return Lanes(runner, spec, link)
    return Host(runner, spec, link) if spec.options.batch is None else BatchHost(runner, spec, link)
