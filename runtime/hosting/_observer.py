"""Somebody who looks on while an application runs: the test harness, a recorder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ...transports import Envelope
    from ..routing._routes import RoutedDelivery
    from ._lane import Lane

__all__ = ["Observer", "Observers", "Receive"]

Receive = Callable[[Any, Any], Awaitable[None]]
"""Works one item of a mailbox off, for an instance of an actor's class."""


class Observer(Protocol):
    """Hears of what the actors of an application do. Its methods return at once, and never raise.

    Where there is none, the runtime takes no extra step for it.
    """

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """What an actor that is being started is to call for each item of its mailbox."""

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        """An actor with ``batch`` is about to handle these, which never were in its mailbox."""

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """Something of the user's failed.

        Args:
            actor: ``application/instance/actor``.
            where: what it was: ``handler``, ``answer`` (a `RemoteError` to a request), ``payload``,
                ``post``, ``timer``, ``producer``, or as for the actor system's ``on_failure``.
            error: what was raised.
            envelope: the message that it was about.
        """

    def troubled(self, actor: str, reason: str) -> None:
        """An actor cannot go on as it should, and keeps trying.

        Args:
            actor: its full name.
            reason: in words.
        """


class Observers:
    """Two observers that an application has at the same time.

    Args:
        first: hears of everything first.
        second: hears of it next.
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
