"""The provider of the memory transport."""

from __future__ import annotations

import asyncio
import itertools
from weakref import WeakKeyDictionary

from .._contract import Bus, SocketProvider, Surroundings
from .._envelope import Envelope
from .._wire_formats import WIRES, WireName
from ..mqtt import check_filter, check_message, check_topic
from ._broker import Broker
from ._bus import MemoryBus
from ._config import MemoryConfig
from ._queue import QueueLimits

__all__ = ["PRIVATE", "MemoryProvider"]

_named: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Broker]] = WeakKeyDictionary()
_numbers = itertools.count(1)
PRIVATE = "memory://~"
"""How the address of a provider without a name begins; no name contains '~'."""


class MemoryProvider(SocketProvider):
    """Connects applications to a broker in the process.

    With a name in the configuration, all providers of that name in one event loop share a broker,
    whose limits are those of the first one in use.
    Without one, this provider has a private broker, which keeps its contents from one event loop to
    the next.

    Args:
        config: the options; None for the defaults.
    """

    config: MemoryConfig
    wires: tuple[WireName, ...] = WIRES

    def __init__(self, config: MemoryConfig | None = None) -> None:
        self.config: MemoryConfig = config or MemoryConfig()
        self.default_qos: int = self.config.qos
        self.default_window: int = self.config.window
        self.default_window_bytes: int = self.config.window_bytes
        self._address = self.config.address if self.config.name else f"{PRIVATE}{next(_numbers)}"
        self._limits = QueueLimits(self.config.queue, self.config.queue_bytes)
        self._own = None if self.config.name else Broker(self._address, self._limits)

    @property
    def address(self) -> str:
        return self._address

    @property
    def broker(self) -> Broker:
        """The broker; with a name, that of the running event loop.

        Raises:
            RuntimeError: it has a name, and no event loop is running.
        """
        if self._own is not None:
            return self._own
        brokers = _named.setdefault(asyncio.get_running_loop(), {})
        return brokers.setdefault(self.config.name, Broker(self._address, self._limits))

    def open(self, surroundings: Surroundings) -> Bus:
        return MemoryBus(self.broker, surroundings, self.config)

    def check_topic(self, topic: str) -> None:
        check_topic(topic)

    def check_filter(self, pattern: str) -> None:
        check_filter(pattern)

    def check_message(self, envelope: Envelope) -> None:
        check_message(envelope)
