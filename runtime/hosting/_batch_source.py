"""Batches: the work of actors whose handlers get several messages at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...actors import Mailbox, Overflow
from ...transports import Delivery
from ..handling._batch_processor import BatchProcessor
from ..routing._batch_collector import BatchCollector

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["BatchSource"]


class _Ready:
    """It is time for the next batch."""


_READY = _Ready()


class BatchSource:
    """The batches of one lane of an actor with ``batch``.

    Deliveries wait in a `BatchCollector`; the lane's own mailbox has the local messages, and word
    when a batch is complete or has waited long enough.

    Attributes:
        current: what the lane is working on.

    Args:
        lane: gets them.
    """

    task = None

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        options = lane.options
        assert options.batch is not None
        size, seconds = options.batch
        by_key = options.overflow is Overflow.LATEST_BY_KEY
        self.mailbox = BatchCollector(
            size,
            seconds,
            self._ready,
            # Where this holds for no lane the window has room.
            size_bytes=max(1, lane.runner.window_bytes // options.concurrency),
            capacity=options.mailbox,
            overflow=options.overflow,
            key=lane.spec.message_key.of_item if by_key else None,
        )
        self.mailbox.name = lane.address
        self.mailbox.on_drop = lane.dropped
        self.local = Mailbox(options.mailbox)
        self.processor = BatchProcessor(lane, lane.connection)
        self.current: Sequence[Delivery] = ()

    def _ready(self) -> None:
        if not self.local.closed:
            self.local.force(_READY)

    def flush(self) -> None:
        """Wait for no further messages."""
        self.mailbox.flush()

    async def receive(self, instance: Any, item: Any) -> None:
        """Work one batch off; when the actor is stopping, all of them."""
        if item is not _READY:
            raise TypeError(f"actor {self._lane.actor_name!r} got {item!r}")
        observer = self._lane.runner.run.observer
        try:
            while batch := self.mailbox.take():
                self.current = batch
                if observer is not None:
                    observer.collected(self._lane, batch)
                await self.processor.handle_batch(instance, batch)
                if not self.local.closed:
                    break
        finally:
            self.current = ()
            self.mailbox.done()
