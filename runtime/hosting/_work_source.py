"""Work sources: what brings a lane its work, and through which mailboxes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from ...actors import Mailbox, Overflow
from ..handling._delivery_processor import DeliveryProcessor

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["MessageSource", "WorkSource", "mailbox_of"]


class WorkSource(Protocol):
    """What brings a lane its work."""

    @property
    def mailbox(self) -> Mailbox:
        """Gets the deliveries of routers."""

    @property
    def local(self) -> Mailbox:
        """Gets what comes from elsewhere; the lane's task takes its items from here."""

    @property
    def processor(self) -> DeliveryProcessor:
        """Handles deliveries."""

    @property
    def task(self) -> asyncio.Future[Any] | None:
        """The task that the user's code runs in at the moment, when it has one of its own."""

    async def receive(self, instance: Any, item: Any) -> None:
        """Work off what the source itself has put into the mailbox."""

    def flush(self) -> None:
        """Hold nothing back any more."""


class MessageSource:
    """One message after the other, from one mailbox.

    Args:
        lane: gets them.
    """

    task = None

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.mailbox = self.local = mailbox_of(lane)
        self.processor = DeliveryProcessor(lane, lane.connection)

    async def receive(self, instance: Any, item: Any) -> None:
        """Raise TypeError: it puts nothing there."""
        raise TypeError(f"actor {self._lane.actor_name!r} got {item!r}")

    def flush(self) -> None:
        """Do nothing: it holds nothing back."""


def mailbox_of(lane: Lane) -> Mailbox:
    """Make the mailbox that a lane's options ask for."""
    options = lane.options
    by_key = options.overflow is Overflow.LATEST_BY_KEY
    key = lane.spec.message_key.of_item if by_key else None
    mailbox = Mailbox(options.mailbox, options.overflow, key)
    mailbox.on_drop = lane.dropped
    return mailbox
