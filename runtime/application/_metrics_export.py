"""The export of the metrics of one run, to Prometheus and OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..._busy_threads import has_own_clock
from ...errors import ConfigurationError
from ..diagnostics._health import Health
from ..hosting._application_settings import Settings
from ..metrics._catalogue import Reading

if TYPE_CHECKING:
    from ..metrics._opentelemetry import Instruments
    from ..metrics._prometheus import Exposition

__all__ = ["MetricsExport"]


class MetricsExport:
    """Makes the metrics of one run available to those that the application names.

    Args:
        settings: the application's, with measurements.
        health: returns the health of the run.

    Raises:
        ConfigurationError: a library is missing, or there is no address for Prometheus to ask at.

    Attributes:
        exposition: the metrics for Prometheus; None if it does not want any.
    """

    def __init__(self, settings: Settings, health: Callable[[], Health]) -> None:
        self._settings = settings
        self._health = health
        self.exposition: Exposition | None = None
        self._instruments: Instruments | None = None
        if "prometheus" in settings.exporters:
            self.exposition = self._for_prometheus()
        if "opentelemetry" in settings.exporters:
            self._instruments = _for_opentelemetry()

    def _for_prometheus(self) -> Exposition:
        if self._settings.admin is None and not has_own_clock(asyncio.get_running_loop()):
            raise ConfigurationError(
                "metrics='prometheus': Prometheus asks at /metrics of the admin endpoint, and there"
                " is none: give admin= as well, for example 127.0.0.1:8085, or set SPA_DAT_ADMIN"
            )
        try:
            from ..metrics._prometheus import Exposition
        except ImportError as error:
            raise ConfigurationError(
                "metrics='prometheus': prometheus_client is not installed: pip install"
                " 'spa-dat[metrics]'"
            ) from error
        return Exposition(self._read)

    def start(self) -> None:
        """Begin to report."""
        if self._instruments is not None:
            self._instruments.add(self._read)

    def stop(self) -> None:
        """Report no more."""
        if self._instruments is not None:
            self._instruments.remove(self._read)

    def _read(self) -> Reading:
        settings = self._settings
        assert settings.measurements is not None
        return Reading(
            self._health(), settings.measurements, settings.stats, settings.identity.ephemeral
        )


def _for_opentelemetry() -> Instruments:
    try:
        from ..metrics._opentelemetry import instruments
    except ImportError as error:
        raise ConfigurationError(
            "metrics='opentelemetry': the API of OpenTelemetry is not installed: pip install"
            " opentelemetry-api"
        ) from error
    return instruments()
