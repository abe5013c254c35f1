"""A bus that counts what is sent, for applications with metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ...transports import Bus, Consumer, Envelope, Receiver, Subscription
from ..metrics._conventions import system_of
from ..metrics._measurements import Measurements, error_type

__all__ = ["MeasuredBus"]


class MeasuredBus(Bus):
    """Counts the publishes, requests and replies that another bus is given, by actor.

    A post counts when the bus has taken it, and what is awaited when it has an outcome.

    Args:
        bus: the other one.
        measurements: those of the application.
        address: that of the bus.
    """

    def __init__(self, bus: Bus, measurements: Measurements, address: str) -> None:
        self._bus = bus
        self._sent = measurements.sent
        self._system = system_of(address)
        self.max_payload = bus.max_payload
        self.max_received = bus.max_received

    def __getattr__(self, name: str) -> Any:
        """Return what only buses of this kind have."""
        return getattr(self._bus, name)

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
        try:
            posted = self._bus.post(envelope)
        except Exception as error:
            self._count(envelope, error)
            raise
        self._count(envelope)
        return posted

    async def publish(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.publish`."""
        try:
            await self._bus.publish(envelope, timeout=timeout)
        except Exception as error:
            self._count(envelope, error)
            raise
        self._count(envelope)

    def _count(self, envelope: Envelope, error: Exception | None = None) -> None:
        name = "" if error is None else error_type(error)
        # application/instance/actor
        _, _, actor = (envelope.source or "").partition("/")[2].partition("/")
        self._sent[actor, self._system, name] += 1

    async def room(self) -> None:
        """See `Bus.room`."""
        await self._bus.room()

    async def park(self, envelope: Envelope, *, timeout: float) -> None:
        """See `Bus.park`. Dead letters are no messages that an actor has sent."""
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

    async def drain(self) -> None:
        """See `Bus.drain`."""
        await self._bus.drain()

    async def close(self) -> None:
        """See `Bus.close`."""
        await self._bus.close()
