"""Exporters: for whom an application has metrics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from ...errors import ConfigurationError

__all__ = ["Exporter", "exporters_given"]

Exporter: TypeAlias = Literal["prometheus", "opentelemetry"]
_NAMES: tuple[Exporter, ...] = get_args(Exporter)
_EXPORTERS = "SPA_DAT_METRICS"


def exporters_given(given: str | Sequence[str] | None) -> tuple[Exporter, ...]:
    """Return the exporters that were given, or else those in the environment.

    Args:
        given: one or several; None for what the environment says, separated by commas.

    Raises:
        ConfigurationError: one is unknown.
    """
    whose = "metrics="
    if given is None:
        whose, given = f"{_EXPORTERS}=", os.environ.get(_EXPORTERS, "").split(",")
    if not isinstance(given, Iterable):
        raise ConfigurationError(
            f"metrics={given!r:.200}: give {' or '.join(map(repr, _NAMES))}, or a list of both"
        )
    names = [given] if isinstance(given, str) else list(given)
    wanted = [name.strip() if isinstance(name, str) else name for name in names]
    wanted = [name for name in wanted if name != ""]
    for name in wanted:
        if name not in _NAMES:
            raise ConfigurationError(
                f"{whose}{name!r:.200} is unknown; give {' or '.join(map(repr, _NAMES))}, or both"
            )
    return tuple(name for name in _NAMES if name in wanted)
