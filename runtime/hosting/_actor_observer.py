"""Observing an application while it is running, as the test harness and the recorder do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ...transports import Envelope
    from ..routing._routed_deliveries import RoutedDelivery
    from ._lane import Lane

__all__ = ["Observer", "Observers", "Receive"]

Receive = Callable[[Any, Any], Awaitable[None]]
"""Handles one item of a mailbox, with an instance of an actor's class."""


class Observer(Protocol):
    """Is told what the actors of an application do. Its methods return at once and never raise.

    Without one, the runtime takes no extra steps.
    """

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """Return what an actor that is being started shall call for each item of its mailbox."""

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        """Note which batch a lane is about to handle; its deliveries were in no mailbox."""

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """Note that some of the user's code failed.

        Args:
            actor: ``application/instance/actor``.
            where: which: ``handler``, ``answer`` (a `RemoteError` for a request), ``payload``,
                ``post``, ``timer``, ``producer``, or as for the actor system's ``on_failure``.
            error: what was raised.
            envelope: the message that was being handled.
        """

    def troubled(self, actor: str, reason: str) -> None:
        """Note that an actor cannot do its work for now, and keeps trying.

        Args:
            actor: ``application/instance/actor``.
            reason: in words.
        """


class Observers:
    """Two observers of the same application.

    Args:
        first: is told everything first.
        second: is told next.
    """

    def __init__(self, first: Observer, second: Observer) -> None:
        self._first = first
        self._second = second

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """See `Observer.receiving`."""
        return self._first.receiving(lane, self._second.receiving(lane, receive))

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        """See `Observer.collected`."""
        self._first.collected(lane, batch)
        self._second.collected(lane, batch)

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """See `Observer.failed`."""
        self._first.failed(actor, where, error, envelope)
        self._second.failed(actor, where, error, envelope)

    def troubled(self, actor: str, reason: str) -> None:
        """See `Observer.troubled`."""
        self._first.troubled(actor, reason)
        self._second.troubled(actor, reason)
