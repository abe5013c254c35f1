"""A real Mosquitto broker for a test; see `spa_dat.testing`."""

from __future__ import annotations

from spa_dat._pytest import require
from spa_dat.testing import Mosquitto

__all__ = ["Mosquitto", "require_mosquitto"]


def require_mosquitto() -> None:
    """Skip the test where there is no Mosquitto; on CI fail it."""
    require(Mosquitto)
