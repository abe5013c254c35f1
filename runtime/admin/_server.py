"""The server of an admin endpoint, on aiohttp: what it answers, and what strangers may not do."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from ..._texts import describe
from ...errors import ConfigurationError
from ..diagnostics._health import Health
from ..options._admin_address import AdminAddress
from ._actor_controls import Action, ActorControls, UnknownActor
from ._dead_letter_pages import LETTERS, LetterPages, PageRefused
from ._live_feed import LiveFeed

if TYPE_CHECKING:
    from ..metrics._prometheus import Exposition

__all__ = ["AdminServer", "Answers"]

_MOST_CONNECTIONS = 64
# For all of a connection, which has one request: who is slower than that is cut off.
_SECONDS = 10.0
# A message is replayed for as long as its handler takes.
_SECONDS_FOR_LETTERS = 600.0
# The exception: those who are sent one live picture after the other, as long as they take it.
_MOST_STREAMS = 8
_SLOWEST = 5.0
_LONGEST_LINE = 2048
_LONGEST_HEADER = 4096
_MOST_HEADERS = 64
_LONGEST_BODY = 4096
_CONTROL_TYPE = "application/json"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
}
# The web view. Whatever gets into it: nothing but its own files runs, or is loaded.
_VIEW = Path(__file__).parent / "view"
_VIEW_HEADERS = {
    **_HEADERS,
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
            *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
            "require-trusted-types-for 'script'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_VIEW_FILES = {
    "/": ("index.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    "/view.js": ("view.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# What a page of another site may not have a browser ask for, not even without reading the answer.
_FROM_ELSEWHERE = ("cross-site", "same-site")

_READ = ("GET", "HEAD")
_OF_LETTERS = ("GET", "POST")


class _Connection(web.RequestHandler):
    """One client, for a bounded time; of too many the one that has been there longest goes."""

    __slots__ = ("_all", "_limit", "_stream")

    def __init__(self, everybody: dict[_Connection, None], manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        self._all = everybody
        self._limit: asyncio.TimerHandle | None = None
        self._stream: asyncio.Task[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        if len(self._all) >= _MOST_CONNECTIONS:
            # A probe asks at once; who has not asked yet is in no hurry.
            next(iter(self._all)).cut_off()
        self._all[self] = None
        loop = asyncio.get_running_loop()
        self._limit = loop.call_later(_SECONDS, self.cut_off)

    def last_for(self, seconds: float) -> None:
        """Let it last for so many seconds from now."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = asyncio.get_running_loop().call_later(seconds, self.cut_off)

    def stay(self, stream: asyncio.Task[Any]) -> None:
        """Let it last as long as it takes what it is sent by a task, which ends with it."""
        self._all.pop(self, None)
        self._stream = stream
        if self._limit is not None:
            self._limit.cancel()

    def cut_off(self) -> None:
        """End it at once."""
        self._all.pop(self, None)
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.pop(self, None)
        if self._limit is not None:
            self._limit.cancel()
        if self._stream is not None:
            self._stream.cancel()
        super().connection_lost(exc)


class _Ordered(msgspec.Struct, forbid_unknown_fields=True):
    """What a client wants to be done to an actor."""

    action: Action
    actor: str


_Page: TypeAlias = Callable[[web.BaseRequest, bool], Awaitable[web.StreamResponse]]


class Answers(NamedTuple):
    """What the endpoint tells of a run, and does to it.

    Attributes:
        health: returns its health.
        reasons_not_ready: returns why it cannot be given work.
        picture: makes a live picture, as JSON.
        controls: what can be done to its actors.
        letters: answers about its dead letters.
        exposition: has its metrics; None if it has none for Prometheus.
    """

    health: Callable[[], Health]
    reasons_not_ready: Callable[[], dict[str, str]]
    picture: Callable[[], Awaitable[bytes]]
    controls: ActorControls
    letters: LetterPages
    exposition: Exposition | None


class AdminServer:
    """Answers probes, and those who look at the application or want something done to an actor.

    Args:
        address: who may know details.
        answers: what there is to tell.
    """

    def __init__(self, address: AdminAddress, answers: Answers) -> None:
        self._address = address
        self._answers = answers
        self._feed = LiveFeed(answers.picture)
        self._exposing = asyncio.Lock()
        self._connections: dict[_Connection, None] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._server = web.Server(self._answer)
        self._listening: asyncio.Server | None = None
        # What strangers send is not worth a line, however often they do.
        self._silent = logging.Logger("spa_dat.admin", logging.CRITICAL + 1)
        self._pages: dict[str, tuple[tuple[str, ...], _Page]] = {
            "/healthz": (_READ, self._alive),
            "/readyz": (_READ, self._ready),
            "/health": (_READ, self._details),
            "/metrics": (_READ, self._metrics),
            "/live": (_READ, self._picture),
            "/live/events": (("GET",), self._pictures),
            "/live/control": (("POST",), self._control),
        }
        for path in _VIEW_FILES:
            self._pages[path] = _READ, self._view

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
        self._feed.close()
        streams = [*self._streams]
        for stream in streams:
            stream.cancel()
        await self._server.shutdown(0.1)
        if streams:
            await asyncio.wait(streams, timeout=1.0)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        methods, page = self._page_at(request.path)
        if not _is_direct(headers.getall("Host", []), headers.getall("Origin", [])):
            answer: web.StreamResponse = _text(
                403, "from a page of another site, or through a name: use the IP address"
            )
        elif (
            request.path.startswith(("/live", LETTERS))
            and headers.get("Sec-Fetch-Site") in _FROM_ELSEWHERE
        ):
            answer = _text(403, "a page of another site")
        elif page is None:
            answer = _text(404, f"there are {', '.join([*self._pages, LETTERS])}")
        elif request.method not in methods:
            answer = _text(405, f"only {' and '.join(methods)}")
            answer.headers["Allow"] = ", ".join(methods)
        else:
            allowed = self._address.allows(headers.get("Authorization"))
            answer = await page(request, allowed)
        if not answer.prepared:
            answer.force_close()
        return answer

    def _page_at(self, path: str) -> tuple[tuple[str, ...], _Page | None]:
        if path == LETTERS or path.startswith(f"{LETTERS}/"):
            return _OF_LETTERS, self._dead_letters
        return self._pages.get(path, ((), None))

    async def _view(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        # They tell nothing about the application.
        name, kind = _VIEW_FILES[request.path]
        text = (_VIEW / name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=kind, headers=_VIEW_HEADERS)

    async def _alive(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        return _text(200, "alive")

    async def _ready(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        reasons = self._answers.reasons_not_ready()
        told: dict[str, Any] = {"ready": not reasons}
        if allowed:
            told["reasons"] = reasons
        return _json(503 if reasons else 200, told)

    async def _details(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        if not allowed:
            return _token_missing()
        return _json(200, self._answers.health().as_dict())

    async def _picture(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        if not allowed:
            return _token_missing()
        shown = await self._feed.latest()
        return web.Response(body=shown.text, content_type="application/json", headers=_HEADERS)

    async def _pictures(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        if not allowed:
            return _token_missing()
        if len(self._streams) >= _MOST_STREAMS:
            return _text(503, f"{_MOST_STREAMS} clients are connected already: ask for /live")
        task, connection = asyncio.current_task(), request.protocol
        assert task is not None
        assert isinstance(connection, _Connection)
        self._streams.add(task)
        connection.stay(task)
        answer = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        answer.force_close()
        try:
            await answer.prepare(request)
            number = 0
            while True:
                number, text = await self._feed.after(number)
                async with asyncio.timeout(_SLOWEST):
                    await answer.write(b"id: %d\ndata: %b\n\n" % (number, text))
        except (TimeoutError, ConnectionError):
            connection.cut_off()
        finally:
            self._streams.discard(task)
        return answer

    async def _dead_letters(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        if not allowed:
            return _token_missing()
        if request.method != "GET" and request.content_type != _CONTROL_TYPE:
            # A form on a page of another site cannot send that without asking first.
            return _text(415, f"send Content-Type: {_CONTROL_TYPE}")
        if isinstance(request.protocol, _Connection):
            request.protocol.last_for(_SECONDS_FOR_LETTERS)
        url, letters = request.rel_url, self._answers.letters
        try:
            told = await letters.answer(request.method, url.raw_path, url.raw_query_string)
        except PageRefused as refused:
            return _text(refused.status, str(refused))
        return _json(200, told)

    async def _control(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        if not allowed:
            return _token_missing()
        # A page of another site cannot send this type without being asked whether it may.
        if request.content_type != _CONTROL_TYPE:
            return _text(415, f"send it as Content-Type: {_CONTROL_TYPE}")
        size = request.content_length
        if size is None or size > _LONGEST_BODY:
            return _text(413, f"send a Content-Length of at most {_LONGEST_BODY}")
        try:
            body = await request.content.readexactly(size)
            ordered = msgspec.json.decode(body, type=_Ordered)
            self._answers.controls.do(ordered.action, ordered.actor)
        except (asyncio.IncompleteReadError, msgspec.DecodeError, UnicodeDecodeError) as error:
            return _text(400, f'send {{"action": ..., "actor": ...}}: {describe(error)}')
        except UnknownActor as error:
            return _text(404, describe(error))
        except ConfigurationError as error:
            return _text(409, describe(error))
        return _json(200, {"done": True})

    async def _metrics(self, request: web.BaseRequest, allowed: bool) -> web.StreamResponse:
        exposition = self._answers.exposition
        if not allowed:
            return _token_missing()
        if exposition is None:
            text = "there are no metrics: give metrics='prometheus', or SPA_DAT_METRICS=prometheus"
            return _text(404, text)
        # In a thread, because the text of thousands of actors takes a while; one at a time.
        async with self._exposing:
            accept = request.headers.get("Accept", "")
            body, kind = await asyncio.to_thread(exposition.text, accept)
        return web.Response(body=body, headers=_HEADERS | {"Content-Type": kind})


def _is_direct(hosts: list[str], origins: list[str]) -> bool:
    """Return whether a request does not come through a name that somebody else may point anywhere.

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


def _token_missing() -> web.Response:
    answer = _text(401, "send the token: Authorization: Bearer TOKEN")
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=_HEADERS)


def _json(status: int, told: dict[str, Any]) -> web.Response:
    return web.json_response(told, status=status, headers=_HEADERS)
