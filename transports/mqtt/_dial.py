"""Opening the socket to a broker, without threads that could be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from ...errors import ConfigurationError
from .._secret import Secret
from ._config import MqttConfig

__all__ = ["dial", "tls_context"]


def tls_context(config: MqttConfig) -> ssl.SSLContext | None:
    """The TLS settings; None for plain TCP. Reads the certificate files anew each time.

    Raises:
        ConfigurationError: a file can not be read or is no certificate or key.
    """
    if not config.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.tls_cert is not None:
            password = config.tls_key_password
            if isinstance(password, Secret):
                password = password.reveal()
            # Without a password the function would ask for one on the terminal.
            context.load_cert_chain(config.tls_cert, config.tls_key, password or "")
    except (OSError, ValueError) as error:
        files = [name for name in (config.tls_ca, config.tls_cert, config.tls_key) if name]
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigurationError(
            f"the TLS files {', '.join(map(repr, files))} can not be used: {reason};"
            " check the options tls_ca, tls_cert, tls_key and tls_key_password"
        ) from error
    if config.tls_insecure_skip_verification:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def dial(config: MqttConfig, context: ssl.SSLContext | None) -> socket.socket:
    """A connected socket that does not block; cancelling leaves nothing open.

    Raises:
        OSError: unknown host, refused, unreachable, or TLS failed; TimeoutError is one.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.connect_timeout
    async with asyncio.timeout_at(deadline):
        found = await loop.getaddrinfo(config.host, config.effective_port, type=socket.SOCK_STREAM)
    cause: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(found):
        # An address that does not answer must leave time for the others.
        share = max(deadline - loop.time(), 0.0) / (len(found) - index)
        sock = socket.socket(family, kind, protocol)
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
    # Notices a peer that is gone even while reading is paused and no answers are read.
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, keepalive * 2_000)


async def _start_tls(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(wrapped, writing=False)
            except ssl.SSLWantWriteError:
                await _ready(wrapped, writing=True)
            else:
                return wrapped
    except BaseException:
        wrapped.close()
        raise


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
