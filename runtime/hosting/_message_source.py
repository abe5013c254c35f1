"""Work sources: what a lane gets its work from; that of single messages, and its mailbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ...actors import Mailbox, Overflow
from ..handling._delivery_processor import DeliveryProcessor

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["MessageSource", "WorkSource", "mailbox_of", "processor_of", "replaced_by_key"]


M = TypeVar("M", bound=Mailbox)


class WorkSource(Protocol):
    """What a lane gets its work from."""

    @property
    def mailbox(self) -> Mailbox:
        """The mailbox for the deliveries of routers."""

    @property
    def local(self) -> Mailbox:
        """The mailbox for everything else; the lane's task takes its items from here."""

    @property
    def processor(self) -> DeliveryProcessor:
        """The processor of its deliveries."""

    @property
    def task(self) -> asyncio.Future[Any] | None:
        """The task that the user's code is running in, if it has one of its own."""

    async def receive(self, instance: Any, item: Any) -> None:
        """Handle an item that the source itself has put into the mailbox."""

    def flush(self) -> None:
        """Hold nothing back from now on."""


class MessageSource:
    """One message after another, from one mailbox.

    Args:
        lane: the lane that handles them.
    """

    task = None

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.mailbox = self.local = mailbox_of(lane, Mailbox)
        self.processor = processor_of(lane)

    async def receive(self, instance: Any, item: Any) -> None:
        """Raise TypeError: this source puts nothing into the mailbox."""
        raise TypeError(f"actor {self._lane.actor_name!r} got {item!r}")

    def flush(self) -> None:
        """Do nothing: it holds nothing back."""


def processor_of(lane: Lane) -> DeliveryProcessor:
    """Make what handles the messages of a lane one by one."""
    if lane.measurements is None:
        return DeliveryProcessor(lane, lane.connection)
    # Not at the top: most applications measure nothing.
    from ..handling._measured_processor import MeasuredProcessor

    return MeasuredProcessor(lane, lane.connection)


def mailbox_of(lane: Lane, kind: type[M]) -> M:
    """Make the mailbox of this kind that a lane's options ask for."""
    options = lane.options
    mailbox = kind(options.mailbox, options.overflow, replaced_by_key(lane))
    mailbox.on_drop = lane.dropped
    return mailbox


def replaced_by_key(lane: Lane) -> Callable[[Any], str] | None:
    """Return what gives the key by which a message replaces another one; None if none does."""
    if lane.options.overflow is Overflow.LATEST_BY_KEY:
        return lane.spec.message_key.of_item
    return None
