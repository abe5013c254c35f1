"""The work source of actors whose handlers get several messages at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...actors import Mailbox
from ...transports import Delivery
from ..handling._batch_processor import BatchProcessor
from ..routing._batch_collector import BatchCollector
from ._message_source import replaced_by_key

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["BatchSource"]


class _Ready:
    """The item of a mailbox that starts the next batch."""


_READY = _Ready()


class BatchSource:
    """The batches of one lane of an actor with ``batch``.

    Deliveries wait in a `BatchCollector`; the lane's own mailbox gets the local messages, and a
    notice when a batch is complete or has waited long enough.

    Attributes:
        current: the batch that the lane is handling.

    Args:
        lane: the lane that handles them.
    """

    task = None

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        options = lane.options
        assert options.batch is not None
        size, seconds = options.batch
        self.mailbox = BatchCollector(
            size,
            seconds,
            self._ready,
            # While no lane has that much, there is still room in the window.
            size_bytes=max(1, lane.runner.window_bytes // options.lanes),
            capacity=options.mailbox,
            overflow=options.overflow,
            key=replaced_by_key(lane),
        )
        self.mailbox.name = lane.address
        self.mailbox.on_drop = lane.dropped
        self.local = Mailbox(options.mailbox)
        self.processor = _processor_of(lane)
        self.current: Sequence[Delivery] = ()

    def _ready(self) -> None:
        if not self.local.closed:
            self.local.force(_READY)

    def flush(self) -> None:
        """Release what is waiting, without waiting for further messages."""
        self.mailbox.flush()

    async def receive(self, instance: Any, item: Any) -> None:
        """Handle one batch; if the actor is stopping, all of them."""
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


def _processor_of(lane: Lane) -> BatchProcessor:
    if lane.measurements is None:
        return BatchProcessor(lane, lane.connection)
    # Not at the top: most applications measure nothing.
    from ..handling._measured_processor import MeasuredBatchProcessor

    return MeasuredBatchProcessor(lane, lane.connection)
