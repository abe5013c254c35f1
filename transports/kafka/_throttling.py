"""Throttling: saying that a cluster makes us wait, as more was sent or fetched than it allows."""

from __future__ import annotations

from collections import Counter

from ..._limited_log import LimitedLog
from ..._logs import get_logger

__all__ = ["Throttling"]

_log = get_logger(__name__)

# Milliseconds. Shorter waits are how a quota is kept.
_LONG = 1_000


class Throttling:
    """Counts and logs long waits that a quota of the cluster causes.

    Args:
        name: whose, for log messages.
        stats: counts ``kafka.throttled``.
    """

    def __init__(self, name: str, stats: Counter[str]) -> None:
        self._name = name
        self._stats = stats
        self._log = LimitedLog(_log, first=1)

    def hear(self, milliseconds: int) -> None:
        """Take notice of a wait."""
        if milliseconds < _LONG:
            return
        self._stats["kafka.throttled"] += 1
        self._log.warning(
            "%s: a broker lets it wait for %.1f s, as it sends or fetches more than its quota"
            " allows; raise the quota of its user or client id",
            self._name,
            milliseconds / 1000,
        )
