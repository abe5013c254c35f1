"""Fault injection: faults that strike whole connections, actors and applications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...runtime.hosting._batch_source import BatchSource
from ...runtime.hosting._keyed_lane import KeyedSource
from ...runtime.hosting._lane import Lane
from ...transports import Delivery

if TYPE_CHECKING:
    from ._simulated_world import SimulatedWorld

__all__ = ["FaultInjector"]


class FaultInjector:
    """Injects faults into the applications of a world.

    Args:
        world: the world.
    """

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    def roll(self) -> None:
        """Let the dice decide which faults strike now, and inject those."""
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
        compacted = [bus for bus in world.buses.values() if bus.has_compacted_topics]
        # Not asked elsewhere: seeds keep their meaning.
        if compacted and dice.strikes(faults.compact):
            for bus in compacted:
                world.free(bus.compact)
        if dice.strikes(faults.crash_actor):
            lanes = [
                lane
                for tested in world.tested
                if tested.life is not None
                for lane in tested.lanes
                if lane.spec.kind != "producer"
            ]
            if lanes:
                self.restart(dice.choose(lanes))
        if dice.strikes(faults.crash):
            alive = [tested for tested in world.tested if tested.life is not None]
            if alive:
                victim = dice.choose(alive)
                world.free(victim.kill)
                victim.come_back(dice.seconds())

    def restart(self, lane: Lane) -> None:
        """Crash an actor; it starts again with the message that it was working on."""
        unfinished: Sequence[Delivery] = ()
        work = self._world.monitor.work_of(lane)
        if isinstance(lane.work_source, BatchSource | KeyedSource):
            unfinished = lane.work_source.current
        elif work is not None and isinstance(work.item, Delivery):
            unfinished = (work.item,)
        if self._world.free(lane.crash, unfinished):
            self._world.monitor.forget(lane)
            self._world.trace.add(lane.address, "restart")
