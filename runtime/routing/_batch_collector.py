"""The mailbox in which deliveries wait until there are enough of them for one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from ...actors import Mailbox, Overflow
from ._routed_deliveries import RoutedDelivery

__all__ = ["BatchCollector"]


class BatchCollector(Mailbox):
    """The mailbox that routers fill for an actor that handles batches.

    Nothing is started here: routers may take back what is waiting, as from any mailbox. All
    deliveries of a batch come through one subscription and go to one handler, and order is kept: a
    batch ends where the next delivery is for another handler.

    Args:
        size: the most deliveries in a batch.
        seconds: how long the first one waits for others at most.
        size_bytes: the size in bytes at which a batch waits no longer, because the window may have
            no room for more. None for no such limit.
        on_ready: called when it is time to `take` a batch; not again before `done`.
        capacity: as in `Mailbox`.
        overflow: as in `Mailbox`.
        key: as in `Mailbox`.
    """

    __slots__ = (
        "_alike",
        "_asking",
        "_clock",
        "_flushing",
        "_on_ready",
        "_seconds",
        "_since",
        "_size",
        "_size_bytes",
        "_timer",
        "_told",
        "_weighed",
        "_weight",
    )

    def __init__(
        self,
        size: int,
        seconds: float,
        on_ready: Callable[[], None],
        *,
        size_bytes: int | None = None,
        capacity: int,
        overflow: Overflow,
        key: Callable[[Any], Hashable] | None = None,
    ) -> None:
        super().__init__(max(capacity, size), overflow, key)
        self._size = size
        self._seconds = seconds
        self._on_ready = on_ready
        self._clock = asyncio.get_running_loop()
        # When the first of those waiting arrived; or earlier, if a batch has left some over.
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told = False
        self._asking: asyncio.Handle | None = None
        self._flushing = False
        self._size_bytes = size_bytes
        self._forget()

    def offer(self, item: Any) -> bool:
        """As `Mailbox.offer`."""
        before = len(self.items)
        taken = super().offer(item)
        if len(self.items) != before + 1:
            # It replaced another item, or pushed one out.
            self._forget()
        self._look()
        return taken

    def push_front(self, items: Iterable[Any]) -> None:
        """As `Mailbox.push_front`."""
        self._forget()
        super().push_front(items)

    def extract(self, predicate: Callable[[Any], bool]) -> list[Any]:
        """As `Mailbox.extract`."""
        extracted = super().extract(predicate)
        self._forget()
        self._look()
        return extracted

    def take(self) -> list[RoutedDelivery]:
        """Return the next batch, not started; empty if it is not time for one."""
        if not self.items or not self._is_due():
            return []
        batch: list[RoutedDelivery] = []
        ended = False

        def is_next(item: Any) -> bool:
            nonlocal ended
            if len(batch) == self._size or (batch and _kind(item) != _kind(batch[0])):
                ended = True
            if not ended:
                batch.append(item)
            return not ended

        self.extract(is_next)
        return batch

    def done(self) -> None:
        """Note that the batch taken last has been dealt with."""
        self._told = False
        self._look()

    def flush(self) -> None:
        """Release what is waiting without delay, now and from now on."""
        self._flushing = True
        self._look()

    def wake(self) -> None:
        """As `Mailbox.wake`."""
        # No one takes single items here.
        self._look()

    def _look(self) -> None:
        if not self.items:
            self._since = None
            self._forget_timer()
            return
        if self._since is None:
            self._since = self._clock.time()
        if self._told:
            return
        if self._is_due():
            self._tell()
            return
        if self._timer is None:
            self._timer = self._clock.call_at(self._since + self._seconds, self._tell)
        first = self._first
        first.on_awaited = self._look
        if first.awaited and self._asking is None:
            # It is not due, because more of what has arrived is still on its way here.
            self._asking = self._clock.call_soon(self._ask_again)

    def _ask_again(self) -> None:
        self._asking = None
        self._look()

    @property
    def _first(self) -> RoutedDelivery:
        entry = self.items[0]
        delivery: RoutedDelivery = getattr(entry, "item", entry)
        return delivery

    def _is_due(self) -> bool:
        return (
            self._flushing
            or len(self.items) >= self._size
            or self._is_mixed()
            or self._is_heavy()
            or self._is_awaited()
            or (self._since is not None and self._clock.time() >= self._since + self._seconds)
        )

    def _is_mixed(self) -> bool:
        """Return whether a batch ends before the last delivery waiting; looks at each once."""
        items = self.items
        first = _kind(items[0])
        while self._alike < len(items) and _kind(items[self._alike]) == first:
            self._alike += 1
        return self._alike < len(items)

    def _is_heavy(self) -> bool:
        """Return whether the deliveries have enough bytes to wait no longer; looks at each once."""
        if self._size_bytes is None:
            return False
        items = self.items
        while self._weighed < len(items):
            entry = items[self._weighed]
            self._weight += getattr(entry, "item", entry).size
            self._weighed += 1
        return self._weight >= self._size_bytes

    def _is_awaited(self) -> bool:
        """Return whether nothing more can arrive, for no lane, before the first is settled."""
        first = self._first
        return first.awaited and not first.route.router.inbox.items

    def _forget(self) -> None:
        """Reset what is known about the items, which have changed other than at their end."""
        # How many of the first ones are known to go into one batch; how many have been weighed,
        # and their weight.
        self._alike = self._weighed = self._weight = 0

    def _tell(self) -> None:
        self._forget_timer()
        self._told = True
        self._on_ready()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _kind(entry: Any) -> tuple[Any, int]:
    """Return what all deliveries of a batch have in common."""
    route = getattr(entry, "item", entry).route
    return route.router, route.handler
