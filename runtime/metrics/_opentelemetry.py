"""Metrics for OpenTelemetry, through its API: whatever the program has set up gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from ._catalogue import (
    ACTOR,
    CATALOGUE,
    ERROR,
    HANDLING,
    OPERATION,
    OWN,
    SYSTEM,
    TEMPLATE,
    WAITING,
    Metric,
    Reading,
)
from ._conventions import SCHEMA
from ._measurements import BOUNDS, Durations, Series

__all__ = ["Instruments", "instruments"]

Read = Callable[[], Reading]


class Instruments:
    """The instruments of all applications of the program: a meter has each of them only once.

    Args:
        meter: makes them.
    """

    def __init__(self, meter: Meter) -> None:
        self._readings: dict[Read, _Latest] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in CATALOGUE:
            name, unit, text = metric.name, metric.unit, metric.text
            if metric.kind == "histogram":
                self._histograms[name] = meter.create_histogram(
                    name, unit, text, explicit_bucket_boundaries_advisory=BOUNDS
                )
            elif metric.kind == "counter":
                meter.create_observable_counter(name, [self._observing(metric)], unit, text)
            else:
                meter.create_observable_gauge(name, [self._observing(metric)], unit, text)

    def add(self, read: Read) -> None:
        """Report the metrics of an application, until `remove`.

        Args:
            read: reads everything they are made of.
        """
        self._readings[read] = _Latest(read)
        reading = read()
        measurements, own = reading.measurements, dict(zip(OWN, reading.own, strict=True))
        handling, waiting = self._histograms[HANDLING.name], self._histograms[WAITING.name]

        def on_handled(seconds: float, series: Series, error: str) -> None:
            attributes = own | _about(series) | {OPERATION: "process"}
            handling.record(seconds, attributes | {ERROR: error} if error else attributes)

        def on_waited(seconds: float, series: Series, error: str) -> None:
            waiting.record(seconds, own | _about(series))

        measurements.on_handled, measurements.on_waited = on_handled, on_waited

    def remove(self, read: Read) -> None:
        """Report an application no more."""
        self._readings.pop(read, None)

    def _observing(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for latest in tuple(self._readings.copy().values()):
                reading = latest.for_metric(metric)
                names = (*OWN, *metric.attributes)
                for values, number in metric.values(reading):
                    assert not isinstance(number, Durations)
                    given = zip(names, (*reading.own, *values), strict=True)
                    # As the conventions have it, what does not apply is not there.
                    yield Observation(number, {name: value for name, value in given if value})

        return observe


def _about(series: Series) -> dict[str, str]:
    return {ACTOR: series.actor, TEMPLATE: series.template, SYSTEM: series.system}


class _Latest:
    """Reads an application once for all metrics that are asked for together.

    Args:
        read: reads everything.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._reading: Reading | None = None
        self._asked: set[str] = set()

    def for_metric(self, metric: Metric) -> Reading:
        """Return the latest reading, or a new one if the metric has been read from it already."""
        reading = self._reading
        if reading is None or metric.name in self._asked:
            reading = self._reading = self._read()
            self._asked.clear()
        self._asked.add(metric.name)
        return reading


_instruments: Instruments | None = None


def instruments() -> Instruments:
    """Return the instruments of the program's own meter provider, made once."""
    global _instruments
    if _instruments is None:
        _instruments = Instruments(metrics.get_meter("spa_dat", schema_url=SCHEMA))
    return _instruments
