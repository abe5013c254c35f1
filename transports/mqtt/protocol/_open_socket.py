"""Opening the socket to a broker, and telling a broker with an older MQTT from an absent one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ...._texts import bracketed
from ..._name_lookups import look_up
from ..._tls import tls_context
from .._config import MqttConfig
from ._stream import FrameStream

__all__ = ["Spoken", "open_socket", "version_spoken", "without_tls", "without_websocket"]

if TYPE_CHECKING:
    from ._websocket import WebSocket

T = TypeVar("T")

_LONGEST = 2.0
# MQTT 3.1.1, clean session, a client identifier chosen by the broker.
_OLDER_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
_NEWER_CONNECT = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"
_DISCONNECT = b"\xe0\x00"
_CONNACK = 0x20
_LENGTH_OF_AN_OLD_CONNACK = 2


def without_websocket(config: MqttConfig) -> MqttConfig:
    """Return the configuration of the same port without websockets."""
    return dataclasses.replace(config, port=config.effective_port, websocket_path=None)


def without_tls(config: MqttConfig) -> MqttConfig:
    """Return the configuration of the same address without TLS and without secrets."""
    return MqttConfig(
        config.host, port=config.effective_port, connect_timeout=config.connect_timeout
    )


async def open_socket(config: MqttConfig) -> socket.socket | WebSocket:
    """Return a connected, non-blocking socket; cancelling leaves nothing open.

    Raises:
        OSError: unknown host, refused, unreachable, TLS failed, or it is no websocket; TimeoutError
            is one.
        ConfigurationError: the TLS files cannot be used.
    """
    if config.unix_socket is not None:
        return await _open_unix(config.unix_socket, config.connect_timeout)
    sock = await _open_tcp(config)
    if config.websocket_path is None:
        return sock
    try:
        async with asyncio.timeout(config.connect_timeout):
            return await _start_websocket(sock, config)
    except BaseException:
        sock.close()
        raise


async def _open_unix(path: str, timeout: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout):
            await loop.sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


async def _start_websocket(sock: socket.socket, config: MqttConfig) -> WebSocket:
    # Most programs have no use for it, and need not have it installed.
    from ._websocket import WebSocket

    assert config.websocket_path is not None
    address, port = config.host.partition("%")[0], config.effective_port
    host = bracketed(address)
    websocket = WebSocket(sock)
    websocket.ask(host if port in (80, 443) else f"{host}:{port}", config.websocket_path)
    await _until_done(sock, websocket.flush, writing=True)
    while not await _until_done(sock, websocket.take_answer, writing=False):
        pass
    return websocket


async def _open_tcp(config: MqttConfig) -> socket.socket:
    context = tls_context(config)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.connect_timeout
    async with asyncio.timeout_at(deadline):
        found = await look_up(config.host, config.effective_port, type=socket.SOCK_STREAM)
    cause: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(found):
        # An address that does not answer must leave time for the others.
        share = max(deadline - loop.time(), 0.0) / (len(found) - index)
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            # The system has no IPv6, but the name has an IPv6 address.
            cause = error
            continue
        try:
            sock.setblocking(False)
            async with asyncio.timeout(share):
                await loop.sock_connect(sock, address)
            _set_options(sock, config.keepalive)
            if context is None:
                return sock
            async with asyncio.timeout_at(deadline):
                return await _start_tls(sock, context, config.host)
        except ssl.SSLError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            cause = error
        except BaseException:
            sock.close()
            raise
    raise cause or OSError(f"{config.host!r} has no address")


def _set_options(sock: socket.socket, keepalive: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Detects that the peer is gone even while reading is paused and no answers are read.
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, keepalive * 2_000)


async def _start_tls(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        await _until_done(wrapped, wrapped.do_handshake, writing=True)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


async def _until_done(sock: socket.socket, step: Callable[[], T], *, writing: bool) -> T:
    """Return what a step returns, once the socket lets it finish."""
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            await _ready(sock, writing=False)
        except ssl.SSLWantWriteError:
            await _ready(sock, writing=True)
        except BlockingIOError:
            await _ready(sock, writing=writing)


async def _ready(sock: socket.socket, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(sock, wake)
    with contextlib.ExitStack() as stack:
        stack.callback(loop.remove_writer if writing else loop.remove_reader, sock)
        await ready


class Spoken(enum.Enum):
    """What a port answers to a CONNECT, even if it refuses it.

    Attributes:
        NOTHING: nothing that is MQTT.
        OLDER: an answer in MQTT 3.1.1 or before.
        NEWER: an answer in MQTT 5.
    """

    NOTHING = "nothing"
    OLDER = "older"
    NEWER = "newer"


async def version_spoken(config: MqttConfig, *, asked_in: Spoken = Spoken.OLDER) -> Spoken:
    """Return what is spoken at the address of a configuration; never raises.

    Args:
        config: where, and whether with TLS or websockets.
        asked_in: the version of the CONNECT, which is as short as possible.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Spoken] = loop.create_future()

    def on_packet(first: int, data: bytes, start: int, stop: int) -> None:
        if answer.done():
            return
        if first != _CONNACK:
            answer.set_result(Spoken.NOTHING)
        else:
            is_old = stop - start == _LENGTH_OF_AN_OLD_CONNACK
            answer.set_result(Spoken.OLDER if is_old else Spoken.NEWER)

    def on_end(error: Exception | None) -> None:
        if not answer.done():
            answer.set_result(Spoken.NOTHING)

    stream: FrameStream | None = None
    try:
        async with asyncio.timeout(_LONGEST):
            stream = FrameStream(await open_socket(config), on_packet, on_end)
            stream.write(_NEWER_CONNECT if asked_in is Spoken.NEWER else _OLDER_CONNECT)
            found = await answer
        stream.write(_DISCONNECT)
        await stream.finish(_LONGEST)
    except Exception:  # noqa: BLE001 (whatever it is, the next attempt to connect meets it, too)
        return Spoken.NOTHING
    finally:
        if stream is not None:
            stream.abort()
    return found
