"""The connections of a simulated MQTT broker: late packets, and connections that break."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

from ...transports import Envelope
from ...transports.memory import Broker, ClientLink
from ..loop._tasks_and_timers import OWNER
from ._harness_bus import BusWorld

__all__ = ["SimulatedConnection"]


class SimulatedConnection:
    """One connection; each of its packets may be late, or be the last one.

    Attributes:
        context: the context in which the client handles what arrives.
        owner: the life of the application that made the connection.
    """

    def __init__(self, broker: Broker, link: ClientLink, world: BusWorld) -> None:
        self.context = contextvars.copy_context()
        self.owner = self.context.get(OWNER)
        self._broker = broker
        self._link = link
        self._world = world
        self._dice = world.dice
        self._loop = world.loop
        self._broken = False
        self._soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._up = _PacketsInFlight(self, world.outside)
        self._down = _PacketsInFlight(self, self.context)

    @property
    def alive(self) -> bool:
        """Whether packets still arrive."""
        return self._link.open and not self._broken

    def up(self, function: Callable[..., None], *args: Any) -> None:
        """See `Wire.up`."""
        if not self._dice.active or self.owner is None:
            if len(self._up):
                self._up.add(0.0, function, args)
            elif self.alive:
                function(*args)
        elif not self._breaks():
            latency = self._dice.latency()
            if latency or len(self._up):
                self._up.add(latency, function, args)
            elif self.alive:
                function(*args)

    def acknowledge(self, token: int) -> None:
        """See `Wire.acknowledge`."""
        link = self._link
        stored = link.in_flight.get(token)
        if stored is not None:
            envelope = stored.envelope
            self._world.trace.add(link.client_id, "acknowledge", envelope.topic, envelope.id)
        self.up(link.queue.acknowledge, link, token)

    def delivering(
        self, on_message: Callable[[Envelope, int], None]
    ) -> Callable[[Envelope, int], None]:
        """Wrap the client's callback, so that each message is traced."""
        add, client = self._world.trace.add, self._link.client_id

        def deliver(envelope: Envelope, token: int) -> None:
            what = "redeliver" if envelope.redelivered else "deliver"
            add(client, what, envelope.topic, envelope.id)
            on_message(envelope, token)

        return deliver

    def down(self, function: Callable[..., None], *args: Any) -> None:
        """See `Wire.down`."""
        latency = 0.0
        if self._dice.active and self.owner is not None:
            if self._breaks():
                return
            latency = self._dice.latency()
        if latency or len(self._down):
            self._down.add(latency, function, args)
            return
        if not self._soon:
            self._loop.call_soon(self._arrive, context=self.context)
        self._soon.append((function, args))

    def _arrive(self) -> None:
        arriving, self._soon = self._soon, []
        for function, args in arriving:
            if not self.alive:
                return
            function(*args)

    def _breaks(self) -> bool:
        if self._broken:
            return True
        if not self._dice.strikes(self._dice.faults.drop):
            return False
        self._broken = True
        self._world.trace.add(self._link.client_id, "drop")
        noticed = self._dice.seconds()
        self._loop.call_later(noticed, self._end, context=self._world.outside)
        return True

    def _end(self) -> None:
        if self._link.open:
            self._broker.drop(self._link)


class _PacketsInFlight:
    """The packets in flight in one direction; some are late, but they stay in order."""

    def __init__(self, wire: SimulatedConnection, context: contextvars.Context) -> None:
        self._wire = wire
        self._context = context
        self._loop: asyncio.AbstractEventLoop = wire._loop
        self._packets: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._last = 0.0

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, latency: float, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Send a packet that takes so many seconds."""
        self._last = max(self._last, self._loop.time() + latency)
        self._packets.append((function, args))
        self._loop.call_at(self._last, self._arrive, context=self._context)

    def _arrive(self) -> None:
        function, args = self._packets.popleft()
        if self._wire.alive:
            function(*args)
