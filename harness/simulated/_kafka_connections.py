"""The connections of a simulated Kafka cluster, and the faults that strike them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from ..loop._network import Network, ServerConnection
from ._harness_bus import BusWorld

__all__ = ["KafkaConnections"]


class KafkaConnections:
    """All connections to one cluster.

    Args:
        world: the world they are in.
        network: the network they belong to.
        host: the host they lead to.
    """

    def __init__(self, world: BusWorld, network: Network, host: str) -> None:
        self._world = world
        self._dice = world.dice
        self._network = network
        self._host = host
        # What clients read from, with its owner; also of connections that have ended.
        self._readers: weakref.WeakKeyDictionary[asyncio.StreamReader, object] = (
            weakref.WeakKeyDictionary()
        )
        # Nothing arrives on them any more, and neither end has noticed.
        self._broken: list[ServerConnection] = []

    def accepting(
        self, accept: Callable[[ServerConnection], None]
    ) -> Callable[[ServerConnection], None]:
        """Wrap what the cluster does with a new connection, so that faults can strike it."""

        def accept_with_faults(connection: ServerConnection) -> None:
            self._remember(connection)
            connection.up.delay = connection.down.delay = lambda data: self._delay(connection)
            accept(connection)

        return accept_with_faults

    def clients(self) -> list[str]:
        """Return the ids of the clients that have a connection, in the order of connecting."""
        names = (connection.name for connection in self._all() if not connection.silent)
        return list(dict.fromkeys(name for name in names if name))

    def is_connected(self, client: str) -> bool:
        """Tell whether the client has a connection that works."""
        return any(
            connection.name == client and connection.open and not connection.silent
            for connection in self._all()
        )

    def under_way(self) -> str | None:
        """Describe a connection that is broken and nobody has noticed; None if there is none."""
        if not self._broken:
            return None
        return f"{self._broken[0].name}: its connection is breaking down"

    def reset(self, client: str) -> None:
        """Break all connections of a client."""
        for connection in self._all():
            if connection.name == client:
                connection.reset()

    def kill(self, owner: object) -> None:
        """End the connections of an owner as if its process had ended."""
        for connection in self._all():
            if connection.owner is owner:
                self._remember(connection)
                connection.vanish()
        for reader, whose in list(self._readers.items()):
            if whose is owner:
                # The client library warns of a connection that nobody has closed, unless it was
                # read to its end.
                reader._buffer.clear()  # type: ignore[attr-defined]
                reader.feed_eof()
        self._broken = [wire for wire in self._broken if wire.owner is not owner]

    def _all(self) -> list[ServerConnection]:
        return [wire for wire in self._network.connections if wire.host == self._host]

    def _remember(self, connection: ServerConnection) -> None:
        transport = connection._transport
        reader = None if transport is None else transport._protocol._stream_reader
        if reader is not None:
            self._readers[reader] = connection.owner

    def _delay(self, connection: ServerConnection) -> float:
        dice = self._dice
        if not dice.active or connection.owner is None or connection.silent:
            return 0.0
        if not dice.strikes(dice.faults.drop):
            return dice.latency()
        connection.fall_silent()
        self._broken.append(connection)
        world = self._world
        world.trace.add(connection.name, "drop")
        world.loop.call_later(dice.seconds(), self._notice, connection, context=world.outside)
        return 0.0

    def _notice(self, connection: ServerConnection) -> None:
        if connection in self._broken:
            self._broken.remove(connection)
            connection.reset()
