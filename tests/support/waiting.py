"""Waiting for something to become true."""

from __future__ import annotations

import functools

from spa_dat.runtime.testing._waiting import eventually as _eventually

__all__ = ["eventually"]

# On a busy machine everything takes long; a test that waits in vain may take its time.
eventually = functools.partial(_eventually, timeout=60.0)
