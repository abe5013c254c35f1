"""A bus that counts what is sent, for applications with metrics."""

from __future__ import annotations

import asyncio

from ...transports import Bus, Envelope
from ...transports._delegating_bus import DelegatingBus
from ..metrics._conventions import system_of
from ..metrics._measurements import Measurements, error_type

__all__ = ["MeasuredBus"]


class MeasuredBus(DelegatingBus):
    """Counts the publishes, requests and replies that another bus is given, by actor.

    A post counts when the bus has taken it, and what is awaited when it has an outcome. Dead
    letters are no messages that an actor has sent.

    Args:
        bus: the other one.
        measurements: those of the application.
        address: that of the bus.
    """

    def __init__(self, bus: Bus, measurements: Measurements, address: str) -> None:
        super().__init__(bus)
        self._sent = measurements.sent
        self._system = system_of(address)

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        """See `Bus.post`."""
        try:
            posted = self._bus.post(envelope)
        except Exception as error:
            self._count(envelope, error)
            raise
        self._count(envelope)
        return posted

    def output_of(self, envelope: Envelope, *, letter: bool = False) -> object:
        """See `Bus.output_of`."""
        output = self._bus.output_of(envelope, letter=letter)
        if not letter:
            self._count(envelope)
        return output

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
