"""A network in memory: connections that lead to a function in the same process."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ._tasks_and_timers import OWNER

__all__ = ["Direction", "Network", "ServerConnection"]

_Accept = Callable[["ServerConnection"], None]


class Network:
    """Hosts that can be reached from one event loop without sockets.

    A `VirtualLoop` asks its ``network`` first when something connects.

    Args:
        loop: the event loop.
        outside: the context in which hosts run; None for the context in which the network is
            made.

    Attributes:
        connections: the open ones, oldest first.
        on_connect: called with each new connection, before its host sees it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outside: Context | None = None) -> None:
        self.loop = loop
        self.outside: Context = outside or contextvars.copy_context()
        self.connections: list[ServerConnection] = []
        self.on_connect: Callable[[ServerConnection], None] | None = None
        self._hosts: dict[str, dict[int, _Accept | None]] = {}

    def listen(self, host: str, port: int, accept: _Accept) -> None:
        """Pass connections to this address to a function.

        Args:
            host: its name. All ports of the host belong to this network from now on.
            port: the number of the port.
            accept: called with the server's end of each new connection; sets its ``on_data``
                and ``on_close``.
        """
        self._hosts.setdefault(host, {})[port] = accept

    def refuse(self, host: str, port: int) -> None:
        """End `listen`: refuse new connections, and leave open ones alone."""
        self._hosts.setdefault(host, {})[port] = None

    def claims(self, host: object) -> bool:
        """Tell whether the host belongs to this network."""
        return host in self._hosts

    async def connect(
        self, make_protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect; return the client's end, as `asyncio.loop.create_connection` does.

        Raises:
            ConnectionRefusedError: nothing listens there.
        """
        await asyncio.sleep(0)
        accept = self._hosts.get(host, {}).get(port)
        if accept is None:
            raise ConnectionRefusedError(f"nothing listens at {host}:{port}")
        connection = ServerConnection(self, host, port)
        protocol = make_protocol()
        transport = connection.attach(protocol)
        self.connections.append(connection)
        if self.on_connect is not None:
            self.on_connect(connection)
        self.loop.call_soon(accept, connection, context=self.outside)
        protocol.connection_made(transport)
        await asyncio.sleep(0)
        return transport, protocol

    def kill(self, owner: object) -> None:
        """End all connections of an owner, as happens when its process ends.

        The owner receives nothing any more; the hosts see the connections close.
        """
        for connection in list(self.connections):
            if connection.owner is owner:
                connection.vanish()


class ServerConnection:
    """The server's end of a connection.

    Args:
        network: the network it belongs to.
        host: the host that the client has connected to.
        port: the port.

    Attributes:
        owner: the value of `OWNER` where the client connected.
        context: a copy of the context that connected; data that arrives at the client is handled
            in it.
        up: the direction to the server.
        down: the direction to the client.
        on_data: called with bytes that have arrived at the server.
        on_close: called once, when the client has closed the connection or it was lost; not
            after `close`.
        name: what the server calls the client.
    """

    def __init__(self, network: Network, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.context: Context = contextvars.copy_context()
        self.owner: Any | None = self.context.get(OWNER)
        self.name = ""
        self.on_data: Callable[[bytes], None] = _ignore
        self.on_close: Callable[[], None] = _nothing
        self.up: Direction = Direction(self, network, network.outside, self._at_server)
        self.down: Direction = Direction(self, network, self.context, self._at_client)
        self._network = network
        self._transport: _ClientTransport | None = None
        self._open = True
        self._silent = False

    @property
    def open(self) -> bool:
        """Whether the server's end is open."""
        return self._open

    @property
    def silent(self) -> bool:
        """Whether nothing arrives any more, although neither end has noticed."""
        return self._silent

    def attach(self, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        """Make and return the client's end."""
        self._transport = _ClientTransport(self._network.loop, self, protocol)
        return self._transport

    def send(self, data: bytes) -> None:
        """Send to the client; do nothing if the connection has ended."""
        if self._open:
            self.down.add(data)

    def close(self) -> None:
        """Close it; data sent before still arrives."""
        if self._open:
            self._end()
            self.down.add(b"")

    def reset(self, error: OSError | None = None) -> None:
        """Break it: both ends notice at once, and data on its way is lost.

        Args:
            error: raised at the client; None for ConnectionResetError.
        """
        was_open = self._open
        self._silent = True
        self._end()
        if was_open:
            self._network.loop.call_soon(self.on_close, context=self._network.outside)
        if self._transport is not None:
            self._transport.lose(error or ConnectionResetError("the connection was reset"))

    def fall_silent(self) -> None:
        """Deliver nothing any more, without either end noticing before `reset`."""
        self._silent = True

    def vanish(self) -> None:
        """Close the connection for the server only, as if the client's process had ended."""
        self._silent = True
        if self._transport is not None:
            self._transport.forget()
        if self._open:
            self._end()
            self._network.loop.call_soon(self.on_close, context=self._network.outside)

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._network.connections.remove(self)

    def _at_server(self, data: bytes) -> None:
        if not self._open:
            if data and not self._silent and self._transport is not None:
                self._transport.lose(
                    ConnectionResetError("the other end has closed the connection")
                )
        elif data:
            self.on_data(data)
        else:
            self._end()
            self.on_close()

    def _at_client(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.arrived(data)


class Direction:
    """One direction of a connection; segments always stay in order.

    Attributes:
        delay: called with each segment as it is sent (b"" is the end of the stream); returns the
            seconds until it arrives. It may also make the connection fall silent. None for no
            delay.
    """

    def __init__(
        self,
        connection: ServerConnection,
        network: Network,
        context: Context,
        deliver: Callable[[bytes], None],
    ) -> None:
        self.delay: Callable[[bytes], float] | None = None
        self._connection = connection
        self._loop = network.loop
        self._context = context
        self._deliver = deliver
        self._segments: deque[tuple[float, bytes]] = deque()
        self._last = 0.0
        self._scheduled = False

    def __len__(self) -> int:
        """Return the number of segments on their way."""
        return len(self._segments)

    def add(self, data: bytes) -> None:
        """Send a segment; b"" is the end of the stream."""
        latency = 0.0 if self.delay is None else self.delay(data)
        if self._connection.silent:
            return
        self._last = max(self._last, self._loop.time() + latency)
        self._segments.append((self._last, data))
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        due = self._segments[0][0]
        if due <= self._loop.time():
            self._loop.call_soon(self._arrive, context=self._context)
        else:
            self._loop.call_at(due, self._arrive, context=self._context)

    def _arrive(self) -> None:
        self._scheduled = False
        now = self._loop.time()
        together: list[bytes] = []
        ended = False
        while self._segments and self._segments[0][0] <= now:
            data = self._segments.popleft()[1]
            together.append(data)
            ended = ended or not data
        if self._segments:
            self._schedule()
        if not self._connection.silent:
            data = b"".join(together)
            if data:
                self._deliver(data)
            if ended and not self._connection.silent:
                self._deliver(b"")


class _ClientTransport(asyncio.Transport):
    """The client's end of a connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: ServerConnection, protocol: Any
    ) -> None:
        super().__init__({"peername": (connection.host, connection.port)})
        self._loop = loop
        self._connection = connection
        self._protocol = protocol
        self._closing = False
        self._paused = False
        self._held: deque[bytes] = deque()

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        if self._held:
            self._loop.call_soon(self._release, context=self._connection.context)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closing:
            self._connection.up.add(bytes(data))

    def write_eof(self) -> None:
        if not self._closing:
            self._connection.up.add(b"")

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore the limits: writing never has to wait."""

    def close(self) -> None:
        if not self._closing:
            self._connection.up.add(b"")
            self._lost(None)

    def abort(self) -> None:
        self.close()

    def lose(self, error: OSError) -> None:
        """End the connection with an error."""
        if not self._closing:
            self._lost(error)

    def forget(self) -> None:
        """Tell the protocol nothing any more."""
        self._closing = True
        self._held.clear()

    def arrived(self, data: bytes) -> None:
        """Take data from the server; b"" is the end of the stream."""
        if self._paused or self._held:
            self._held.append(data)
        else:
            self._hand_over(data)

    def _release(self) -> None:
        while self._held and not self._paused:
            self._hand_over(self._held.popleft())

    def _hand_over(self, data: bytes) -> None:
        if self._closing:
            return
        if data:
            self._protocol.data_received(data)
        elif not self._protocol.eof_received():
            self.close()

    def _lost(self, error: OSError | None) -> None:
        self._closing = True
        self._held.clear()
        self._loop.call_soon(
            self._protocol.connection_lost, error, context=self._connection.context
        )


def _ignore(data: bytes) -> None:
    pass


def _nothing() -> None:
    pass
