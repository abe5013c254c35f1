"""Looking up the addresses of names, in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["LookupLoop", "look_up"]

_MOST = 32
_Found = list[tuple[Any, ...]]

_running: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[Any, ...], asyncio.Future[_Found]]
] = WeakKeyDictionary()


async def look_up(
    host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> _Found:
    """Return what `socket.getaddrinfo` returns, without blocking the event loop.

    The loop's own threads may all be taken by code of the user's, even by what waits for the
    connection that needs the address. Equal lookups at the same time are one, which goes on if its
    callers give up: where a name server does not answer, only one thread waits for it.

    Raises:
        OSError: the name is unknown, or it cannot be looked up.
    """
    wanted = host, port, family, type, proto, flags
    with contextlib.suppress(OSError):
        # An address needs no server.
        return socket.getaddrinfo(*wanted[:5], flags | socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    lookups = _running.setdefault(loop, {})
    lookup = lookups.get(wanted)
    if lookup is None:
        if len(lookups) >= _MOST:
            raise OSError(f"{host!r}: {_MOST} names are being looked up, and none is found")
        lookup = loop.create_future()
        try:
            threading.Thread(
                target=_look_up, args=(loop, lookup, wanted), name="spa_dat names", daemon=True
            ).start()
        except RuntimeError as error:
            raise OSError(f"{host!r} cannot be looked up: {error}") from error
        lookups[wanted] = lookup
        lookup.add_done_callback(lambda _: lookups.pop(wanted))
    return await asyncio.shield(lookup)


def _look_up(
    loop: asyncio.AbstractEventLoop, lookup: asyncio.Future[_Found], wanted: tuple[Any, ...]
) -> None:
    found: _Found | Exception
    try:
        found = socket.getaddrinfo(*wanted)
    except Exception as error:  # noqa: BLE001 (who has asked gets it)
        found = error
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_tell, lookup, found)


def _tell(lookup: asyncio.Future[_Found], found: _Found | Exception) -> None:
    if isinstance(found, list):
        lookup.set_result(found)
    else:
        lookup.set_exception(found)
        lookup.exception()  # nobody may be waiting any more


class LookupLoop(asyncio.SelectorEventLoop):
    """An event loop that looks names up in threads of their own, whoever asks."""

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> _Found:
        """See `look_up`."""
        return await look_up(host, port, family=family, type=type, proto=proto, flags=flags)
