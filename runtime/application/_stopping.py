"""Stopping: the reason for it, and the order of its steps."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..._logs import FIELD_PREFIX, get_logger
from ...actors import ActorSystem
from ...transports import Identity
from ..diagnostics._stop_report import StoppedActor, StopReport
from ..diagnostics._unclean_stop import GivenUp
from ..hosting._actor_runner import ActorRunner
from ..hosting._resource_manager import ResourceManager
from ..hosting._waiting_for_tasks import wait_for_each, wait_until
from ..messaging._bus_connection import BusConnection
from ..messaging._middleware import Middleware
from ..options._resources import LEAST_FOR_RESOURCES
from ..routing._router import Router

__all__ = [
    "StopReason",
    "close",
    "log_stop",
    "report_of_stop",
    "shielded_from_scopes",
    "stop_actors",
    "tell_middleware",
]

log = get_logger("spa_dat")

_SHORTEST = 0.1
_FOR_MIDDLEWARE = 5.0


class StopReason:
    """Why a run is to stop: somebody asked for it, or a failure. It is given once.

    An exit code that the program's own code asks for during a stop that somebody asked for has the
    last word. Made on the event loop; `failure` may be read in any thread.
    """

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exit: BaseException | None = None
        self._raised: BaseException | None = None

    @property
    def given(self) -> bool:
        """Whether a reason has been given."""
        return self._future.done()

    @property
    def failure(self) -> BaseException | None:
        """The failure; None if there is none."""
        return (self._future.exception() if self._future.done() else None) or self._exit

    @property
    def failure_to_raise(self) -> BaseException | None:
        """The failure, unless `wait` has raised it."""
        failure = self.failure
        return None if failure is self._raised else failure

    def give(self, failure: BaseException | None) -> None:
        """Give the reason, which must not have been given before.

        Args:
            failure: None when somebody asked for the stop.
        """
        if failure is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(failure)
            self._future.exception()  # `wait` raises it, but nobody has to call that

    def give_exit(self, error: BaseException) -> None:
        """Give the SystemExit, or KeyboardInterrupt, that was raised after the reason was given."""
        self._exit = self._exit or error

    async def wait(self) -> None:
        """Wait until a reason is given; raises the failure, if it is one."""
        await asyncio.wait((self._future,))
        self._raised = self.failure
        if self._raised is not None:
            raise self._raised


def shielded_from_scopes() -> AbstractContextManager[Any]:
    """Return a context in which no cancel scope of anyio around it cancels the task.

    Such a scope cancels again and again, so nothing that is awaited while the block inside it is
    left would ever be waited for. Any other cancellation passes.
    """
    scope = getattr(sys.modules.get("anyio"), "CancelScope", None)
    return nullcontext() if scope is None else scope(shield=True)


async def stop_actors(
    actors: Sequence[ActorRunner], routers: Sequence[Router], system: ActorSystem, deadline: float
) -> None:
    """Stop actors and the routers that feed them; errors are logged.

    Producers first, then the intake, then the handlers.

    Args:
        actors: the actors.
        routers: the routers that nobody else uses.
        system: where they run.
        deadline: loop time at which handlers that are still running are cut off.
    """
    # However long a producer's call takes, the handlers need time as well.
    half = (asyncio.get_running_loop().time() + deadline) / 2
    await wait_for_each(actor.calls.stop(half) for actor in actors if actor.calls is not None)
    for router in routers:
        router.stop_intake()
    for actor in actors:
        actor.stop_attempts()
    await wait_for_each(actor.stop(deadline) for actor in actors)
    await wait_for_each(router.close(system, deadline) for router in routers)


async def close(
    connections: Sequence[BusConnection],
    manager: ResourceManager,
    failure: BaseException | None,
    deadline: float,
) -> None:
    """Wait for confirmations, close the resources, disconnect; errors are logged.

    Args:
        connections: the buses.
        manager: closes the resources, which get at least five seconds.
        failure: what the application ended with.
        deadline: loop time until which to wait.
    """
    now = asyncio.get_running_loop().time()
    deadline = max(deadline, now + _SHORTEST)
    await wait_for_each(wait_until(deadline, connection.bus.drain()) for connection in connections)
    await manager.close(max(deadline - now, LEAST_FOR_RESOURCES))
    await wait_for_each(connection.close(failure) for connection in connections)


async def tell_middleware(middleware: Sequence[Middleware]) -> None:
    """Tell middleware that the run is over; errors are logged."""
    deadline = asyncio.get_running_loop().time() + _FOR_MIDDLEWARE
    await wait_for_each(wait_until(deadline, one.stopped()) for one in middleware)


def report_of_stop(
    identity: Identity,
    seconds: float,
    actors: Sequence[ActorRunner],
    routers: Iterable[Router],
    dead_letters: Callable[[str], int],
    given_up: GivenUp,
) -> StopReport:
    """Return the account of a run that has just stopped.

    Args:
        identity: the application's.
        seconds: how long the stop took.
        actors: all of the run.
        routers: all of the run.
        dead_letters: returns how many an actor has stored.
        given_up: what could not be finished.
    """
    handed_back: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    all_handed_back = all_dropped = 0
    for router in routers:
        kept, lost = router.left
        all_handed_back += kept
        all_dropped += lost
        for name in router.serves:
            handed_back[name] += kept
            dropped[name] += lost
    each = [
        StoppedActor(
            name=actor.name,
            handled=sum(lane.handled for lane in actor.lanes),
            dead_letters=dead_letters(actor.name),
            handed_back=handed_back[actor.name],
            dropped=dropped[actor.name],
            given_up=sum(given_up.messages[lane.name] for lane in actor.lanes),
        )
        for actor in actors
    ]
    return StopReport(
        application=identity.application,
        instance=identity.instance,
        seconds=seconds,
        handled=sum(actor.handled for actor in each),
        dead_letters=sum(actor.dead_letters for actor in each),
        handed_back=all_handed_back,
        dropped=all_dropped,
        given_up=tuple(given_up.reasons),
        actors=tuple(actor for actor in each if actor.has_numbers),
    )


def log_stop(report: StopReport) -> None:
    """Log the report in one line."""
    log.log(
        logging.INFO if report.clean else logging.WARNING,
        "application %r instance %r has stopped in %.1f s: %s",
        report.application,
        report.instance,
        report.seconds,
        report,
        about={
            f"{FIELD_PREFIX}application": report.application,
            f"{FIELD_PREFIX}instance": report.instance,
            f"{FIELD_PREFIX}stop_report": report.as_dict(),
        },
    )
