"""One run of an application: the order of starting and of stopping."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._environment import Environment
from ..actors import ActorSystem, RestartPolicy
from ..errors import ActorStopped, ConfigurationError
from ..transports import Identity, SocketProvider, Surroundings
from ._hosted import Hosted
from ._lanes import make_host
from ._link import Link
from ._observer import Observer
from ._resources import Resource, ResourceKeeper
from ._router import Router
from ._routes import Route
from ._socket import Socket
from ._specs import Spec
from ._subscriptions import NoSubscription, Subscriptions
from ._sync_socket import SyncSocket
from ._waiting import wait_for_all, wait_for_each, wait_until

__all__ = ["Run", "Settings"]

log = logging.getLogger("spa_dat")

_SHORTEST = 0.1
_LEAST_FOR_RESOURCES = 5.0

_running: set[tuple[str, str, str, object]] = set()
"""(application, instance, bus, what stands in for it) of everything that runs in this process."""


@dataclass(frozen=True)
class Settings:
    """What a run needs to know of its application; see `DistributedApplication`.

    Attributes:
        stand_in: what is used in place of each provider; None for the provider itself.
        observer: hears of what the actors do; None for nobody.
    """

    identity: Identity
    environment: Environment
    stats: Counter[str]
    provider: SocketProvider | None
    stop_timeout: float
    dead_letter_limit: int
    restart: RestartPolicy
    stand_in: Callable[[SocketProvider], SocketProvider] | None = None
    observer: Observer | None = None


class Run:
    """One run of an application, from start to stop.

    Args:
        settings: of the application.
        specs: its actors.
        resources: what its actors share.
    """

    def __init__(
        self,
        settings: Settings,
        specs: tuple[Spec[Any], ...],
        resources: Mapping[str, Resource],
    ) -> None:
        self.settings = settings
        self._specs = specs
        self._resources = resources
        self._claimed: list[tuple[str, str, str, object]] = []
        self._links: dict[str, Link] = {}
        self._hosts: list[Hosted] = []
        self._subscriptions = Subscriptions(settings.identity, settings.stats)
        self._keeper = ResourceKeeper()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ending: asyncio.Future[None] = self._loop.create_future()
        self._stopping: asyncio.Task[None] | None = None
        self._leaving: dict[Hosted, asyncio.Task[None]] = {}
        self._confirming: asyncio.Task[None] | None = None
        self._problems: dict[str, str] = {}
        self._dead_letters = 0
        self._started = False
        self._system = ActorSystem(
            name=f"{settings.identity.application}/{settings.identity.instance}",
            environment=settings.environment,
            on_failure=self._actor_failed,
        )

    # What the actors' hosts use.

    @property
    def system(self) -> ActorSystem:
        """The registry of the running actors."""
        return self._system

    @property
    def observer(self) -> Observer | None:
        """Who hears of what the actors do."""
        return self.settings.observer

    def may_park(self) -> bool:
        """Whether there is room for one more dead letter."""
        return self._dead_letters < self.settings.dead_letter_limit

    def parked(self, actor: str) -> None:
        """A dead letter of the actor was stored, so whatever was in the way is gone."""
        self._problems.pop(actor, None)
        self._dead_letters += 1
        self.settings.stats["dead_letters.stored"] += 1

    def unhealthy(self, actor: str, reason: str) -> None:
        """An actor can not go on as it should."""
        if self._problems.get(actor) != reason:
            self._problems[actor] = reason
            log.error("%s: actor %r: %s", self.settings.identity.application, actor, reason)

    def stop_actor(self, host: Hosted) -> None:
        """Stop one actor and leave the others; called from inside it."""
        if host not in self._leaving and self._stopping is None:
            routers = self._subscriptions.leave(host)
            for router in routers:
                router.stop_intake()
            self._leaving[host] = asyncio.ensure_future(self._leave(host, routers))

    async def _leave(self, host: Hosted, routers: list[Router]) -> None:
        deadline = self._loop.time() + self.settings.stop_timeout
        await self._stop_hosts([host], routers, deadline)
        host.ended = True
        self.actor_ended(None)

    def actor_ended(self, error: BaseException | None) -> None:
        """An actor has nothing more to do; with an error when it is the reason to stop all."""
        if error is not None:
            self.end(error)
        elif all(host.ended for host in self._hosts) and self._confirming is None:
            self._confirming = asyncio.ensure_future(self._end_when_confirmed())

    async def _end_when_confirmed(self) -> None:
        # Nobody asked for a stop, so what was published has all the time it needs.
        await wait_for_each(link.bus.drain() for link in self._links.values())
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """There is reason to stop the application."""
        if self._ending.done():
            return
        if error is None:
            self._ending.set_result(None)
        else:
            self._ending.set_exception(error)
            self._ending.exception()  # whoever waits gets it; nobody has to

    def _lost_for_good(self, error: BaseException) -> None:
        # Whoever embeds the application need not be in `wait`, where it is raised.
        self._problems[""] = str(error)
        log.error("%s: %s", self.settings.identity.application, error)
        self.end(error)

    # For the application.

    @property
    def healthy(self) -> bool:
        """Started, connected, and no actor has given up."""
        return (
            self._started
            and self._stopping is None
            and not self._problems
            and all(link.bus.connected for link in self._links.values())
            and self._subscriptions.complete
        )

    @property
    def hosts(self) -> tuple[Hosted, ...]:
        """The registered actors, in the order of registration."""
        return tuple(self._hosts)

    def routes_to(self, host: Hosted) -> list[Route]:
        """The ways to a registered actor from its declared filters."""
        return self._subscriptions.routes_to(host)

    @property
    def links(self) -> tuple[Link, ...]:
        """The buses in use."""
        return tuple(self._links.values())

    @property
    def changing(self) -> bool:
        """Whether it, or one of its actors, is stopping."""
        return any(not leaving.done() for leaving in self._leaving.values()) or (
            self._stopping is not None and not self._stopping.done()
        )

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
        link = self._links.get(provider.address)
        if link is None:
            raise ConfigurationError(
                f"no actor uses {provider.address}; there are: {', '.join(self._links) or 'none'}"
            )
        identity = self.settings.identity
        return Socket(link, f"{identity.application}/{identity.instance}", NoSubscription())

    def sync_socket(self, provider: SocketProvider | None) -> SyncSocket:
        """What `socket` gives, for other threads; works in any thread."""
        return SyncSocket(self.socket(provider), self._loop, self._thread)

    def request_stop(self) -> None:
        """Let `wait` return. Works from any thread."""
        self._loop.call_soon_threadsafe(self.end, None)

    async def wait(self) -> None:
        """Wait until there is reason to stop; raises what made it necessary."""
        await asyncio.shield(self._ending)

    async def start(self) -> None:
        """Start everything but the producers; when it fails, what was started is stopped again.

        Raises:
            ActorStopped: `stop` was called meanwhile.
        """
        identity = self.settings.identity
        if identity.ephemeral:
            log.info(
                "application %r has no name: no messages are kept for it while it is away",
                identity.application,
            )
        try:
            self._make_links()
            await wait_for_all(link.start() for link in self._links.values())
            self._refuse_if_stopping()
            shared, *own = await self._keeper.open(
                [
                    ("application", self._resources),
                    *((f"actor {spec.name!r}", spec.options.ressources) for spec in self._specs),
                ]
            )
            self._refuse_if_stopping()
            for spec, host, resources in zip(self._specs, self._hosts, own, strict=True):
                spec.started(host.spawn(self.settings.restart, shared | resources))
            await wait_for_all(host.started() for host in self._hosts)
            self._refuse_if_stopping()
            await wait_for_all(
                consumer.start() for consumer in self._subscriptions.open(self._system)
            )
            self._refuse_if_stopping()
            self._started = True
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    def begin(self) -> None:
        """Everything is started: start the producers."""
        for host in self._hosts:
            host.begin()
        if not self._hosts:
            self.end(None)

    def _refuse_if_stopping(self) -> None:
        if self._stopping is not None:
            raise ActorStopped(
                f"application {self.settings.identity.application!r} was stopped while it started"
            )

    def _make_links(self) -> None:
        names: dict[str, None] = {}
        for spec in self._specs:
            if spec.name in names:
                raise ConfigurationError(
                    f"there are two actors {spec.name!r}; give one of them another name, with the"
                    " class attribute name or with configure(spec, name=...), or remove(spec) one"
                )
            names[spec.name] = None
            link = self._link_of(spec)
            host = make_host(self, spec, link)
            self._hosts.append(host)
            self._subscriptions.add(host)
        if self.settings.provider is not None:
            self._link(self.settings.provider, "the application's own socket")

    def _link_of(self, spec: Spec[Any]) -> Link:
        provider = spec.options.socket_provider
        if provider is None:
            raise ConfigurationError(
                f"actor {spec.name!r} has no bus: give the application a default socket provider,"
                " for example DistributedApplication('memory://'), or the actor a socket_provider"
            )
        for filter_ in spec.filters:
            provider.check_filter(filter_.pattern)
        return self._link(provider, f"actor {spec.name!r}")

    def _link(self, provider: SocketProvider, user: str) -> Link:
        link = self._links.get(provider.address)
        if link is None:
            identity = self.settings.identity
            stand_in = self.settings.stand_in
            # Equal addresses are one bus, but for those that something stands in for.
            claim = (identity.application, identity.instance, provider.address, stand_in)
            if claim in _running:
                raise ConfigurationError(
                    f"application {claim[0]!r} instance {claim[1]!r} already runs on {claim[2]} in"
                    " this process; give the copy another instance="
                )
            _running.add(claim)
            self._claimed.append(claim)
            surroundings = Surroundings(
                identity, self.settings.environment, self.settings.stats, self._lost_for_good
            )
            used = provider if stand_in is None else stand_in(provider)
            link = self._links[provider.address] = Link(used, surroundings)
        elif link.provider.config != provider.config:
            raise ConfigurationError(
                f"{user} uses {provider.address} with other options than an actor before it;"
                " give both the same provider"
            )
        return link

    async def stop(self) -> None:
        """Stop everything, in order. Never raises; calling it again waits for the same stop."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    def abandon(self) -> None:
        """What is left to do when the whole application was killed, and its tasks with it."""
        for link in self._links.values():
            link.ended = True
        for host in self._hosts:
            host.abandon()
        self._release_claims()

    def _release_claims(self) -> None:
        for claim in self._claimed:
            _running.discard(claim)

    async def _stop(self) -> None:
        try:
            if self._confirming is not None:
                self._confirming.cancel()
            deadline = self._loop.time() + self.settings.stop_timeout
            routers = [router for host in self._hosts for router in self._subscriptions.leave(host)]
            await self._stop_hosts(self._hosts, routers, deadline)
            await wait_for_each(self._leaving.values())
            now = self._loop.time()
            deadline = max(deadline, now + _SHORTEST)
            await wait_for_each(
                wait_until(deadline, link.bus.drain()) for link in self._links.values()
            )
            await self._keeper.close(max(deadline - now, _LEAST_FOR_RESOURCES))
            await wait_for_each(link.close() for link in self._links.values())
        finally:
            self._release_claims()
            self.end(None)

    async def _stop_hosts(
        self, hosts: list[Hosted], routers: list[Router], deadline: float
    ) -> None:
        # Whatever a producer does with its call: the handlers need time, too.
        half = (self._loop.time() + deadline) / 2
        await wait_for_each(host.stop_producing(half) for host in hosts)
        for router in routers:
            router.stop_intake()
        for host in hosts:
            host.stop_attempts()
        await wait_for_each(host.stop(deadline) for host in hosts)
        await wait_for_each(router.close(self._system) for router in routers)

    def _actor_failed(self, ref: Any, error: BaseException, where: str) -> None:
        self.settings.stats["actors.failed"] += 1
        if self.observer is not None:
            self.observer.failed(f"{self._system.name}/{ref.name}", where, error, None)
        if where in ("restart", "task"):
            self._problems[ref.name] = str(error)
