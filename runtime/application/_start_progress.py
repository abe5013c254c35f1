"""The progress of a start: what it waits for, and reporting that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..._logs import get_logger
from ...errors import ConfigurationError
from ..hosting._lane import Lane
from ..hosting._waiting_for_tasks import wait_for_all
from ..messaging._bus_connection import BusConnection
from ..registration._specs import Spec
from ..routing._router import Router

__all__ = [
    "StartProgress",
    "check_names",
    "connect",
    "connection_of",
    "start_of",
    "subscription_of",
]

log = get_logger("spa_dat")

# Longer than a start tries to connect by default, because that ends with an error of its own.
_FIRST = 12.0
_NEXT = 30.0
# Of a thousand actors that wait, most wait for the same.
_MOST_NAMED = 5

Named = tuple[Callable[[], str], Awaitable[Any]]


class StartProgress:
    """The steps of a start: waits for one after another, and logs what a long wait is for.

    It logs after 12 seconds, and then every 30 seconds.

    Args:
        application: the application's name.
        check: called after each wait; raises if the start must not continue.
    """

    def __init__(self, application: str, check: Callable[[], None]) -> None:
        self._application = application
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._pending: dict[asyncio.Future[Any], Callable[[], str]] = {}
        self._timer = self._loop.call_later(_FIRST, self._tell)

    async def all(self, named: Iterable[Named]) -> None:
        """Wait for several things at once; the first error cancels the others and is raised.

        Args:
            named: what to wait for, each with a function that describes it as it is at the moment.
        """
        pending: dict[asyncio.Future[Any], Callable[[], str]] = {
            asyncio.ensure_future(awaitable): name for name, awaitable in named
        }
        self._pending = pending
        try:
            await wait_for_all(pending)
        finally:
            self._pending = {}
        self._check()

    def __str__(self) -> str:
        """Describe what the start is waiting for."""
        left = [name for future, name in self._pending.items() if not future.done()]
        named = [name() for name in left[:_MOST_NAMED]]
        if len(left) > _MOST_NAMED:
            named.append(f"{len(left) - _MOST_NAMED} more")
        return f"is starting and is waiting for {', '.join(named)}" if named else "is starting"

    def end(self) -> None:
        """Log nothing more."""
        self._timer.cancel()

    def _tell(self) -> None:
        took = self._loop.time() - self._began
        state = str(self)
        log.warning("%.0f s after its start, application %r %s", took, self._application, state)
        self._timer = self._loop.call_later(_NEXT, self._tell)


def check_names(specs: Iterable[Spec[Any]]) -> None:
    """Raise ConfigurationError if two actors have the same name."""
    names: dict[str, None] = {}
    for spec in specs:
        if spec.name in names:
            raise ConfigurationError(
                f"two actors are named {spec.name!r}; give one of them another name, with the"
                " class attribute name or with configure(spec, name=...), or remove(spec) one"
            )
        names[spec.name] = None


async def connect(connection: BusConnection) -> None:
    """Start a connection; raises as `Bus.start` does."""
    await connection.start()
    application = connection.surroundings.identity.application
    log.info("application %r is connected to %s", application, connection.provider.address)


def connection_of(connection: BusConnection) -> str:
    """Describe what the start of a connection waits for."""
    return f"a connection to {connection.provider.address}"


def subscription_of(router: Router) -> str:
    """Describe what the start of a router waits for, with the reason if that is known."""
    why = router.trouble
    return f"subscription {router.name!r}" + (f" ({why})" if why is not None else "")


def start_of(lane: Lane) -> str:
    """Describe what the start of an actor waits for, with the line that it is at."""
    where = lane.running_code.place
    return f"actor {lane.name!r}" if where is None else f"actor {lane.name!r} ({where})"
