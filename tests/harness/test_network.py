"""Connections without sockets."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from spa_dat.harness import VirtualLoop
from spa_dat.harness.loop._network import Network, ServerConnection
from spa_dat.harness.loop._tasks_and_timers import OWNER

pytestmark = pytest.mark.virtual


class Server:
    """Notes what arrives; the last connection is ``connection``."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.closed = 0
        self.connection: ServerConnection | None = None

    def accept(self, connection: ServerConnection) -> None:
        self.connection = connection
        connection.on_data = self.received.append
        connection.on_close = self._on_close

    def _on_close(self) -> None:
        self.closed += 1

    @property
    def wire(self) -> ServerConnection:
        assert self.connection is not None
        return self.connection


def listening() -> tuple[Network, Server]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    network = loop.network = Network(loop)
    server = Server()
    network.listen("host", 1, server.accept)
    return network, server


async def test_both_sides_get_what_the_other_has_sent_in_order() -> None:
    _, server = listening()
    reader, writer = await asyncio.open_connection("host", 1)
    writer.write(b"a")
    writer.writelines([b"b", b"c"])
    await asyncio.sleep(0.1)
    assert b"".join(server.received) == b"abc"
    server.wire.send(b"1")
    server.wire.send(b"2")
    assert await reader.readexactly(2) == b"12"
    assert writer.get_extra_info("peername") == ("host", 1)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.1)
    assert server.closed == 1
    assert not server.wire.open


async def test_what_was_sent_before_a_close_arrives() -> None:
    network, server = listening()
    reader, writer = await asyncio.open_connection("host", 1)
    await asyncio.sleep(0)
    server.wire.send(b"last")
    server.wire.close()
    server.wire.send(b"too late")
    assert await reader.read() == b"last"
    assert network.connections == []
    # As with a socket, the other side says that there is nobody any more.
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()
    assert server.received == []
    assert server.closed == 0


async def test_delays_keep_the_order() -> None:
    _, server = listening()
    loop = asyncio.get_running_loop()
    start = loop.time()
    reader, writer = await asyncio.open_connection("host", 1)
    await asyncio.sleep(0)
    delays = iter((2.0, 0.5, 0.0))
    server.wire.down.delay = lambda data: next(delays)
    for data in (b"a", b"b", b"c"):
        server.wire.send(data)
    assert len(server.wire.down) == 3
    assert await reader.readexactly(3) == b"abc"
    assert loop.time() - start == 2.0
    writer.close()
    await writer.wait_closed()


async def test_a_silent_connection_brings_nothing_until_it_is_reset() -> None:
    network, server = listening()
    reader, writer = await asyncio.open_connection("host", 1)
    await asyncio.sleep(0)
    server.wire.send(b"under way")
    server.wire.fall_silent()
    writer.write(b"x")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 60)
    assert server.received == []
    server.wire.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    await asyncio.sleep(0.1)
    assert server.closed == 1
    assert network.connections == []
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()


async def test_who_vanishes_hears_nothing_and_the_server_does() -> None:
    network, server = listening()
    context = contextvars.copy_context()
    owner = object()
    context.run(OWNER.set, owner)
    loop = asyncio.get_running_loop()
    connecting = loop.create_task(asyncio.open_connection("host", 1), context=context)
    reader, gone = await connecting
    _, other = await asyncio.open_connection("host", 1)
    assert [wire.owner for wire in network.connections] == [owner, None]
    (wire, left) = network.connections
    wire.send(b"x")
    network.kill(owner)
    await asyncio.sleep(0.1)
    assert server.closed == 1
    assert network.connections == [left]
    assert not reader.at_eof()
    assert gone.is_closing()
    other.close()
    await other.wait_closed()


async def test_reading_can_be_paused() -> None:
    _, server = listening()
    reader, writer = await asyncio.open_connection("host", 1, limit=4)
    await asyncio.sleep(0)
    for _ in range(10):
        server.wire.send(b"12345")
        await asyncio.sleep(0.1)
    assert not writer.transport.is_closing()
    server.wire.close()
    assert await reader.read() == b"12345" * 10
    writer.close()
    await writer.wait_closed()


async def test_nobody_at_a_place_refuses() -> None:
    network, server = listening()
    with pytest.raises(ConnectionRefusedError, match="host:2"):
        await asyncio.open_connection("host", 2)
    _, writer = await asyncio.open_connection("host", 1)
    network.refuse("host", 1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("host", 1)
    # What is open goes on.
    writer.write(b"x")
    await asyncio.sleep(0.1)
    assert server.received == [b"x"]
    writer.close()
    await writer.wait_closed()
    assert network.claims("host")
    assert not network.claims("elsewhere")
