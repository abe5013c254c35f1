"""Storing what could not be handled."""

from __future__ import annotations

from typing import Protocol

from ..errors import MessageTooLarge
from ..transports import Delivery, Envelope
from ._dead_letter import abridged, dead_letter
from ._link import Link
from ._pauses import LONGEST_PAUSE, SHORTEST_PAUSE, Pauses

__all__ = ["Parking", "ParkingHost"]

_TIMEOUT = 30.0


class ParkingHost(Protocol):
    """What parking needs of the actor."""

    source: str

    def may_park(self) -> bool:
        """Whether there is room for one more dead letter."""

    def parked(self) -> None:
        """A dead letter was stored."""

    def failed(self, where: str, error: BaseException, envelope: Envelope | None = None) -> None:
        """Let the observer, if there is one, know of a failure."""

    def troubled(self, reason: str) -> None:
        """Let the observer, if there is one, know why the actor can not go on as it should."""

    def unhealthy(self, reason: str) -> None:
        """The actor can not go on as it should."""


class Parking:
    """Stores the dead letters of one actor.

    Args:
        host: the actor.
        link: the actor's bus.
        pauses: the actor's waits.
        first: seconds before a letter that was refused is tried again; the wait then grows.
    """

    def __init__(self, host: ParkingHost, link: Link, pauses: Pauses, first: float) -> None:
        self._host = host
        self._link = link
        self._pauses = pauses
        self._first = first or SHORTEST_PAUSE

    async def park(self, delivery: Delivery, error: BaseException) -> None:
        """Store a dead letter, then settle; keeps trying until it is stored or the actor stops."""
        letter = dead_letter(
            delivery.envelope,
            actor=self._host.source,
            attempts=delivery.attempts,
            error=error,
            environment=self._link.surroundings.environment,
        )
        seconds = self._first
        is_last = False
        while True:
            problem: Exception | str
            if self._host.may_park():
                try:
                    await self._link.bus.park(letter, timeout=_TIMEOUT)
                except Exception as refused:  # noqa: BLE001 (tried again, whatever it is)
                    smaller = abridged(letter) if isinstance(refused, MessageTooLarge) else None
                    if smaller is not None:
                        letter = smaller
                        continue
                    problem = refused
                else:
                    self._host.parked()
                    delivery.settle()
                    return
            else:
                problem = "the limit of dead letters is reached"
            self._link.surroundings.stats["dead_letters.refused"] += 1
            self._host.unhealthy(f"a dead letter can not be stored: {problem}")
            seconds = min(seconds * 2, LONGEST_PAUSE)
            if is_last:
                return
            if not await self._pauses.wait(seconds):
                if delivery.route.router.give_back(delivery):
                    return
                is_last = True
