"""Metrics for Prometheus: what is answered at ``/metrics``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import REGISTRY
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

# The last line of OpenMetrics; the older format has none.
_END = b"# EOF\n"
_MOST_TOLD = 20


class Exposition:
    """The metrics of one application as text, with those that the program itself has registered.

    Args:
        read: reads everything they are made of.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._own = _Application(read)
        self._log = get_logger("spa_dat")
        self._told: set[str] = set()

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics, and the content type. Works from any thread.

        Args:
            accept: which formats the client accepts, as in the header of that name.
        """
        encode, content_type = choose_encoder(accept)
        own = encode(self._own)
        texts = [own.removesuffix(_END)]
        for family in self._programs():
            try:
                texts.append(encode(_One(family)).removesuffix(_END))
            except Exception as error:  # noqa: BLE001 (its values are anybody's)
                self._complain(error)
        if own.endswith(_END):
            texts.append(_END)
        return b"".join(texts), content_type

    def _programs(self) -> list[Family]:
        """Return what the program has registered; one unreadable metric hides no other."""
        families: list[Family] = []
        try:
            families.extend(REGISTRY.collect())
        except BaseException as error:  # noqa: BLE001 (they are anybody's)
            self._complain(error)
        return families

    def _complain(self, error: BaseException) -> None:
        # Somebody asks every few seconds.
        reason = reason_of(error)
        if reason not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(reason)
            self._log.error(
                "a metric that the program has registered with prometheus_client cannot be"
                " read: %s",
                reason,
            )


class _One(Collector):
    """A metric alone, so that one that cannot be written does not take others with it."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        """Return it."""
        return (self._family,)


class _Application(Collector):
    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Family]:
        """Read all metrics of the catalogue."""
        reading = self._read()
        for metric in CATALOGUE:
            yield _family(metric, reading)


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
