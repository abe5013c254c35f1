"""The lane, as handling sees it: where the messages of an actor are handled, one at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from ..._limited_log import LimitedLog
from ...transports import Envelope
from ..injection._context import ContextOwner
from ..messaging._connection import BusConnection
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..registration._specs import ActorOptions, Handler

__all__ = ["HandlingLane"]


class HandlingLane(ContextOwner, Protocol):
    """What handling needs of the lane that the messages are handled in."""

    handlers: tuple[Handler, ...]
    connection: BusConnection
    log: LimitedLog
    max_received: int
    options: ActorOptions
    socket: Socket
    source: str
    sync_socket: SyncSocket

    @property
    def resources(self) -> Mapping[str, Any]:
        """What is open, by name."""

    # Calls.

    def invoke(self, instance: Any, index: int, arguments: Mapping[str, Any]) -> Awaitable[Any]:
        """Call the handler, cut off at the actor's deadline."""

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """The handlers that can be called and awaited without `invoke`; None for others."""

    async def current(self, instance: Any) -> Any:
        """The instance for the next attempt; None when there is to be none."""

    def reply_address_problem(self, envelope: Envelope) -> str | None:
        """Why a reply must not go where the message asks for; None when it may."""

    # Failures and dead letters.

    def failed(self, where: str, error: BaseException, envelope: Envelope | None = None) -> None:
        """Let the observer, if there is one, know of a failure."""

    def troubled(self, reason: str) -> None:
        """Let the observer, if there is one, know why the actor cannot go on as it should."""

    def unhealthy(self, reason: str) -> None:
        """The actor cannot go on as it should."""

    def take_letter(self) -> bool:
        """Claim a place for one more dead letter; False when the actor has used up its own."""

    def return_letter(self) -> None:
        """A dead letter with a place is not going to be stored."""

    def parked(self) -> None:
        """A dead letter was stored in its place."""
