"""Subscriptions: which actors get their messages through which of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..._busy_threads import has_own_clock
from ...actors import ActorSystem
from ...errors import ConfigurationError
from ...transports import RESERVED, Identity, Subscription, TopicFilter, TopicTrie, is_reserved
from ..messaging._bus_connection import BusConnection
from ..options._actor_options import ActorOptions
from ..registration._specs import Handler
from ._routed_deliveries import Route
from ._router import Router

if TYPE_CHECKING:
    from ..metrics._measurements import Measurements

__all__ = [
    "NoSubscription",
    "RuntimeSubscription",
    "Subscriber",
    "Subscriptions",
    "router_of",
    "spawn_router",
]


class Subscriber(Protocol):
    """What subscriptions use of an actor that receives messages from a bus."""

    name: str
    options: ActorOptions
    handlers: tuple[Handler, ...]
    connection: BusConnection
    qos: int
    window: int
    window_bytes: int
    measurements: Measurements | None

    def check_filter(self, filter_: TopicFilter) -> None:
        """Raise ConfigurationError if the actor cannot take messages from a further filter."""

    def route(self, router: Router, handler: int, filter_: TopicFilter) -> Route:
        """Return the route from a filter of the router to one of the actor's handlers."""


class _Entry:
    """One subscription with its router, and the actors that it serves."""

    def __init__(self, router: Router, first: Subscriber) -> None:
        self.router = router
        self.members = [first]
        self.routes: dict[Subscriber, list[Route]] = {}


class Subscriptions:
    """The declared subscriptions of one application.

    Args:
        identity: the application's.
        stats: its counters.
    """

    def __init__(self, identity: Identity, stats: Counter[str]) -> None:
        self._identity = identity
        self._stats = stats
        self._entries: dict[tuple[int, str], _Entry] = {}
        # By actor: with thousands of actors, none may cost a search through all subscriptions.
        self._keys: dict[Subscriber, tuple[int, str]] = {}

    def add(self, actor: Subscriber) -> None:
        """Add an actor, if it has filters.

        Raises:
            ConfigurationError: actors that share a subscription configure it differently, or the
                instance does not say how messages are distributed among instances.
        """
        _check_rewind_to(actor)
        if not any(handler.filters for handler in actor.handlers):
            return
        options = actor.options
        name = options.subscription or actor.name
        provider = actor.connection.provider
        moves = options.are_kept_by(provider)
        if self._identity.instance != "0" and options.durable and not moves:
            instead = ""
            if provider.has_transactions:
                instead = (
                    "; or leave out Durable(store=...): states in a topic move with partitions"
                )
            raise ConfigurationError(
                f"actor {actor.name!r} is durable, and the application is instance"
                f" {self._identity.instance!r}: only one instance may keep the states of its keys,"
                " as each of several would have states of its own. Leave out instance=, and give"
                f" applications for other messages another name={instead}"
            )
        if self._identity.instance != "0" and options.must_say_deliver(provider):
            raise ConfigurationError(
                f"actor {actor.name!r}: instance {self._identity.instance!r} has to say how"
                " messages are distributed: deliver='share' gives each to one instance,"
                " deliver='all' to every instance"
            )
        if (options.exactly_once or (options.durable and moves)) and self._identity.ephemeral:
            option = "exactly_once" if options.exactly_once else "durable"
            raise ConfigurationError(
                f"actor {actor.name!r}: {option}=True needs a named application, so that it"
                " resumes after a restart where it has stopped: give name="
            )
        key = (id(actor.connection), name)
        known = self._entries.get(key)
        if known is None:
            router = router_of(actor, name, self._stats)
            known = self._entries[key] = _Entry(router, actor)
        else:
            first = known.members[0]
            if options.subscription is None or first.options.subscription is None:
                raise ConfigurationError(
                    f"the subscription of actors {first.name!r} and {actor.name!r} would both be"
                    f" named {name!r}; rename one"
                )
            for option in ("qos", "deliver", "retained", "wire", "rewind_to"):
                if getattr(options, option) != getattr(first.options, option):
                    raise ConfigurationError(
                        f"actors {first.name!r} and {actor.name!r} share subscription {name!r} but"
                        f" differ in {option}"
                    )
            known.members.append(actor)
        self._keys[actor] = key
        for index, handler in enumerate(actor.handlers):
            for filter_ in handler.filters:
                route = actor.route(known.router, index, filter_)
                known.routes.setdefault(actor, []).append(route)
                known.router.add(route)

    def open(self, system: ActorSystem) -> list[Router]:
        """Start the routers; return them, with consumers that are still to be started."""
        return [self._open(system, name, shared) for (_, name), shared in self._entries.items()]

    def troubles(self, actor: Subscriber) -> list[str]:
        """Return what prevents messages of the actor's declared subscription, in words."""
        entry = self._entry_of(actor)
        trouble = None if entry is None else entry.router.trouble
        return [] if trouble is None else [trouble]

    def routers_of(self, actor: Subscriber) -> list[Router]:
        """Return the router of the actor's declared subscription, if it has one."""
        entry = self._entry_of(actor)
        return [] if entry is None else [entry.router]

    def _entry_of(self, actor: Subscriber) -> _Entry | None:
        key = self._keys.get(actor)
        return None if key is None else self._entries.get(key)

    def _open(self, system: ActorSystem, name: str, shared: _Entry) -> Router:
        first = shared.members[0]
        deliver = first.options.deliver or first.connection.provider.default_deliver
        filters = (
            filter_.pattern
            for member in shared.members
            for handler in member.handlers
            for filter_ in handler.filters
        )
        options = first.options
        keeps_states = options.are_kept_by(first.connection.provider)
        subscription = Subscription(
            name=name,
            filters=tuple(dict.fromkeys(filters)),
            qos=first.qos,
            window=max(member.window for member in shared.members),
            window_bytes=max(member.window_bytes for member in shared.members),
            share=deliver == "share",
            durable=not self._identity.ephemeral,
            retained=first.options.retained,
            wire=first.options.wire,
            rewind_to=first.options.moment_to_rewind_to,
            transactional=options.exactly_once or keeps_states,
            keeps_states=keeps_states,
            on_restored=lambda: shared.router.on_restored(),
        )
        shared.router.shared = subscription.share
        shared.router.durable = subscription.durable
        spawn_router(system, shared.router)
        shared.router.consumer = first.connection.bus.consumer(subscription, shared.router)
        return shared.router

    def routes_to(self, actor: Subscriber) -> list[Route]:
        """Return the routes to an actor from its declared filters, in order of declaration."""
        entry = self._entry_of(actor)
        return [] if entry is None else entry.routes.get(actor, [])

    def leave(self, actor: Subscriber) -> list[Router]:
        """Remove an actor that stops; return the routers that nobody else uses."""
        entry = self._entry_of(actor)
        if entry is None:
            return []
        key = self._keys.pop(actor)
        entry.members.remove(actor)
        if entry.members:
            entry.router.leave(entry.routes[actor])
            return []
        del self._entries[key]
        return [entry.router]


def router_of(
    actor: Subscriber,
    name: str,
    stats: Counter[str],
    elsewhere: Callable[[str], bool] | None = None,
) -> Router:
    """Return a router for messages of an actor, which measures if the application does.

    Args:
        actor: the actor.
        name: as in `Router`.
        stats: likewise.
        elsewhere: likewise.
    """
    if actor.measurements is None:
        return Router(name, stats, elsewhere=elsewhere)
    # Not at the top: most applications measure nothing.
    from ..metrics._clock import clock_of
    from ..metrics._sampling import Sampling

    loop = asyncio.get_running_loop()
    # In virtual time nothing costs any, and what happens must not depend on chance.
    sampling = Sampling(actor.measurements, clock_of(loop), everything=has_own_clock(loop))
    return Router(name, stats, elsewhere=elsewhere, sampling=sampling)


def _check_rewind_to(actor: Subscriber) -> None:
    moment = actor.options.moment_to_rewind_to
    if moment is None:
        return
    wrong = f"actor {actor.name!r}: rewind_to={str(actor.options.rewind_to)!r}"
    if not any(handler.filters for handler in actor.handlers):
        raise ConfigurationError(f"{wrong} has no effect: the actor reads no topics; leave it out")
    if not actor.connection.provider.keeps_history:
        raise ConfigurationError(
            f"{wrong}: {actor.connection.provider.address} keeps no messages that could be read"
            " again; leave it out, or use Kafka"
        )
    if moment.timestamp() > actor.connection.surroundings.environment.now():
        raise ConfigurationError(
            f"{wrong} is in the future; give the time from which on messages are to be read again"
        )


class RuntimeSubscription:
    """The filters that one actor adds and removes while it is running: nothing durable.

    Args:
        actor: the actor.
        system: where the router runs.
        stats: the application's counters.
    """

    def __init__(self, actor: Subscriber, system: ActorSystem, stats: Counter[str]) -> None:
        self._actor = actor
        self._system = system
        self._stats = stats
        self._routes: dict[str, Route] = {}
        self.router: Router | None = None

    def stop_intake(self) -> None:
        """Take no further messages."""
        if self.router is not None:
            self.router.stop_intake()

    async def close(self) -> None:
        """Acknowledge what can be, disconnect, and end."""
        if self.router is not None:
            await self.router.close(self._system)

    @property
    def trouble(self) -> str | None:
        """What prevents messages from being received; None if nothing does."""
        return None if self.router is None else self.router.trouble

    async def add(self, pattern: str) -> None:
        """See `Socket.subscribe`."""
        filter_ = _parsed(pattern)
        if is_reserved(filter_.pattern):
            raise ConfigurationError(
                f"filter {pattern!r}: everything under {RESERVED}/ belongs to the runtime"
            )
        if filter_.pattern in self._routes:
            return
        self._actor.connection.provider.check_filter(filter_.pattern)
        self._actor.check_filter(filter_)
        router = self.router or await self._open()
        route = self._actor.route(router, self._handler_for(filter_), filter_)
        router.add(route)
        self._routes[filter_.pattern] = route
        assert router.consumer is not None
        try:
            await router.consumer.add_filter(filter_.pattern)
        except BaseException:
            self._forget(filter_.pattern)
            raise

    async def remove(self, pattern: str) -> None:
        """See `Socket.unsubscribe`."""
        plain = _parsed(pattern).pattern
        if plain not in self._routes:
            there_are = ", ".join(map(repr, self._routes)) or "none"
            raise ConfigurationError(
                f"actor {self._actor.name!r} has no runtime subscription {pattern!r};"
                f" there are: {there_are}"
            )
        assert self.router is not None
        assert self.router.consumer is not None
        await self.router.consumer.remove_filter(plain)
        self._forget(plain)

    def handles(self, topic: str) -> bool:
        """Return whether one of the filters matches."""
        return self.router is not None and self.router.wants(topic)

    def _forget(self, pattern: str) -> None:
        route = self._routes.pop(pattern)
        route.router.discard(route)

    def _handler_for(self, filter_: TopicFilter) -> int:
        """Return the first handler whose captures the filter can provide."""
        given = {name for _, name in filter_.captures}
        for index, handler in enumerate(self._actor.handlers):
            if handler.filters and handler.injection.required_captures <= given:
                return index
        why = "its handlers need captures that the filter does not have"
        if not any(handler.filters for handler in self._actor.handlers):
            why = "it is a producer; register an actor for the topic with @app.application(...)"
        raise ConfigurationError(
            f"actor {self._actor.name!r} has no handler that can take {filter_.text!r}: {why}"
        )

    async def _open(self) -> Router:
        name = f"{self._actor.name}.now"
        elsewhere = self._declared_filters()
        router = router_of(self._actor, name, self._stats, elsewhere)
        spawn_router(self._system, router)
        subscription = Subscription(
            name=name,
            filters=(),
            qos=self._actor.qos,
            window=self._actor.window,
            window_bytes=self._actor.window_bytes,
            durable=False,
            wire=self._actor.options.wire,
        )
        router.durable = subscription.durable
        router.consumer = self._actor.connection.bus.consumer(subscription, router)
        self.router = router
        try:
            await router.consumer.start()
        except BaseException:
            self.router = None
            await router.close(self._system)
            raise
        self._actor.connection.subscribed.append(self)
        return router

    def _declared_filters(self) -> Callable[[str], bool]:
        """Return what tells whether the actor gets a topic's messages anyway, by those filters."""
        actor = self._actor
        # They are looked up, not compared one by one: there may be thousands.
        declared: TopicTrie[None] = TopicTrie()
        if (actor.options.deliver or actor.connection.provider.default_deliver) != "share":
            for handler in actor.handlers:
                for filter_ in handler.filters:
                    declared.add(filter_.pattern, None)
        return lambda topic: bool(declared.match(topic))


def _parsed(pattern: str) -> TopicFilter:
    if not isinstance(pattern, str):
        raise ConfigurationError(f"filter {pattern!r} is {type(pattern).__name__}; give a str")
    return TopicFilter.parse(pattern)


class NoSubscription:
    """The runtime subscriptions of a socket that belongs to no actor: none, all are refused."""

    async def add(self, pattern: str) -> None:
        """Raise ConfigurationError."""
        raise ConfigurationError(
            f"subscribe({pattern!r}): this socket belongs to no actor that could handle the"
            " messages; register an actor for the topic with @app.application(...)"
        )

    async def remove(self, pattern: str) -> None:
        """Raise ConfigurationError."""
        raise ConfigurationError(f"unsubscribe({pattern!r}): this socket belongs to no actor")


def spawn_router(system: ActorSystem, router: Router) -> None:
    """Start a router's actor."""
    system.spawn(
        lambda: router, name=f"router.{router.name}", mailbox=router.inbox, receive=Router.route
    )
