"""The buses of one run of an application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ...errors import ConfigurationError
from ...transports import SocketProvider, Surroundings
from ..hosting._application_settings import Settings
from ..messaging._bus_connection import BusConnection
from ..messaging._middleware_publishes import MiddlewareConnection
from ..registration._specs import Spec

__all__ = ["Buses"]

_running: set[tuple[str, str, str, object]] = set()
"""(application, instance, bus, what stands in for the bus) of every run in this process."""


class Buses:
    """The buses that the actors of one run use, each opened once.

    Args:
        settings: the application's.
        lost_for_good: called when a bus has failed beyond recovery.
        counted: whether to count what is published, for an admin endpoint.
    """

    def __init__(
        self,
        settings: Settings,
        lost_for_good: Callable[[BaseException], None],
        *,
        counted: bool = False,
    ) -> None:
        self._settings = settings
        self._kinds: tuple[type[BusConnection], type[MiddlewareConnection]]
        self._kinds = (BusConnection, MiddlewareConnection)
        if counted:
            # Not at the top: only who asks for it pays for it.
            from ..messaging._counted_publishes import (
                CountingConnection,
                CountingMiddlewareConnection,
            )

            self._kinds = (CountingConnection, CountingMiddlewareConnection)
        self._lost_for_good = lost_for_good
        self._buses: dict[str, BusConnection] = {}
        self._claimed: list[tuple[str, str, str, object]] = []

    def __iter__(self) -> Iterator[BusConnection]:
        """Iterate over the connections, in the order in which they were first used."""
        # Other threads ask for the health while the event loop changes it.
        return iter(tuple(self._buses.copy().values()))

    def of(self, spec: Spec[Any]) -> BusConnection:
        """Return the connection of an actor, made if the actor is the first on its bus.

        Raises:
            ConfigurationError: the actor has no bus, or has a filter that the bus does not
                support, or configures the bus differently from another actor.
        """
        provider = spec.options.socket_provider
        if provider is None:
            raise ConfigurationError(
                f"actor {spec.name!r} has no bus: give the application a default socket provider,"
                " for example DistributedApplication('memory://'), or the actor a socket_provider"
            )
        for filter_ in spec.filters:
            provider.check_filter(filter_.pattern)
        return self.use(provider, f"actor {spec.name!r}")

    def use(self, provider: SocketProvider, user: str) -> BusConnection:
        """Return the connection to a bus; raises as `of` does.

        Args:
            provider: what opens it.
            user: what uses it, for errors.
        """
        connection = self._buses.get(provider.address)
        if connection is None:
            identity = self._settings.identity
            stand_in = self._settings.stand_in
            # Equal addresses are one bus, unless something else stands in for it.
            claim = (identity.application, identity.instance, provider.address, stand_in)
            if claim in _running:
                raise ConfigurationError(
                    f"application {claim[0]!r} instance {claim[1]!r} is already running on"
                    f" {claim[2]} in this process; give the copy another instance="
                )
            _running.add(claim)
            self._claimed.append(claim)
            surroundings = Surroundings(
                identity,
                self._settings.environment,
                self._settings.stats,
                partial(self._lost, provider.address),
                self._settings.folder,
                self._settings.reached,
            )
            used = provider if stand_in is None else stand_in(provider)
            reply_topics, middleware = self._settings.reply_topics, self._settings.on_publishes
            measurements = self._settings.measurements if self._settings.exporters else None
            outbox = self._settings.outbox
            connection = self._buses[provider.address] = (
                self._kinds[1](used, surroundings, reply_topics, middleware, measurements, outbox)
                if middleware
                else self._kinds[0](used, surroundings, reply_topics, measurements, outbox)
            )
        elif connection.provider.config != provider.config:
            raise ConfigurationError(
                f"{user} uses {provider.address} with different options than an actor before it;"
                " give both the same provider"
            )
        return connection

    def _lost(self, address: str, error: BaseException) -> None:
        connection = self._buses.get(address)
        if connection is not None:
            connection.failure = error
        self._lost_for_good(error)

    def in_use(self, provider: SocketProvider) -> BusConnection:
        """Return the connection to a bus that an actor uses.

        Raises:
            ConfigurationError: no actor uses this bus.
        """
        connection = self._buses.get(provider.address)
        if connection is None:
            raise ConfigurationError(
                f"no actor uses {provider.address}; there are: {', '.join(self._buses) or 'none'}"
            )
        return connection

    def release(self) -> None:
        """Let another run use the buses."""
        for claim in self._claimed:
            _running.discard(claim)
