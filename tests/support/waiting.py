"""Waiting for something to become true."""

from __future__ import annotations

from spa_dat.runtime.testing._waiting import eventually

__all__ = ["eventually"]
