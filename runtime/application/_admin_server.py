"""The server of an admin endpoint, on aiohttp: probes, and what strangers may not do to it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..diagnostics._health import Health
from ..options._admin_address import AdminAddress
from ._letter_pages import LETTERS, LetterPages, PageRefused

__all__ = ["AdminServer"]

_MOST_CONNECTIONS = 64
# For all of a connection, which has one request: who is slower than that is cut off.
_SECONDS = 10.0
# A message is replayed for as long as its handler takes.
_SECONDS_FOR_LETTERS = 600.0
_LONGEST_LINE = 2048
_LONGEST_HEADER = 4096
_MOST_HEADERS = 64
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
}


class _Connection(web.RequestHandler):
    """One client, for a bounded time; of too many the one that has been there longest goes."""

    __slots__ = ("_all", "_limit")

    def __init__(self, everybody: dict[_Connection, None], manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._all = everybody
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        if len(self._all) >= _MOST_CONNECTIONS:
            # A probe asks at once; who has not asked yet is in no hurry.
            next(iter(self._all)).cut_off()
        self._all[self] = None
        loop = asyncio.get_running_loop()
        self._limit = loop.call_later(_SECONDS, self.cut_off)

    def last(self, seconds: float) -> None:
        """Let it be for so long."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = asyncio.get_running_loop().call_later(seconds, self.cut_off)

    def cut_off(self) -> None:
        """End it at once."""
        self._all.pop(self, None)
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.pop(self, None)
        if self._limit is not None:
            self._limit.cancel()
        super().connection_lost(exc)


class AdminServer:
    """Answers ``/healthz``, ``/readyz``, ``/health`` and what is below ``/dead-letters``.

    Args:
        address: who may know details.
        health: returns the health of the application.
        letters: answers about dead letters.
    """

    def __init__(
        self, address: AdminAddress, health: Callable[[], Health], letters: LetterPages
    ) -> None:
        self._address = address
        self._health = health
        self._letters = letters
        self._connections: dict[_Connection, None] = {}
        self._server = web.Server(self._answer)
        self._listening: asyncio.Server | None = None
        # What strangers send is not worth a line, however often they do.
        self._silent = logging.Logger("spa_dat.admin", logging.CRITICAL + 1)
        self._answers = {
            "/healthz": self._alive,
            "/readyz": self._ready,
            "/health": self._details,
        }

    async def open(self, listening: socket.socket) -> None:
        """Begin to answer those who connect to the socket."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._connection, sock=listening)

    def _connection(self) -> _Connection:
        return _Connection(
            self._connections,
            self._server,
            loop=asyncio.get_running_loop(),
            logger=self._silent,
            access_log=None,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_HEADER,
            max_headers=_MOST_HEADERS,
            keepalive_timeout=0,
            lingering_time=0,
        )

    async def close(self) -> None:
        """Answer no more."""
        if self._listening is not None:
            self._listening.close()
        await self._server.shutdown(0.1)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not _is_direct(request.headers.getall("Host", []), request.headers.getall("Origin", [])):
            answer = _text(403, "a page of another site, or a name: use the IP address")
        elif request.path == LETTERS or request.path.startswith(f"{LETTERS}/"):
            answer = await self._dead_letters(request)
        elif request.path not in self._answers:
            answer = _text(404, f"there are /healthz, /readyz, /health and {LETTERS}")
        elif request.method not in ("GET", "HEAD"):
            answer = _text(405, "only GET and HEAD")
            answer.headers["Allow"] = "GET, HEAD"
        else:
            allowed = self._address.allows(request.headers.get("Authorization"))
            answer = self._answers[request.path](allowed)
        answer.force_close()
        return answer

    def _alive(self, allowed: bool) -> web.Response:
        return _text(200, "alive")

    def _ready(self, allowed: bool) -> web.Response:
        reasons = self._health().reasons_not_ready
        told: dict[str, Any] = {"ready": not reasons}
        if allowed:
            told["reasons"] = reasons
        return _json(503 if reasons else 200, told)

    def _details(self, allowed: bool) -> web.Response:
        return _json(200, self._health().as_dict()) if allowed else _unknown()

    async def _dead_letters(self, request: web.BaseRequest) -> web.Response:
        if not self._address.allows(request.headers.get("Authorization")):
            return _unknown()
        if request.method != "GET" and request.content_type != "application/json":
            # A form on a page of another site cannot send that without asking first.
            return _text(415, "send Content-Type: application/json")
        if isinstance(request.protocol, _Connection):
            request.protocol.last(_SECONDS_FOR_LETTERS)
        url = request.rel_url
        try:
            told = await self._letters.answer(request.method, url.raw_path, url.raw_query_string)
        except PageRefused as refused:
            return _text(refused.status, str(refused))
        return _json(200, told)


def _unknown() -> web.Response:
    """Return the answer to somebody who may not know details."""
    answer = _text(401, "send the token: Authorization: Bearer TOKEN")
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _is_direct(hosts: list[str], origins: list[str]) -> bool:
    """Whether a request does not come through a name that somebody else may point anywhere.

    A page in a browser can make a name of its own stand for this address (DNS rebinding), but not
    an IP address.
    """
    if len(hosts) != 1 or len(origins) > 1:
        return False
    try:
        url = urlsplit(f"//{hosts[0]}")
        name = url.hostname or ""
        if name != "localhost":
            ipaddress.ip_address(name)
        return not origins or urlsplit(origins[0]).netloc == hosts[0]
    except ValueError:
        return False


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=_HEADERS)


def _json(status: int, told: dict[str, Any]) -> web.Response:
    return web.json_response(told, status=status, headers=_HEADERS)
