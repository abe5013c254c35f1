"""Processing deliveries and measuring: counts them, and times how long some wait and take."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from ...transports import Delivery
from ..diagnostics._figures import Times
from ..messaging._bus_connection import BusConnection
from ..metrics._clock import clock_of
from ..metrics._measurements import FailureKind, Series
from ..routing._routed_deliveries import RoutedDelivery
from ._batch_processor import BatchProcessor
from ._delivery_processor import DONE_WITH, DeliveryProcessor

if TYPE_CHECKING:
    from ._handling_lane import HandlingLane

__all__ = ["MeasuredBatchProcessor", "MeasuredProcessor"]


class _Timing:
    """The attempt of a lane that is timed at the moment, if there is one.

    Attributes:
        delivery: the message, or the first one of the batch; None while nothing is timed.
    """

    __slots__ = ("_began", "_series", "_weight", "delivery")

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self._series: Series | None = None
        self._began = 0.0
        self._weight = 1

    def begin(self, delivery: Delivery, series: Series, now: float, weight: int) -> None:
        """Note that an attempt begins.

        Args:
            delivery: the message.
            series: what it is part of.
            now: loop time.
            weight: for how many messages it counts.
        """
        self.delivery, self._series = delivery, series
        self._began, self._weight = now, weight

    def end(self, now: float, error: BaseException | None = None) -> None:
        """Note how long it took, unless it has ended already."""
        if self.delivery is not None and self._series is not None:
            self.delivery = None
            self._series.took(now - self._began, self._weight, error)


class _Measuring(DeliveryProcessor):
    """What both kinds of processors do beyond their work when something is measured.

    Args:
        lane: as in `DeliveryProcessor`.
        connection: likewise.
    """

    __slots__ = ("_clock", "_timing")

    def __init__(self, lane: HandlingLane, connection: BusConnection) -> None:
        super().__init__(lane, connection)
        self._timing = _Timing()
        self._clock = clock_of(connection.loop)

    def taken(self, delivery: RoutedDelivery) -> None:
        """See `DeliveryProcessor.taken`."""
        series = _series_of(delivery)
        series.consumed += 1
        if delivery.arrived:
            _note_wait(series, delivery, self._clock())

    def attempt_begins(self, delivery: RoutedDelivery) -> None:
        """See `DeliveryProcessor.attempt_begins`."""
        self._timing.begin(delivery, _series_of(delivery), self._clock(), 1)

    def attempt_ended(self, error: BaseException | None = None) -> None:
        """See `DeliveryProcessor.attempt_ended`."""
        self._timing.end(self._clock(), error)

    def ended(
        self, delivery: RoutedDelivery, kind: FailureKind, error: BaseException | None = None
    ) -> None:
        """See `DeliveryProcessor.ended`."""
        if self._timing.delivery is delivery:
            # What has ended before there was an attempt took no time.
            self._timing.delivery = None
        _series_of(delivery).ended(kind, error)


class MeasuredProcessor(_Measuring):
    """A `DeliveryProcessor` that measures. The fast path is the same, but for what is timed.

    Attributes:
        times: gets how long each message took that was timed, with all attempts; None for nobody.
    """

    __slots__ = ("times",)

    def __init__(self, lane: HandlingLane, connection: BusConnection) -> None:
        super().__init__(lane, connection)
        self.times: Times | None = None

    def receive(self, instance: Any, item: Any) -> Awaitable[None]:
        """As in `DeliveryProcessor`."""
        if not isinstance(item, Delivery):
            return self._lane.receive_other(instance, item)
        # `_series_of`, without the cost of a call.
        series = item.route.series
        series.consumed += 1
        if item.arrived:
            return self._handle_timed(instance, item, series)
        return self.handle(instance, item)

    async def _handle_timed(self, instance: Any, delivery: RoutedDelivery, series: Series) -> None:
        began = self._clock()
        self._timing.begin(delivery, series, began, _note_wait(series, delivery, began))
        await self.handle(instance, delivery)
        ended = self._clock()
        self._timing.end(ended)
        if self.times is not None and delivery.state in DONE_WITH:
            self.times.add(int((ended - began) * 1e9))


class MeasuredBatchProcessor(BatchProcessor, _Measuring):
    """A `BatchProcessor` that measures. A call with a batch is timed as one."""

    __slots__ = ()

    async def handle_batch(self, instance: Any, deliveries: Sequence[RoutedDelivery]) -> None:
        """As in `BatchProcessor`."""
        for delivery in deliveries:
            # `taken`, without the cost of two calls.
            series = delivery.route.series
            assert series is not None
            series.consumed += 1
            if delivery.arrived:
                _note_wait(series, delivery, self._clock())
        await super().handle_batch(instance, deliveries)


def _series_of(delivery: RoutedDelivery) -> Series:
    series = delivery.route.series
    assert series is not None
    return series


def _note_wait(series: Series, delivery: RoutedDelivery, now: float) -> int:
    """Note how long a message has waited; return for how many it counts."""
    weight = series.weigh()
    if delivery.arrived and not delivery.attempts:
        series.waited(max(now - delivery.arrived, 0.0), weight)
    return weight
