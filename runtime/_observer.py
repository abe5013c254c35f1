"""Somebody who looks on while an application runs: the test harness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..transports import Envelope
    from ._host import Host

__all__ = ["Observer", "Receive"]

Receive = Callable[[Any, Any], Awaitable[None]]
"""Works one item of a mailbox off, for an instance of an actor's class."""


class Observer(Protocol):
    """Hears of what the actors of an application do. Its methods return at once, and never raise.

    Where there is none, the runtime takes no extra step for it.
    """

    def receiving(self, host: Host, receive: Receive) -> Receive:
        """What an actor that is being started is to call for each item of its mailbox."""

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """Something of the user's failed.

        Args:
            actor: ``application/instance/actor``.
            where: what it was: ``handler``, ``payload``, ``post``, ``timer``, ``producer``, or as
                for the actor system's ``on_failure``.
            error: what was raised.
            envelope: the message that it was about.
        """
