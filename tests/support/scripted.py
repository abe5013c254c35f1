"""A broker that does what a test tells it, packet by packet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple

__all__ = [
    "Packet",
    "Peer",
    "ScriptedBroker",
    "connack",
    "publish",
    "reason_string",
    "server_reference",
    "suback",
]


class Packet(NamedTuple):
    """One packet of a client."""

    kind: str
    flags: int
    body: bytes

    @property
    def packet_id(self) -> int:
        """Of everything but PUBLISH: the first two bytes."""
        return int.from_bytes(self.body[:2], "big")

    @property
    def client_id(self) -> str:
        """The client identifier in a CONNECT, which has no user name, password or will."""
        # Protocol name and version, flags and keep-alive; the properties have less than 128 bytes.
        start = 11 + self.body[10]
        size = int.from_bytes(self.body[start : start + 2], "big")
        return self.body[start + 2 : start + 2 + size].decode()

    @property
    def publish_id(self) -> int:
        """Packet id of a PUBLISH with QoS 1."""
        size = int.from_bytes(self.body[:2], "big")
        return int.from_bytes(self.body[2 + size : 4 + size], "big")


_KINDS = {
    1: "CONNECT",
    3: "PUBLISH",
    4: "PUBACK",
    5: "PUBREC",
    6: "PUBREL",
    7: "PUBCOMP",
    8: "SUBSCRIBE",
    10: "UNSUBSCRIBE",
    12: "PINGREQ",
    14: "DISCONNECT",
}


class Peer:
    """One client's connection, seen from the broker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> Packet:
        """Read the client's next packet; raise EOFError or ConnectionError when it has gone."""
        first = (await self._reader.readexactly(1))[0]
        length = shift = 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return Packet(_KINDS[first >> 4], first & 15, await self._reader.readexactly(length))

    async def arrived(self) -> list[Packet]:
        """Further packets that are here already, without waiting for more."""
        packets: list[Packet] = []
        while True:
            await asyncio.sleep(0)
            if not self._reader._buffer:  # type: ignore[attr-defined]
                return packets
            packets.append(await self.receive())

    async def expect(self, kind: str) -> Packet:
        """Read the client's next packet of this kind; answer pings before it.

        EOFError when the client says goodbye instead.
        """
        while True:
            packet = await self.receive()
            if packet.kind == "PINGREQ" != kind:
                self.send(b"\xd0\x00")
                continue
            if packet.kind == "DISCONNECT" != kind:
                raise EOFError
            assert packet.kind == kind, f"{packet} instead of {kind}"
            return packet

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    async def accept(self, properties: bytes = b"", *, session: bool = False) -> Packet:
        """Take the CONNECT and accept it; returns it."""
        packet = await self.expect("CONNECT")
        self.send(connack(0, properties, session=session))
        return packet

    async def subscribe(self, *codes: int) -> Packet:
        """Take a SUBSCRIBE and answer it, by default with QoS 1; returns it."""
        packet = await self.expect("SUBSCRIBE")
        self.send(suback(packet.packet_id, *(codes or (1,))))
        return packet

    async def ready(self, properties: bytes = b"", *, session: bool = False) -> None:
        """Take a connection up to its first subscription."""
        await self.accept(properties, session=session)
        await self.subscribe()

    def puback(self, packet: Packet, code: int = 0, properties: bytes = b"") -> None:
        """Answer a PUBLISH; ``properties`` without their length."""
        body = packet.publish_id.to_bytes(2, "big") + bytes((code,))
        if properties:
            body += bytes((len(properties),)) + properties
        self.send(_frame(0x40, body))

    def unsuback(self, packet: Packet, *codes: int) -> None:
        """Answer an UNSUBSCRIBE, by default with success."""
        self.send(_frame(0xB0, packet.packet_id.to_bytes(2, "big") + b"\0" + bytes(codes or (0,))))

    def goodbye(self, code: int, properties: bytes = b"") -> None:
        """Send a DISCONNECT and close; ``properties`` without their length."""
        self.send(_frame(0xE0, bytes((code, len(properties))) + properties))
        self.close()

    async def wait_closed(self) -> None:
        """Take whatever comes until the client has gone."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self.receive()

    def reset(self) -> None:
        """Cut the connection with a RST."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection in good order."""
        self._writer.close()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedBroker:
    """Listens on a free port of 127.0.0.1; each connection runs the next script.

    The last script is for all connections that follow. A script that raises fails the test when
    the broker is closed; a client that goes is no failure.

    Args:
        scripts: what to do with the first, second ... connection.
    """

    host = "127.0.0.1"

    def __init__(self, *scripts: Script) -> None:
        self.port = 0
        self.connections = 0
        self._scripts = list(scripts)
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ScriptedBroker:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if error is None:
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        task = asyncio.create_task(self._run(script, Peer(reader, writer)))
        # Not in the task, which may be cancelled before it has begun.
        task.add_done_callback(lambda _: writer.transport.abort())
        self._tasks.append(task)

    async def _run(self, script: Script, peer: Peer) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            await script(peer)


def _frame(first: int, body: bytes) -> bytes:
    assert len(body) < 16_384
    length = len(body)
    encoded = bytes((length,)) if length < 128 else bytes((length & 127 | 128, length >> 7))
    return bytes((first,)) + encoded + body


def connack(code: int, properties: bytes = b"", *, session: bool = False) -> bytes:
    """Return a CONNACK; ``properties`` without their length."""
    return _frame(0x20, bytes((session, code, len(properties))) + properties)


def suback(packet_id: int, *codes: int, properties: bytes = b"") -> bytes:
    """Return a SUBACK; ``properties`` without their length."""
    head = packet_id.to_bytes(2, "big") + bytes((len(properties),)) + properties
    return _frame(0x90, head + bytes(codes))


def reason_string(words: str) -> bytes:
    """Return the property in which a broker gives its reason as text."""
    data = words.encode()
    return b"\x1f" + len(data).to_bytes(2, "big") + data


def server_reference(server: str) -> bytes:
    """Return the property in which a broker refers to another server."""
    data = server.encode()
    return b"\x1c" + len(data).to_bytes(2, "big") + data


def publish(
    packet_id: int,
    payload: bytes = b"x",
    *,
    topic: str = "t",
    qos: int = 1,
    duplicate: bool = False,
    properties: bytes = b"",
) -> bytes:
    """Return a PUBLISH; ``properties`` without their length."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name
    if qos:
        body += packet_id.to_bytes(2, "big")
    return _frame(
        0x30 | duplicate << 3 | qos << 1, body + bytes((len(properties),)) + properties + payload
    )
