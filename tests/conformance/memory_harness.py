"""The memory transport."""

from __future__ import annotations

import asyncio
from typing import Any

from spa_dat.testing.conformance import TransportHarness, VirtualLoop
from spa_dat.transports import MemoryConfig, MemoryProvider, SocketProvider

__all__ = ["MemoryHarness"]


class MemoryHarness(TransportHarness):
    """The broker in the process, which needs no network, so its tests need no time."""

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()

    async def start_broker(self) -> None:
        self._faults = MemoryProvider(MemoryConfig(name="conformance")).broker.faults

    async def stop_broker(self) -> None:
        """Do nothing: the broker goes with the event loop."""

    def provider(self, **options: Any) -> SocketProvider:
        return MemoryProvider(MemoryConfig(name="conformance", **options))

    async def cut(self) -> None:
        self._faults.disconnect()

    async def go_away(self) -> None:
        self._faults.refuse_connections()
        self._faults.disconnect()

    async def come_back(self) -> None:
        self._faults.allow()
