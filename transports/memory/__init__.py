"""A broker in the process, without any network."""

from __future__ import annotations

from ._broker import Broker
from ._config import MemoryConfig
from ._faults import Faults
from ._provider import MemoryProvider

__all__ = ["Broker", "Faults", "MemoryConfig", "MemoryProvider"]
