"""A TCP proxy that makes faults; see `spa_dat.testing`."""

from __future__ import annotations

from spa_dat.testing import Proxy

__all__ = ["Proxy"]
