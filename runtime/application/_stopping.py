"""The order of stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...actors import ActorSystem
from ..hosting._actor_runner import ActorRunner
from ..hosting._waiting import wait_for_each, wait_until
from ..messaging._connection import Link
from ..registration._resources import LEAST_FOR_RESOURCES, ResourceKeeper
from ..routing._router import Router

__all__ = ["close", "stop_actors"]

_SHORTEST = 0.1


async def stop_actors(
    actors: Sequence[ActorRunner], routers: Sequence[Router], system: ActorSystem, deadline: float
) -> None:
    """Stop actors and what brings them messages; errors are logged.

    Producers first, then the intake, then the handlers.

    Args:
        actors: the actors.
        routers: what only they use.
        system: where they run.
        deadline: loop time at which handlers that still run are cut off.
    """
    # Whatever a producer does with its call: the handlers need time, too.
    half = (asyncio.get_running_loop().time() + deadline) / 2
    await wait_for_each(actor.stop_producing(half) for actor in actors)
    for router in routers:
        router.stop_intake()
    for actor in actors:
        actor.stop_attempts()
    await wait_for_each(actor.stop(deadline) for actor in actors)
    await wait_for_each(router.close(system) for router in routers)


async def close(
    links: Sequence[Link], keeper: ResourceKeeper, failure: BaseException | None, deadline: float
) -> None:
    """Confirm what was published, leave the resources, disconnect; errors are logged.

    Args:
        links: the buses.
        keeper: of the resources, which get five seconds at least.
        failure: what the application ended with.
        deadline: loop time until which to wait.
    """
    now = asyncio.get_running_loop().time()
    deadline = max(deadline, now + _SHORTEST)
    await wait_for_each(wait_until(deadline, link.bus.drain()) for link in links)
    await keeper.close(max(deadline - now, LEAST_FOR_RESOURCES))
    await wait_for_each(link.close(failure) for link in links)
