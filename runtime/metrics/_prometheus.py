"""Metrics for Prometheus: what is answered at ``/metrics``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric as Family,
)
from prometheus_client.registry import Collector

from ..._logs import get_logger
from ..._texts import reason_of
from ._catalogue import CATALOGUE, OWN, Metric, Reading, label_of
from ._measurements import BOUNDS, Durations

__all__ = ["Exposition"]


class Exposition:
    """The metrics of one application as text, with those that the program itself has registered.

    Args:
        read: reads everything they are made of.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Application(read))
        self._registry.register(_Program())

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics, and the content type. Works from any thread.

        Args:
            accept: which formats the client accepts, as in the header of that name.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Application(Collector):
    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Family]:
        """Read all metrics of the catalogue."""
        reading = self._read()
        for metric in CATALOGUE:
            yield _family(metric, reading)


class _Program(Collector):
    """What the program has registered with the library, in its default registry."""

    def __init__(self) -> None:
        self._log = get_logger("spa_dat")
        self._told = ""

    def collect(self) -> Iterator[Family]:
        """Return it as it is now; without it if that fails, which is no reason to tell nothing."""
        families: list[Family] = []
        try:
            families.extend(REGISTRY.collect())
        except Exception as error:  # noqa: BLE001 (they are anybody's)
            # Somebody asks every few seconds.
            reason, before = reason_of(error), self._told
            self._told = reason
            if reason != before:
                self._log.error(
                    "a metric that the program has registered with prometheus_client cannot be"
                    " read: %s",
                    reason,
                )
        yield from families


def _family(metric: Metric, reading: Reading) -> Family:
    labels = [label_of(name) for name in (*OWN, *metric.attributes)]
    name, text, own = metric.prometheus_name, metric.text, reading.own
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for values, durations in metric.values(reading):
            assert isinstance(durations, Durations)
            # Others may be added while they are read.
            counts = list(accumulate(durations.counts))
            bounds = [*map(str, BOUNDS), "+Inf"]
            histogram.add_metric(
                (*own, *values), list(zip(bounds, counts, strict=True)), durations.seconds
            )
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, text, labels=labels)
    for values, number in metric.values(reading):
        assert not isinstance(number, Durations)
        if math.isfinite(number):
            family.add_metric((*own, *values), number)
    return family
