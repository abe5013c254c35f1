"""A router that notes when messages arrive, for applications with metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from ...transports import Delivery
from ..metrics._clock import clock_of
from ._router import Router

__all__ = ["MeasuredRouter"]


class MeasuredRouter(Router):
    """A router that notes when messages arrive; see `Router`."""

    def __init__(
        self,
        name: str,
        stats: Counter[str],
        *,
        elsewhere: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(name, stats, elsewhere=elsewhere)
        self._loop = asyncio.get_running_loop()
        self._clock = clock_of(self._loop)
        # While the event loop makes one turn; 0 until something arrives in it.
        self._now = 0.0
        # Without the cost of looking for it.
        self._deliver = super().deliver

    def deliver(self, delivery: Delivery) -> None:
        """See `Router.deliver`."""
        delivery.arrived = self._now or self._look()
        self._deliver(delivery)

    def _look(self) -> float:
        """Return the time, which counts for all that is read from the connection at once."""
        self._now = now = self._clock()
        self._loop.call_soon(self._turned)
        return now

    def _turned(self) -> None:
        self._now = 0.0

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        """See `Router.deliver_all`."""
        now = self._clock()
        for delivery in deliveries:
            delivery.arrived = now
        super().deliver_all(deliveries)
