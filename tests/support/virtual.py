"""An event loop whose clock jumps instead of waiting."""

from __future__ import annotations

from spa_dat.harness import Deadlock, VirtualEnvironment, VirtualLoop

__all__ = ["Deadlock", "VirtualEnvironment", "VirtualLoop"]
