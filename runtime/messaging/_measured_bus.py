"""A bus that counts what is sent, for applications with metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ...transports import Bus, Envelope
from ...transports._delegating_bus import DelegatingBus
from ..metrics._conventions import system_of
from ..metrics._measurements import Measurements, error_type

if TYPE_CHECKING:
    from ...transports._units import Outcome

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

    def add_output(self, outcome: Outcome, envelope: Envelope, *, letter: bool = False) -> None:
        """See `Bus.add_output`."""
        self._bus.add_output(outcome, envelope, letter=letter)
        if not letter:
            self._count(envelope)

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
