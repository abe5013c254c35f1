"""The memory transport: a broker in the process, without any network."""

from __future__ import annotations

from ._broker import Broker
from ._bus import MemoryBus
from ._config import MemoryConfig
from ._consumer import MemoryConsumer
from ._faults import BrokerFaults
from ._provider import MemoryProvider
from ._queue import ClientLink, Queue, Wire

__all__ = [
    "Broker",
    "BrokerFaults",
    "ClientLink",
    "MemoryBus",
    "MemoryConfig",
    "MemoryConsumer",
    "MemoryProvider",
    "Queue",
    "Wire",
]
