"""The buses of one run of an application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ...errors import ConfigurationError
from ...transports import SocketProvider, Surroundings
from ..hosting._settings import Settings
from ..messaging._connection import BusConnection
from ..registration._specs import Spec

__all__ = ["Buses"]

_running: set[tuple[str, str, str, object]] = set()
"""(application, instance, bus, what stands in for it) of everything that runs in this process."""


class Buses:
    """Opens each bus that the actors of one run use, once.

    Args:
        settings: of the application.
        lost_for_good: called when a bus cannot go on at all.
    """

    def __init__(self, settings: Settings, lost_for_good: Callable[[BaseException], None]) -> None:
        self._settings = settings
        self._lost_for_good = lost_for_good
        self._buses: dict[str, BusConnection] = {}
        self._claimed: list[tuple[str, str, str, object]] = []

    def __iter__(self) -> Iterator[BusConnection]:
        """The connections, in the order in which they were first used."""
        return iter(self._buses.values())

    def of(self, spec: Spec[Any]) -> BusConnection:
        """The connection of an actor, made when it is the first on its bus.

        Raises:
            ConfigurationError: it has no bus, a filter that the bus cannot serve, or options
                that differ from another actor's.
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
        """The connection to a bus; raises as `of`.

        Args:
            provider: what opens it.
            user: who uses it, for errors.
        """
        connection = self._buses.get(provider.address)
        if connection is None:
            identity = self._settings.identity
            stand_in = self._settings.stand_in
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
                identity,
                self._settings.environment,
                self._settings.stats,
                partial(self._lost, provider.address),
            )
            used = provider if stand_in is None else stand_in(provider)
            connection = self._buses[provider.address] = BusConnection(
                used, surroundings, self._settings.reply_topics
            )
        elif connection.provider.config != provider.config:
            raise ConfigurationError(
                f"{user} uses {provider.address} with other options than an actor before it;"
                " give both the same provider"
            )
        return connection

    def _lost(self, address: str, error: BaseException) -> None:
        connection = self._buses.get(address)
        if connection is not None:
            connection.failure = error
        self._lost_for_good(error)

    def in_use(self, provider: SocketProvider) -> BusConnection:
        """The connection to a bus that an actor uses.

        Raises:
            ConfigurationError: none does.
        """
        connection = self._buses.get(provider.address)
        if connection is None:
            raise ConfigurationError(
                f"no actor uses {provider.address}; there are: {', '.join(self._buses) or 'none'}"
            )
        return connection

    def release(self) -> None:
        """Nothing of this run uses the buses any more: another run may."""
        for claim in self._claimed:
            _running.discard(claim)
