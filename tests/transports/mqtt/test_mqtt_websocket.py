"""Websockets: frames in, frames out, and what a hostile server may send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

from spa_dat.errors import ConfigurationError, ConnectFailed
from spa_dat.transports import Identity, Surroundings
from spa_dat.transports._connect_failures import OtherEnd
from spa_dat.transports._factory import SocketProviderFactory
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from spa_dat.transports.mqtt.protocol._websocket import WebSocket
from support.mqtt import client

PATH = "/mqtt"


class Ends:
    """Our end of a websocket whose handshake is done, and the server's."""

    def __init__(self, ours: WebSocket, theirs: socket.socket) -> None:
        self.ours, self.theirs = ours, theirs
        self.server = Connection(ConnectionType.SERVER)

    def receive(self) -> list[Any]:
        """What has arrived at the server."""
        with contextlib.suppress(BlockingIOError):
            while data := self.theirs.recv(1_000_000):
                self.server.receive_data(data)
        return list(self.server.events())


def accepted(request: bytes, extra: str = "Sec-WebSocket-Protocol: mqtt\r\n") -> bytes:
    """The answer to a handshake."""
    (key,) = (
        line.split(b": ")[1]
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key")
    )
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + generate_accept_token(key) + b"\r\n" + extra.encode() + b"\r\n"
    )


@pytest.fixture
def asking() -> Iterator[tuple[WebSocket, socket.socket]]:
    """A websocket that has sent its request."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    websocket = WebSocket(ours)
    websocket.ask("broker:8080", PATH)
    websocket.flush()
    with ours, theirs:
        yield websocket, theirs


@pytest.fixture
def ends(asking: tuple[WebSocket, socket.socket]) -> Ends:
    websocket, theirs = asking
    theirs.send(accepted(theirs.recv(10_000)))
    assert websocket.take_answer()
    theirs.setblocking(False)
    return Ends(websocket, theirs)


def test_the_request_asks_for_mqtt_at_the_path(asking: tuple[WebSocket, socket.socket]) -> None:
    request = asking[1].recv(10_000)
    assert request.startswith(b"GET /mqtt HTTP/1.1\r\n")
    assert b"\r\nhost: broker:8080\r\n" in request.lower()
    assert b"\r\nsec-websocket-protocol: mqtt\r\n" in request.lower()


def test_an_answer_may_come_in_pieces(asking: tuple[WebSocket, socket.socket]) -> None:
    websocket, theirs = asking
    answer = accepted(theirs.recv(10_000))
    theirs.send(answer[:30])
    assert not websocket.take_answer()
    theirs.send(answer[30:])
    assert websocket.take_answer()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", OtherEnd, "status 404.*path"),
        (b"HTTP/1.1 302 Found\r\nLocation: ws://x/\r\n\r\n", OtherEnd, "302.*to 'ws://x/', which"),
        (b"HTTP/1.1 200 OK\r\n\r\n", OtherEnd, "status 200"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", OSError, "status 503"),
        (b"HTTP/1.1 429 Slow\r\n\r\n", OSError, "status 429"),
        (b"\x20\x02\x00\x01", OtherEnd, "not speak websockets: .*port"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", OtherEnd, "not speak websockets: .*header"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000, OtherEnd, "not speak websockets: .*too long"),
        (b"", ConnectionResetError, "without an answer.*'/mqtt'"),
    ],
)
def test_another_answer_is_named(
    asking: tuple[WebSocket, socket.socket], answer: bytes, kind: type[Exception], words: str
) -> None:
    websocket, theirs = asking
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(kind, match=words) as caught:
        any(websocket.take_answer() for _ in range(10))
    assert type(caught.value) is kind


@pytest.mark.parametrize("extra", ["", "Sec-WebSocket-Protocol: chat\r\n"])
def test_a_server_of_something_else_is_refused(
    asking: tuple[WebSocket, socket.socket], extra: str
) -> None:
    websocket, theirs = asking
    theirs.send(accepted(theirs.recv(10_000), extra))
    with pytest.raises(OtherEnd):
        websocket.take_answer()


def test_nothing_may_come_before_it_is_asked_for(
    asking: tuple[WebSocket, socket.socket],
) -> None:
    websocket, theirs = asking
    frame = Connection(ConnectionType.SERVER).send(BytesMessage(data=b"x"))
    theirs.send(accepted(theirs.recv(10_000)) + frame)
    with pytest.raises(OSError, match="before it was asked"):
        websocket.take_answer()


def test_payloads_arrive_whatever_frames_they_are_in(ends: Ends) -> None:
    with pytest.raises(BlockingIOError):
        ends.ours.recv(1_000)
    ends.theirs.send(ends.server.send(BytesMessage(data=b"ab", message_finished=False)))
    assert ends.ours.recv(1_000) == b"ab"
    frames = ends.server.send(BytesMessage(data=b"cd"))
    frames += ends.server.send(BytesMessage(data=b"")) + ends.server.send(BytesMessage(data=b"ef"))
    ends.theirs.send(frames[:1])
    with pytest.raises(BlockingIOError):
        ends.ours.recv(1_000)
    ends.theirs.send(frames[1:])
    assert ends.ours.recv(1_000) == b"cdef"


def test_a_large_frame_is_handed_out_while_it_arrives(ends: Ends) -> None:
    # 2**62 bytes are announced.
    ends.theirs.send(b"\x82\x7f" + (2**62).to_bytes(8, "big") + b"x" * 10_000)
    assert ends.ours.recv(65_536) == b"x" * 10_000
    ends.theirs.send(b"y" * 10_000)
    assert ends.ours.recv(65_536) == b"y" * 10_000


def test_pings_are_answered_once_for_many(ends: Ends) -> None:
    ends.theirs.send(ends.server.send(Ping(payload=b"one")))
    with pytest.raises(BlockingIOError):
        ends.ours.recv(65_536)
    (pong,) = ends.receive()
    assert pong == Pong(payload=b"one")


def test_many_empty_frames_give_the_loop_a_turn(ends: Ends) -> None:
    ends.theirs.sendall(b"\x82\x00" * 30_000)
    with pytest.raises(BlockingIOError):
        ends.ours.recv(65_536)
    assert len(ends.ours._sock.recv(65_536, socket.MSG_PEEK)) > 40_000


def test_who_pings_and_does_not_read_fills_no_memory(ends: Ends) -> None:
    pings = ends.server.send(Ping(payload=b"x" * 125)) * 100
    for _ in range(1_000):
        ends.theirs.send(pings)
        with pytest.raises(BlockingIOError):
            ends.ours.recv(65_536)
    assert len(ends.ours._out) < 200_000


@pytest.mark.parametrize(
    "frame",
    [
        Connection(ConnectionType.SERVER).send(TextMessage(data="x")),
        b"\x82\x81maskx",
        b"\x83\x01x",
        b"\xf2\x01x",
        b"\x80\x01x",
        b"\x09\x00",
        b"\x88\x01x",
        b"\x88\x04\x03\xe8\xff\xff",
        b"\x82\xff" + b"\xff" * 8,
    ],
)
def test_frames_that_are_wrong_end_the_connection(ends: Ends, frame: bytes) -> None:
    ends.theirs.send(frame)
    with pytest.raises(OSError, match=r"text over the websocket|websocket are broken") as caught:
        ends.ours.recv(65_536)
    assert not isinstance(caught.value, BlockingIOError)


def test_a_server_may_say_why_it_closes(ends: Ends) -> None:
    frames = ends.server.send(BytesMessage(data=b"last"))
    ends.theirs.send(frames + ends.server.send(CloseConnection(code=1008, reason="no\nrights")))
    assert ends.ours.recv(65_536) == b"last"
    with pytest.raises(OSError, match=r"closed the websocket: 1008 'no\\nrights'"):
        ends.ours.recv(65_536)
    assert isinstance(ends.receive()[-1], CloseConnection)


def test_an_ordinary_end_is_an_end(ends: Ends) -> None:
    ends.theirs.send(ends.server.send(CloseConnection(code=1000)))
    assert ends.ours.recv(65_536) == b""
    assert ends.ours.recv(65_536) == b""
    assert ends.ours.send(b"late") == 4


def test_the_end_of_the_connection_is_an_end_too(ends: Ends) -> None:
    ends.theirs.shutdown(socket.SHUT_WR)
    assert ends.ours.recv(65_536) == b""


def test_nothing_counts_as_sent_until_all_of_it_is(ends: Ends) -> None:
    data = b"0123456789" * 300_000
    with pytest.raises(BlockingIOError):
        ends.ours.send(data)
    got, sent = b"", 0
    while not sent:
        got += b"".join(event.data for event in ends.receive())
        with contextlib.suppress(BlockingIOError):
            # It may have grown in the meantime.
            sent = ends.ours.send(data + b"more")
    assert sent == len(data)
    got += b"".join(event.data for event in ends.receive())
    assert got == data
    assert ends.ours.send(b"more") == 4
    assert [event.data for event in ends.receive()] == [b"more"]


def test_a_goodbye_is_said(ends: Ends) -> None:
    ends.ours.shutdown(socket.SHUT_WR)
    (event,) = ends.receive()
    assert isinstance(event, CloseConnection)
    ends.theirs.send(ends.server.send(event.response()))
    assert ends.ours.recv(65_536) == b""


@contextlib.asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[Any]:
    """Listen, and answer each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:

        class Address:
            host = "127.0.0.1"
            port = listening.sockets[0].getsockname()[1]

        yield Address


async def test_a_path_that_is_not_there_fails_at_once() -> None:
    async with (
        server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as address,
        client(address, start=False, start_timeout=600.0, websocket_path="/none") as app,
    ):
        with pytest.raises(ConnectFailed, match=r"ws://127.*'/none'.*404"):
            await asyncio.wait_for(app.start(), 60)


async def test_a_server_that_is_busy_is_asked_again() -> None:
    async with (
        server(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as address,
        client(address, start=False, start_timeout=0.3, websocket_path="/mqtt") as app,
    ):
        with pytest.raises(ConnectFailed, match=r"503.*tried for"):
            await asyncio.wait_for(app.start(), 60)


async def test_a_server_that_does_not_answer_takes_no_longer_than_a_connection() -> None:
    async with asyncio.timeout(60):
        with socket.create_server(("127.0.0.1", 0)) as silent:

            class Address:
                host, port = silent.getsockname()

            options: dict[str, Any] = {"connect_timeout": 0.1, "start_timeout": 0.1}
            async with client(Address, start=False, websocket_path="/", **options) as app:
                with pytest.raises(ConnectFailed, match="no answer in time"):
                    await app.start()


# Configurations.


@pytest.mark.parametrize(
    ("url", "address", "path"),
    [
        ("ws://h", "ws://h:80/mqtt", "/mqtt"),
        ("ws://h/", "ws://h:80/", "/"),
        ("wss://h", "wss://h:443/mqtt", "/mqtt"),
        ("wss://ann:pw@h:8084/a/b%20c?keepalive=20", "wss://h:8084/a/b%20c", "/a/b%20c"),
        ("ws://[::1]:9001/ws", "ws://[::1]:9001/ws", "/ws"),
        ("mqtt://h?websocket_path=/ws", "ws://h:80/ws", "/ws"),
        ("mqtts://h:1?websocket_path=/ws", "wss://h:1/ws", "/ws"),
    ],
)
def test_urls_of_websockets(url: str, address: str, path: str) -> None:
    config = SocketProviderFactory.config_from_url(url)
    assert isinstance(config, MqttConfig)
    assert (config.address, config.websocket_path) == (address, path)
    assert config.tls is address.startswith("wss")
    assert SocketProviderFactory.config_from_url(address).address == address


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("mqtt+unix:///run/mosquitto.sock", "/run/mosquitto.sock"),
        ("mqtt+unix://ann:pw@/run/a%20b.sock?keepalive=20", "/run/a b.sock"),
        ("mqtt://?unix_socket=/run/x.sock", "/run/x.sock"),
    ],
)
def test_urls_of_unix_sockets(url: str, path: str) -> None:
    config = SocketProviderFactory.config_from_url(url)
    assert isinstance(config, MqttConfig)
    assert config.unix_socket == path
    assert config.address.startswith("mqtt+unix:///run/")
    assert "pw" not in config.address
    again = SocketProviderFactory.config_from_url(config.address)
    assert isinstance(again, MqttConfig)
    assert again.unix_socket == path


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mqtt+unix://host/run/x.sock", "no host.*three slashes"),
        ("mqtt+unix://", "three slashes"),
        ("mqtt+unix:///", "three slashes"),
        ("mqtt+unix:///a?tls=true", "tls.*no effect with unix_socket"),
        ("mqtt+unix:///a?websocket_path=/b", "websocket_path.*no effect with unix_socket"),
        (f"mqtt+unix:///{'x' * 200}", "longer than 107 bytes"),
        ("mqtt+unix:///a%00b", r"unix_socket.*U\+0000"),
        ("ws:///mqtt", "no host"),
        ("ws://h/a%zz?keepalive=20", "websocket_path"),
        ("ws://h?websocket_path=/x", "given twice"),
        ("mqtt://h?websocket_path=mqtt", "websocket_path='mqtt'.*begins with"),
        (f"mqtt://h?websocket_path=/{'x' * 5_000}", "websocket_path"),
        ("ws://h/a#b", "wrong place"),
        ("mqtt://h/path", "not an option"),
    ],
)
def test_urls_that_are_wrong_say_what_is(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        SocketProviderFactory.config_from_url(url)
    assert len(str(caught.value)) < 1_000


async def test_websockets_without_their_library_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = MqttProvider(MqttConfig(websocket_path="/"))
    surroundings = Surroundings(Identity("app"))
    provider.open(surroundings)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"wsproto.*spa-dat\[websockets\]"):
        provider.open(surroundings)
