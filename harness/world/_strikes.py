"""Faults that strike whole connections, actors and applications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...runtime.hosting._batch_host import BatchHost
from ...runtime.hosting._host import Host
from ...transports import Delivery

if TYPE_CHECKING:
    from ._world import World

__all__ = ["Strikes"]


class Strikes:
    """What can befall the applications of a world.

    Args:
        world: the world.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def roll(self) -> None:
        """Let the dice decide whether any of it happens now."""
        world, dice = self._world, self._world.dice
        faults = dice.faults
        if dice.strikes(faults.cut):
            links = [
                (bus, client)
                for bus in world.buses.values()
                for client in bus.clients()
                if not client.startswith("harness.")
            ]
            if links:
                bus, client = dice.choose(links)
                world.free(bus.cut, client)
        if dice.strikes(faults.rebalance):
            for bus in world.buses.values():
                world.free(bus.rebalance)
        if dice.strikes(faults.crash_actor):
            hosts = [
                host
                for member in world.members
                if member.life is not None
                for host in member.hosts
                if host.spec.kind != "producer"
            ]
            if hosts:
                self.restart(dice.choose(hosts))
        if dice.strikes(faults.crash):
            alive = [member for member in world.members if member.life is not None]
            if alive:
                victim = dice.choose(alive)
                world.free(victim.kill)
                victim.come_back(dice.seconds())

    def restart(self, host: Host) -> None:
        """An actor loses what it has, and starts again with the message it was working on."""
        unfinished: Sequence[Delivery] = ()
        work = self._world.watch.work_of(host)
        if isinstance(host, BatchHost):
            unfinished = host.batch
        elif work is not None and isinstance(work.item, Delivery):
            unfinished = (work.item,)
        if self._world.free(host.crash, unfinished):
            self._world.watch.forget(host)
            self._world.trace.add(host.address, "restart")
