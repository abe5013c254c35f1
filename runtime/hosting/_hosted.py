"""What a run and its actors know of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ...actors import ActorRef, ActorSystem, RestartPolicy
from ..diagnostics._given_up import GivenUp
from ..registration._resources import Wanted
from ..routing._subscriptions import Subscriber
from ._observer import Observer

if TYPE_CHECKING:
    from ._host import Host

__all__ = ["Hosted", "Runner"]


class Runner(Protocol):
    """What a host needs of the run that it is part of."""

    @property
    def system(self) -> ActorSystem: ...

    @property
    def observer(self) -> Observer | None: ...

    @property
    def given_up(self) -> GivenUp: ...

    def take_letter(self, actor: str) -> bool: ...

    def return_letter(self, actor: str) -> None: ...

    def parked(self, actor: str, lane: str) -> None: ...

    def unhealthy(self, actor: str, reason: str) -> None: ...

    def stop_actor(self, host: Hosted) -> None: ...

    def actor_ended(self, error: BaseException | None) -> None: ...


class Hosted(Subscriber, Protocol):
    """One registered actor, as the run that it is part of sees it.

    Attributes:
        ended: it has nothing more to do: a producer that ran through, an actor that stopped.
    """

    ended: bool

    @property
    def lanes(self) -> tuple[Host, ...]:
        """All its lanes, or the only one."""

    @property
    def trouble(self) -> str | None:
        """What keeps messages of filters that were added at run time from being received."""

    @property
    def wanted(self) -> Wanted:
        """The resources that it needs open before it is spawned."""

    def spawn(
        self, restart: RestartPolicy, resources: Mapping[str, Any]
    ) -> tuple[ActorRef[Any], ...]:
        """Start it, or all its lanes; `started` waits until that has succeeded."""

    async def started(self) -> None:
        """Wait until it has started; raises RestartLimitReached when it does not."""

    def begin(self) -> None:
        """All subscriptions are in force."""

    async def stop_producing(self, deadline: float) -> None:
        """Start no messages any more."""

    def stop_attempts(self) -> None:
        """Start no attempt at a message any more."""

    async def stop(self, deadline: float) -> None:
        """Finish what is running, until ``deadline`` (loop time); then cut it off."""

    def abandon(self) -> None:
        """The application was killed: let go of what is not on the event loop."""
