"""Spans of what an application does with messages, for OpenTelemetry.

app.use(Tracing())

It needs OpenTelemetry's API: ``pip install 'spa-dat[traces]'``.
"""

from __future__ import annotations

try:
    import opentelemetry.trace  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as _missing:
    raise ImportError(
        "spa_dat.tracing needs OpenTelemetry's API: pip install 'spa-dat[traces]'"
    ) from _missing

from .runtime.tracing._tracing import Tracing

__all__ = ["Tracing"]
