"""The live picture: what the actors of a run are doing, measured while there is an endpoint."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..._texts import escaped
from ...transports import Delivery, Envelope
from ..diagnostics._figures import ActorFigures, PublishFigures, failure_of
from ..diagnostics._health import ActorHealth
from ..handling._measured_processor import MeasuredProcessor
from ..hosting._actor_observer import Receive
from ..hosting._actor_runner import ActorRunner
from ..hosting._lane import Lane
from ..hosting._timers import ScheduledCall
from ..messaging._counted_publishes import CountingConnection
from ..routing._routed_deliveries import RoutedDelivery

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun

__all__ = ["LiveObserver"]

# Seconds. Times are those of the last turn and the one before.
_TURN = 15.0
# Seconds that the event loop may be kept busy at a time.
_SLICE = 0.005


class LiveObserver:
    """Measures what the actors of a run do, and describes it; an `Observer`.

    Without an admin endpoint there is none, and messages cost nothing for it.

    Args:
        run: the run.
    """

    def __init__(self, run: AdministeredRun) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._figures: dict[str, ActorFigures] = {}
        # Of an actor, by the addresses of its lanes, and of the application for all others.
        self._by_address: dict[str, ActorFigures] = {}
        self._of_application = ActorFigures()
        self._sources: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, actors: Iterable[ActorRunner]) -> None:
        """Begin with these actors, which have not been started yet."""
        for actor in actors:
            figures = self._figures[actor.name] = ActorFigures()
            self._sources[actor.address] = actor.name
            for lane in actor.lanes:
                self._by_address[lane.address] = figures
            published = _published_through(actor.connection)
            if published is not None:
                published.take(actor.spec.filters)
        self._timer = self._loop.call_later(_TURN, self._turn)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._timer = self._loop.call_later(_TURN, self._turn)
        for figures in self._figures.values():
            figures.times.turn()

    # The observer.

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """See `Observer.receiving`."""
        figures = self._figures[lane.actor_name]
        if isinstance(lane.processor, MeasuredProcessor) and lane.spec.kind != "producer":
            # Messages are counted in any case, and it is to measure anyway.
            lane.processor.times = figures.times
            return receive
        add, clock = figures.times.add, time.perf_counter_ns

        async def measured(instance: Any, item: Any) -> None:
            before, began = lane.tallies.finished, clock()
            await receive(instance, item)
            took = clock() - began
            if isinstance(item, Delivery | ScheduledCall):
                return
            if lane.spec.kind == "producer":
                figures.calls += 1
                add(took)
            elif lane.tallies.finished != before:
                add(took)

        return measured

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        """See `Observer.collected`."""
        if lane.finished_elsewhere is None:
            return
        # They go to a child process, which is as far as can be seen from here.
        figures = self._figures[lane.actor_name]
        for delivery in batch:
            figures.pass_on(delivery.route.filter.pattern)

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """See `Observer.failed`."""
        if where == "answer":
            # An answer like any other.
            return
        topic = None if envelope is None else envelope.topic
        failure = failure_of(self._run.settings.environment.now(), where, error, topic)
        self._by_address.get(actor, self._of_application).fail(failure)

    def troubled(self, actor: str, reason: str) -> None:
        """See `Observer.troubled`."""

    # What it looks like.

    async def document(self) -> bytes:
        """Return all that can be told, as JSON; see docs/production.md. Takes many small steps."""
        run = self._run
        # JSON cannot have all that the name of a file can.
        problems = {name: escaped(text) for name, text in run.health_report.problems.items()}
        identity = run.settings.identity
        actors = []
        until = self._loop.time() + _SLICE
        for actor in run.actors:
            actors.append(self._actor(actor, problems))
            if self._loop.time() > until:
                await asyncio.sleep(0)
                until = self._loop.time() + _SLICE
        publishes, left_out = self._publishes()
        return msgspec.json.encode(
            {
                "version": 1,
                "application": identity.application,
                "instance": identity.instance,
                "pid": os.getpid(),
                "state": run.health_report.state(problems),
                "problems": problems,
                "at": run.settings.environment.now(),
                "clock": self._loop.time(),
                "loop_lag": run.health_report.loop_lag,
                "actors": actors,
                "connections": run.health_report.connections,
                "publishes": publishes,
                "publishes_left_out": left_out,
                "receives": self._receives(),
                "failures": [*self._of_application.failures],
            }
        )

    def _actor(self, actor: ActorRunner, problems: Mapping[str, str]) -> dict[str, Any]:
        health = self._run.health_report.actor(actor)
        figures = self._figures.get(actor.name) or ActorFigures()
        options = actor.options
        in_process = options.placement == "process"
        counts = [count for lane in actor.lanes if (count := lane.finished_elsewhere) is not None]
        finished = figures.calls + sum(lane.tallies.finished for lane in actor.lanes)
        handled: int | None = sum(counts) if counts else finished
        if in_process and not counts:
            handled = None
        return {
            "name": actor.name,
            "kind": "producer" if actor.spec.kind == "producer" else "actor",
            "bus": health.bus,
            "topics": [filter_.text for filter_ in actor.spec.filters],
            "every": options.every,
            "state": self._state(actor, health),
            "problem": problems.get(actor.name),
            "handled": handled,
            "failed": figures.failed,
            "failures": [*figures.failures],
            "latency": figures.times.latency(),
            "mailbox": health.mailbox,
            "mailbox_bytes": health.mailbox_bytes,
            "mailbox_limit": options.mailbox * len(actor.mailboxes),
            "window": actor.window if actor.spec.filters else None,
            "in_work": health.in_work,
            "attempts": health.attempts,
            "retrying": None
            if in_process
            else sum(lane.work_source.processor.retrying for lane in actor.lanes),
            "oldest_unsettled": health.oldest_unsettled,
            "stalled": [
                {"where": escaped(call.where), "seconds": call.seconds} for call in health.stalled
            ],
            "dead_letters": health.dead_letters,
            "lag": health.lag,
            "keys": health.keys,
        }

    def _state(self, actor: ActorRunner, health: ActorHealth) -> str:
        if health.stopped:
            return "ended"
        if health.paused:
            return "paused"
        if not all(lane.up for lane in actor.lanes):
            return "starting"
        return "stalled" if health.stalled else "running"

    def _publishes(self) -> tuple[list[dict[str, Any]], int]:
        edges, left_out = [], 0
        for connection in self._run.connections:
            published = _published_through(connection)
            if published is None:
                continue
            left_out += published.left_out
            edges += [
                {
                    "actor": self._sources.get(edge.source),
                    "bus": connection.provider.address,
                    "topic": escaped(edge.topic),
                    "declared": edge.declared,
                    "count": edge.count,
                }
                for edge in published.edges
            ]
        return edges, left_out

    def _receives(self) -> list[dict[str, Any]]:
        edges = []
        for actor in self._run.actors:
            published = _published_through(actor.connection)
            counts: Counter[str] = Counter()
            if actor.name in self._figures:
                counts.update(self._figures[actor.name].passed_on)
            for lane in actor.lanes:
                counts.update(lane.tallies.by_pattern)
            patterns = dict.fromkeys(filter_.pattern for filter_ in actor.spec.filters)
            edges += [
                {
                    "actor": actor.name,
                    "bus": actor.connection.provider.address,
                    "topic": escaped(pattern if published is None else published.text_of(pattern)),
                    "count": counts[pattern],
                }
                for pattern in (patterns | dict.fromkeys(counts))
            ]
        return edges


def _published_through(connection: object) -> PublishFigures | None:
    return connection.figures if isinstance(connection, CountingConnection) else None
