"""A registered actor whose handlers get several messages at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...actors import Mailbox, Overflow
from ...transports import Delivery
from ..handling._batch_processor import BatchHandling
from ..messaging._connection import Link
from ..registration._specs import Spec
from ..routing._collector import Collector
from ..routing._subscriptions import RuntimeSubscription
from ._host import Host
from ._hosted import Runner

__all__ = ["BatchHost"]


class _Ready:
    """It is time for the next batch."""


_READY = _Ready()


class BatchHost(Host):
    """An actor with ``batch`` while the application runs.

    Deliveries wait in a `Collector`; the actor's own mailbox has the local messages, and word
    when a batch is complete or has waited long enough.

    Attributes:
        batch: what it is working on.

    Args:
        runner: the run that it is part of.
        spec: its registration.
        link: its bus.
        lane: as of `Host`.
        runtime: as of `Host`.
    """

    def __init__(
        self,
        runner: Runner,
        spec: Spec[Any],
        link: Link,
        *,
        lane: int | None = None,
        runtime: RuntimeSubscription | None = None,
    ) -> None:
        super().__init__(runner, spec, link, lane=lane, runtime=runtime)
        self.batch: Sequence[Delivery] = ()
        self._batches = BatchHandling(self, link)
        self.handling = self._batches

    def _make_mailbox(self) -> Mailbox:
        options = self.options
        assert options.batch is not None
        size, seconds = options.batch
        by_key = options.overflow is Overflow.LATEST_BY_KEY
        self._collector = Collector(
            size,
            seconds,
            self._ready,
            # Where this holds for no lane the window has room.
            size_bytes=max(1, self.window_bytes // options.concurrency),
            capacity=options.mailbox,
            overflow=options.overflow,
            key=self.spec.message_key.of_item if by_key else None,
        )
        self._collector.name = self.address
        self._collector.on_drop = self._dropped
        return self._collector

    def _make_local(self) -> Mailbox:
        return Mailbox(self.options.mailbox)

    def _ready(self) -> None:
        if not self.local.closed:
            self.local.force(_READY)

    def stop_attempts(self) -> None:
        """Start no further attempt, and wait for no further messages."""
        super().stop_attempts()
        self._collector.flush()

    async def receive_other(self, instance: Any, item: Any) -> None:
        """Work one batch off; when the actor is stopping, all of them."""
        if item is not _READY:
            await super().receive_other(instance, item)
            return
        try:
            while batch := self._collector.take():
                self.batch = batch
                if self.runner.observer is not None:
                    self.runner.observer.collected(self, batch)
                await self._batches.handle_batch(instance, batch)
                if not self.local.closed:
                    break
        finally:
            self.batch = ()
            self._collector.done()
