"""The ways from a subscription's filters to actors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..actors import Mailbox
from ..transports import Envelope, TopicFilter
from ._keys import lane_of
from ._specs import ActorOptions

if TYPE_CHECKING:
    from ._router import Router

__all__ = ["Route", "Target"]


class Target(Protocol):
    """An actor, as its routers see it."""

    mailbox: Mailbox
    options: ActorOptions

    def interrupt(self, router: Router) -> None:
        """End a wait between two attempts at a message of the router, to which it is given back."""

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """Answer and drop a request that would deadlock; True when that happened."""


@dataclass(frozen=True, eq=False)
class Route:
    """From one filter of a subscription to one handler of one actor.

    Attributes:
        router: whose route it is.
        target: the actor.
        handler: index of the handler in the actor.
        filter: the filter, with its captures.
        lanes: for an actor with several lanes the ways to each of them, of which ``target`` is
            the first.
        key: what decides on the lane of a message.
    """

    router: Router
    target: Target
    handler: int
    filter: TopicFilter
    lanes: tuple[Route, ...] = ()
    key: Callable[[Envelope, TopicFilter], str] | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """All lanes, or the only target."""
        return tuple(lane.target for lane in self.lanes) or (self.target,)

    def lane(self, envelope: Envelope) -> Route:
        """The way of one message: the same for all messages of its key."""
        if self.key is None:
            return self
        return self.lanes[lane_of(self.key(envelope, self.filter), len(self.lanes))]
