"""What is looked into and controlled: a run of an application, as seen from here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ...actors import ActorSystem
from ..diagnostics._health import ActorHealth, ConnectionHealth, Health, HealthState
from ..hosting._actor_runner import ActorRunner
from ..hosting._application_settings import Settings
from ..messaging._bus_connection import BusConnection
from ..routing._routed_deliveries import Route

if TYPE_CHECKING:
    from ._actor_controls import ActorControls
    from ._dead_letters import DeadLetters

__all__ = ["AdministeredHealth", "AdministeredRun"]

T = TypeVar("T")


class AdministeredHealth(Protocol):
    """The health of a run, and the parts of which it consists."""

    @property
    def health(self) -> Health:
        """All that can be told about it now."""

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong, in words, by actor, address of a bus, or application."""

    @property
    def loop_lag(self) -> float | None:
        """How long the event loop needed to respond, in seconds."""

    @property
    def connections(self) -> Sequence[ConnectionHealth]:
        """What can be told about its connections."""

    def actor(self, actor: ActorRunner) -> ActorHealth:
        """Return what can be told about one of its actors."""

    def state(self, problems: Mapping[str, str]) -> HealthState:
        """Return the state that its health tells."""

    def reasons_not_ready(self) -> dict[str, str]:
        """Return why it cannot be given work; cheaper than all of its health."""


class AdministeredRun(Protocol):
    """A run of an application."""

    @property
    def settings(self) -> Settings:
        """The application's."""

    @property
    def system(self) -> ActorSystem:
        """The system of its actors."""

    @property
    def is_running(self) -> bool:
        """Whether it has started, and is not stopping."""

    @property
    def actors(self) -> Sequence[ActorRunner]:
        """The registered actors, in the order of registration."""

    @property
    def connections(self) -> Sequence[BusConnection]:
        """The buses in use."""

    @property
    def health_report(self) -> AdministeredHealth:
        """What can be told about its health."""

    @property
    def controls(self) -> ActorControls:
        """What can be done to single actors."""

    @property
    def dead_letters(self) -> DeadLetters:
        """Its dead letters."""

    def working(self, name: str) -> ActorRunner | None:
        """Return the actor with this name if it is running and gets messages."""

    def routes_to(self, actor: ActorRunner) -> Sequence[Route]:
        """Return the routes to a registered actor from its declared filters."""

    def letter_gone(self, actor: str) -> bool:
        """Note that a dead letter of the actor was taken away; return if another has room now."""

    def letter_kept(self, actor: str) -> None:
        """Note that a dead letter for which `letter_gone` was true is still there."""

    def own_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Return a task that belongs to the run, whoever has asked for it."""
