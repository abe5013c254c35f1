"""Routes from a subscription to actors, and deliveries that several actors share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ...actors import Mailbox
from ...transports import Delivery, DeliveryState, Envelope, TopicFilter
from ..options._actor_options import ActorOptions
from ..registration._message_keys import lane_of
from ._tallies import Tally

if TYPE_CHECKING:
    from ...transports._tenures import Tenure
    from ..metrics._measurements import Series
    from ._router import Router

__all__ = ["DeliveryPart", "Route", "RoutedDelivery", "SharedDelivery", "Target", "tenure_of"]


class Target(Protocol):
    """What routers use of a lane of an actor."""

    actor_name: str
    options: ActorOptions

    @property
    def mailbox(self) -> Mailbox:
        """Where its deliveries wait."""

    def interrupt(self, router: Router) -> None:
        """End a wait between two attempts at a message of the router, which gets it back."""

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """Refuse a request that would deadlock; return whether it was one."""

    def dropped(self, item: Any) -> None:
        """Count, and settle, an item that its mailbox had no room for."""


@dataclass(frozen=True, eq=False, slots=True)
class Route:
    """A route from one filter of a subscription to one handler of one actor.

    Attributes:
        router: the router that it belongs to.
        target: the actor.
        handler: index of the handler in the actor.
        filter: the filter, with its captures.
        lanes: for an actor with several lanes, the routes to each; ``target`` is the first lane.
        key: returns the key that decides on the lane of a message.
        per: the capture whose values have a state each in the target; None if none has.
        tally: how many of its messages the target has finished with.
        series: what is measured of them; None if nothing is.
    """

    router: Router
    target: Target
    handler: int
    filter: TopicFilter
    lanes: tuple[Route, ...] = ()
    key: Callable[[Envelope, TopicFilter], str] | None = None
    per: str | None = None
    tally: Tally = field(default_factory=Tally)
    series: Series | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """All lanes of the actor, or its only one."""
        return tuple(lane.target for lane in self.lanes) or (self.target,)

    def key_of(self, envelope: Envelope) -> str | None:
        """Return the key whose state a message is for; None if the target has no such keys."""
        return None if self.per is None else self.filter.capture(envelope.topic)[self.per]

    def lane(self, envelope: Envelope) -> Route:
        """Return the route of one message: the same for all messages with its key."""
        if self.key is None:
            return self
        return self.lanes[lane_of(self.key(envelope, self.filter), len(self.lanes))]


RoutedDelivery: TypeAlias = Delivery[Route]
"""A delivery whose route is known: on its way to an actor, or there."""


class SharedDelivery:
    """A delivery that several actors share: settled when each of them is done."""

    __slots__ = ("delivery", "left", "parts")

    def __init__(self, delivery: Delivery, left: int) -> None:
        self.delivery = delivery
        self.left = left
        self.parts: list[DeliveryPart] = []

    def part(self) -> DeliveryPart:
        """Return the part for one more actor."""
        delivery = self.delivery
        size = delivery.size
        part = DeliveryPart(
            delivery.envelope, delivery.epoch, delivery.token, size=size, whole=self
        )
        part.attempts = delivery.attempts
        part.deadline = delivery.deadline
        part.arrived = delivery.arrived
        self.parts.append(part)
        return part

    @property
    def begun(self) -> bool:
        """Whether one of the actors has started on it."""
        return any(part.state is not DeliveryState.QUEUED for part in self.parts)

    def withdraw(self) -> None:
        """Take it back; none of the actors may have started it."""
        for part in self.parts:
            part.withdraw()
        self.delivery.requeue()
        self.delivery.withdraw()


class DeliveryPart(Delivery):
    """One actor's part of a shared delivery."""

    whole: SharedDelivery | None = None

    def settle(self) -> None:
        before = self.state
        super().settle()
        whole = self.whole
        if self.state is not before and whole is not None:
            whole.left -= 1
            if whole.left == 0:
                whole.delivery.settle()


def tenure_of(delivery: Delivery) -> Tenure | None:
    """Return for how long nobody else handles what the delivery has come from."""
    if isinstance(delivery, DeliveryPart) and delivery.whole is not None:
        delivery = delivery.whole.delivery
    return None if delivery.tracker is None else delivery.tracker.tenure
