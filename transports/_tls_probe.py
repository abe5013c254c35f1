"""Finding out whether a port speaks TLS, for the error when a connection without it failed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

__all__ = ["answers_tls"]

_LONGEST = 2.0
_ALERT, _HANDSHAKE, _MAJOR_VERSION = 0x15, 0x16, 0x03


async def answers_tls(host: str, port: int) -> bool:
    """Return whether what listens there answers the beginning of a TLS handshake; never raises."""
    try:
        async with asyncio.timeout(_LONGEST):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_client_hello())
                kind, version = await reader.readexactly(2)
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, EOFError):
        return False
    return kind in (_ALERT, _HANDSHAKE) and version == _MAJOR_VERSION


def _client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()
