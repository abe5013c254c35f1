"""The units that the keys of a durable actor belong to, on a bus with transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ...transports._units import Unit
from ..routing._routed_deliveries import Route
from ..routing._router import Router

__all__ = ["KeyUnits"]

_log = get_logger("spa_dat")


class KeyUnits:
    """The units of one actor that this instance has, which change with time.

    Args:
        routes: returns the routes to the actor, at least one.

    Attributes:
        log: where it is logged that nothing can be found in them.
    """

    def __init__(self, routes: Callable[[], Sequence[Route]]) -> None:
        self._routes = routes
        self._due: dict[str, Unit] = {}
        self.log: LimitedLog = LimitedLog(_log)

    @property
    def router(self) -> Router:
        """The router of the only subscription of the actor."""
        return self._routes()[0].router

    def __iter__(self) -> Iterator[Unit]:
        units = dict.fromkeys(tracker.unit for tracker in self.router.trackers)
        return (unit for unit in units if unit is not None)

    def numbered(self, number: int | None) -> Unit | None:
        """Return the unit with a number, if this instance has it."""
        return next((unit for unit in self if unit.number == number and not unit.over), None)

    @property
    def stay(self) -> bool:
        """Whether there are some, and none is about to be taken away, as in a rebalance."""
        units = [*self]
        return bool(units) and not any(unit.over for unit in units)

    def look(self, most: int) -> asyncio.Future[Sequence[tuple[str, float]]]:
        """Return the keys in which something is to be done first, and when, in that order."""
        return asyncio.ensure_future(self._look(most))

    async def _look(self, most: int) -> Sequence[tuple[str, float]]:
        found: list[tuple[float, str]] = []
        due: dict[str, Unit] = {}
        for unit in tuple(self):
            for key, when in await unit.first_due(most):
                found.append((when, key))
                due[key] = unit
        self._due = due
        found.sort()
        return [(key, when) for when, key in found[:most]]

    def of_due(self, key: str) -> Unit | None:
        """Return the unit in which a key was found when it was looked last; None if it was not."""
        return self._due.get(key)
