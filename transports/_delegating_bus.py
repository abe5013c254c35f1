"""A bus that leaves everything to another one, for those that do something else besides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._contract import Bus, Consumer, Receiver, Subscription
from ._envelope import Envelope

if TYPE_CHECKING:
    from ._units import Outcome

__all__ = ["DelegatingBus"]


class DelegatingBus(Bus):
    """Leaves everything to another bus; derived classes override what they are interested in.

    Args:
        bus: the other one.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        """Return what only buses of this kind have."""
        return getattr(self._bus, name)

    @property
    def max_payload(self) -> int:  # type: ignore[override]
        """See `Bus`. A broker may lower it when the bus has connected."""
        return self._bus.max_payload

    @property
    def max_received(self) -> int | None:  # type: ignore[override]
        """See `Bus`."""
        return self._bus.max_received

    @property
    def connected(self) -> bool:  # type: ignore[override]
        """See `Bus`."""
        return self._bus.connected

    @property
    def connected_at(self) -> float | None:  # type: ignore[override]
        """See `Bus`."""
        return self._bus.connected_at

    @property
    def trouble(self) -> str | None:
        """See `Bus.trouble`."""
        return self._bus.trouble

    @property
    def pending(self) -> int | None:
        """See `Bus.pending`."""
        return self._bus.pending

    async def start(self, on_reply: Callable[[str, Envelope], None]) -> None:
        """See `Bus.start`."""
        await self._bus.start(on_reply)

    def reply_address(self, correlation: str) -> str:
        """See `Bus.reply_address`."""
        return self._bus.reply_address(correlation)

    def consumer(self, subscription: Subscription, receiver: Receiver) -> Consumer:
        """See `Bus.consumer`."""
        return self._bus.consumer(subscription, receiver)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """See `Bus.post`."""
        return self._bus.post(envelope)

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.publish`."""
        await self._bus.publish(envelope, timeout=timeout)

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.park`."""
        await self._bus.park(envelope, timeout=timeout)

    async def unpark(self, letter: Envelope, *, timeout: float) -> None:
        """See `Bus.unpark`."""
        await self._bus.unpark(letter, timeout=timeout)

    def take_commands(self, on_command: Callable[[Envelope], None]) -> None:
        """See `Bus.take_commands`."""
        self._bus.take_commands(on_command)

    def opened(self, envelope: Envelope, wire: str | None = None) -> Envelope:
        """See `Bus.opened`."""
        return self._bus.opened(envelope, wire)

    def add_output(self, outcome: Outcome, envelope: Envelope, *, letter: bool = False) -> None:
        """See `Bus.add_output`."""
        self._bus.add_output(outcome, envelope, letter=letter)

    def add_removal(self, outcome: Outcome, letter: Envelope) -> None:
        """See `Bus.add_removal`."""
        self._bus.add_removal(outcome, letter)

    async def drain(self) -> None:
        """See `Bus.drain`."""
        await self._bus.drain()

    async def room(self) -> None:
        """See `Bus.room`."""
        await self._bus.room()

    async def close(self) -> None:
        """See `Bus.close`."""
        await self._bus.close()
