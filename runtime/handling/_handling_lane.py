"""`HandlingLane`: what handling uses of the lane that it handles messages in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..._limited_log import LimitedLog
from ...transports import Delivery, Envelope
from ..injection._handler_context import ContextOwner
from ..messaging._bus_connection import BusConnection
from ..messaging._middleware import CallOutcome, HandlerCall
from ..messaging._sent_replies import Replies
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..options._actor_options import ActorOptions
from ..registration._specs import Handler
from ._failures_and_retries import Pauses

if TYPE_CHECKING:
    from ._argument_values import ProducerScope

__all__ = ["HandlingLane"]


class HandlingLane(ContextOwner, Protocol):
    """What handling uses of the lane that the messages are handled in."""

    handlers: tuple[Handler, ...]
    connection: BusConnection
    log: LimitedLog
    max_received: int
    options: ActorOptions
    pauses: Pauses
    socket: Socket
    source: str
    sync_socket: SyncSocket

    @property
    def context_owner(self) -> ContextOwner:
        """Whose contexts its handlers get."""

    @property
    def resources(self) -> Mapping[str, Any]:
        """The open resources, by name."""

    def make_replies(self) -> Replies:
        """Return what sends the replies to its requests."""

    # Calls.

    def invoke(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """Call the handler, cut off at the actor's deadline.

        Args:
            instance: of the actor's class.
            index: of the handler.
            arguments: by name.
            scope: what they were taken from.
        """

    def undecodable(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """Tell middleware, if there is any, of a message that no handler gets.

        Args:
            make: returns the call of the handler that would have got it.
            outcome: why it was not called, and what becomes of the message.
        """

    def expired(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """Tell middleware, if there is any, of a message that has expired; as `undecodable`."""

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """Return the handlers that can be called and awaited without `invoke`; None for others."""

    def receive_other(self, instance: Any, item: Any) -> Awaitable[None]:
        """Handle an item of the mailbox that is not a delivery."""

    async def current(self, instance: Any) -> Any:
        """Return the instance for the next attempt; None if there must not be one."""

    def reply_address_problem(self, envelope: Envelope) -> str | None:
        """Return why no reply may go to the message's response topic; None if it may."""

    # Failures and dead letters.

    def failed(self, where: str, error: BaseException, envelope: Envelope | None = None) -> None:
        """Tell the observer, if there is one, about a failure."""

    def troubled(self, reason: str) -> None:
        """Tell the observer, if there is one, why the actor cannot do its work for now."""

    def unhealthy(self, reason: str) -> None:
        """Report why the actor cannot do its work: to the observer and in the health."""

    def take_letter(self) -> bool:
        """Claim a place for one more dead letter; return False if the actor is at its limit."""

    def return_letter(self) -> None:
        """Give back a place, because the dead letter is not stored after all."""

    async def park(self, delivery: Delivery, letter: Envelope, timeout: float) -> bool:
        """Store a dead letter as `Bus.park` does.

        Args:
            delivery: the message, which is settled next.
            letter: what is stored.
            timeout: in seconds.

        Returns:
            Whether it is stored; if not, it is a part of what the message has come to, and `parked`
            or `return_letter` is called as soon as it is known whether that is committed.
        """

    def parked(self) -> None:
        """Note that a dead letter was stored in its place."""
