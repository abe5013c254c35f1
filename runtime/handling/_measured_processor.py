"""Processing deliveries with metrics: counts them, and measures how long they wait and take."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from ..._busy_threads import has_own_clock
from ...transports import Delivery
from ..messaging._bus_connection import BusConnection
from ..metrics._clock import clock_of
from ..metrics._conventions import system_of
from ..metrics._measurements import FailureKind, Measurements, Series
from ..routing._routed_deliveries import Route, RoutedDelivery
from ._batch_processor import BatchProcessor
from ._delivery_processor import DeliveryProcessor

if TYPE_CHECKING:
    from ._handling_lane import HandlingLane

__all__ = ["MeasuredBatchProcessor", "MeasuredProcessor"]

_MOST_ROUTES = 1000


class _SeriesByRoute(dict[Route, Series]):
    """The series of one actor, by the route that a message takes.

    Args:
        measurements: those of the application.
        actor: the actor's name.
        system: the kind of its bus.
    """

    def __init__(self, measurements: Measurements, actor: str, system: str) -> None:
        self._measurements = measurements
        self._actor = actor
        self._system = system

    def __missing__(self, route: Route) -> Series:
        if len(self) >= _MOST_ROUTES:
            # A program that adds and removes filters makes a new one each time.
            self.clear()
        series = self._measurements.series(self._actor, route.filter.text, self._system)
        self[route] = series
        return series


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
    """What both kinds of processors do beyond their work when there are metrics.

    Args:
        lane: as of `DeliveryProcessor`.
        connection: likewise.
        measurements: those of the application.
    """

    __slots__ = ("_clock", "_latest", "_route", "_series", "_times_all", "_timing")

    def __init__(
        self, lane: HandlingLane, connection: BusConnection, measurements: Measurements
    ) -> None:
        super().__init__(lane, connection)
        system = system_of(connection.provider.address)
        self._series = _SeriesByRoute(measurements, lane.actor_name, system)
        # A counter that has not counted yet is 0, and is there.
        for handler in lane.handlers:
            for filter_ in handler.filters:
                measurements.series(lane.actor_name, filter_.text, system)
        self._timing = _Timing()
        # Of the message that came last.
        self._route: Route | None = None
        self._latest: Series
        self._clock = clock_of(connection.loop)
        # In virtual time nothing costs any, and what happens must not depend on chance.
        self._times_all = has_own_clock(connection.loop)

    def taken(self, delivery: RoutedDelivery) -> None:
        """See `DeliveryProcessor.taken`."""
        series = self._series[delivery.route]
        if not series.counted():
            self._note_wait(series, delivery, self._clock())

    def _note_wait(self, series: Series, delivery: RoutedDelivery, now: float) -> int:
        """Note how long a message has waited; return for how many it counts."""
        weight = series.timed(now, everything=self._times_all)
        if delivery.arrived and not delivery.attempts:
            series.waited(max(now - delivery.arrived, 0.0), weight)
        return weight

    def attempt_begins(self, delivery: RoutedDelivery) -> None:
        """See `DeliveryProcessor.attempt_begins`."""
        self._timing.begin(delivery, self._series[delivery.route], self._clock(), 1)

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
        self._series[delivery.route].ended(kind, error)


class MeasuredProcessor(_Measuring):
    """A `DeliveryProcessor` with metrics. The fast path is the same, but for what is timed."""

    __slots__ = ()

    def receive(self, instance: Any, item: Any) -> Awaitable[None]:
        """As of `DeliveryProcessor`."""
        if not isinstance(item, Delivery):
            return self._lane.receive_other(instance, item)
        if item.route is not self._route:
            self._route = item.route
            self._latest = self._series[item.route]
        series = self._latest
        # `Series.counted`, without the cost of a call.
        left = series.left
        if left:
            series.left = left - 1
            return self.handle(instance, item)
        return self._handle_timed(instance, item, series)

    async def _handle_timed(self, instance: Any, delivery: RoutedDelivery, series: Series) -> None:
        now = self._clock()
        self._timing.begin(delivery, series, now, self._note_wait(series, delivery, now))
        await self.handle(instance, delivery)
        self._timing.end(self._clock())


class MeasuredBatchProcessor(BatchProcessor, _Measuring):
    """A `BatchProcessor` with metrics. A call with a batch is timed as one."""

    __slots__ = ()

    async def handle_batch(self, instance: Any, deliveries: Sequence[RoutedDelivery]) -> None:
        """As of `BatchProcessor`."""
        for delivery in deliveries:
            self.taken(delivery)
        await super().handle_batch(instance, deliveries)
