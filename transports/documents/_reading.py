"""Reading a configuration document: from a file or a server, within limits."""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..._texts import escaped, quoted
from ...errors import ConfigurationError
from ._address import DocumentAddress

__all__ = ["LARGEST", "MOST_REDIRECTS", "Content", "read"]

T = TypeVar("T")

LARGEST = 262_144
"""The largest document, in bytes."""
MOST_REDIRECTS = 5
"""The most redirects that are followed, all of them to URLs of the same scheme."""

_LONGEST_REASON = 200
_AUTHORITIES = "SSL_CERT_FILE"
_PROXY_REFUSES = re.compile(r"Tunnel connection failed: (\d{3})\b")
_ACCEPTED = "application/toml, application/json, application/yaml;q=0.9, */*;q=0.5"


@dataclass(frozen=True)
class Content:
    """A document as it was read.

    Attributes:
        data: its bytes.
        path: its name on the server or among the files.
        media_type: what the server says it is, in lower case, or empty.
        once: whether it cannot be read again, as from a pipe.
    """

    data: bytes
    path: str
    media_type: str = ""
    once: bool = False


class _Refused(Exception):
    """Says why a document cannot be had."""


def read(address: DocumentAddress, seconds: float) -> Content:
    """Return the document at an address.

    Args:
        address: where it is.
        seconds: the longest that this may block, whatever file, server and name service do.

    Raises:
        ConfigurationError: it cannot be read, is too large, or takes too long.
    """
    sockets = _Sockets()

    def work() -> Content:
        if address.is_remote:
            return _from_server(address, seconds, sockets)
        return _from_file(address)

    try:
        return _within(seconds, work)
    except TimeoutError:
        reason = f"it took longer than {seconds:g} s"
    except _Refused as error:
        reason = str(error)
    except urllib.error.HTTPError as error:
        error.close()
        reason = _answer(error)
    except urllib.error.URLError as error:
        reason = _described(error.reason)
    except Exception as error:  # noqa: BLE001 (whatever a server makes the library raise)
        reason = _described(error)
    finally:
        # Nothing else ends a thread that a server keeps busy, a byte at a time.
        sockets.shut()
    raise ConfigurationError(f"{address} cannot be read: {reason}")


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run in a thread, which is left alone if it takes too long; raises TimeoutError then."""
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:  # noqa: BLE001 (raised by the caller)
            outcome.put((None, error))

    threading.Thread(target=run, name="spa_dat document", daemon=True).start()
    try:
        result, failure = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if failure is not None:
        if isinstance(failure, TimeoutError):
            raise _Refused("no answer in time") from None
        raise failure
    return result  # type: ignore[return-value]


class _Sockets:
    """The connections of one reading, which another thread can shut, whatever they are doing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[http.client.HTTPConnection] = []
        self._copies: list[socket.socket] = []
        self._is_over = False

    def add(self, connection: http.client.HTTPConnection) -> None:
        """Add a connection that is about to be opened; raises TimeoutError if it is too late."""
        with self._lock:
            if self._is_over:
                raise TimeoutError
            self._connections.append(connection)

    def keep(self, sock: socket.socket) -> None:
        """Keep a copy of a connected socket: the library hands it on, to TLS and to the answer."""
        with self._lock:
            if self._is_over:
                raise TimeoutError
            self._copies.append(sock.dup())

    def shut(self) -> None:
        """Shut all connections, and allow no further ones."""
        with self._lock:
            self._is_over = True
            # One that still talks to a proxy has no copy yet.
            early = [c.sock for c in self._connections if c.sock is not None]
            for sock in (*self._copies, *early):
                with contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which would also forget its state.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            for copy in self._copies:
                copy.close()
            self._copies.clear()


class _Connection(http.client.HTTPConnection):
    """A connection that another thread can shut.

    Attributes:
        sockets: of the reading that it belongs to.
    """

    sockets: _Sockets

    def connect(self) -> None:
        """Connect, to a proxy first if there is one."""
        self.sockets.add(self)
        super().connect()
        self.sockets.keep(self.sock)


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """The same with TLS, whose handshake comes after `_Connection.connect`."""


def _from_file(address: DocumentAddress) -> Content:
    path = Path(address.path)
    once = path.is_fifo() or path.is_char_device()
    with path.open("rb") as opened:
        data = _up_to_largest(opened)
    return Content(data, address.path, once=once)


def _from_server(address: DocumentAddress, seconds: float, sockets: _Sockets) -> Content:
    opener = urllib.request.OpenerDirector()
    for handler in (
        # What the environment says of proxies applies, as everywhere.
        urllib.request.ProxyHandler(),
        _Https(sockets),
        # A proxy may be asked by the other scheme; redirects stay with that of the URL.
        _Http(sockets),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(address.scheme),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "spa-dat"), ("Accept", _ACCEPTED)]
    request = urllib.request.Request(address.url.reveal())  # noqa: S310 (https, or allowed)
    if address.login is not None:
        request.add_unredirected_header("Authorization", address.login.reveal())
    answer = opener.open(request, timeout=seconds)
    if answer is None:
        raise _Refused("the environment names a proxy that is neither http:// nor https://")
    with answer:
        if answer.status != http.client.OK:
            raise _Refused(f"the server answers with status {answer.status}")
        data = _up_to_largest(answer)
        if answer.length:
            raise _Refused(f"the last {answer.length} bytes are missing")
        return Content(data, address.path, answer.headers.get_content_type().lower())


def _up_to_largest(source: Any) -> bytes:
    data: bytes = source.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise _Refused(f"it is larger than {LARGEST} bytes")
    return data


class _Https(urllib.request.HTTPSHandler):
    """Makes connections that can be shut from another thread."""

    def __init__(self, sockets: _Sockets) -> None:
        super().__init__()
        self._sockets = sockets

    def https_open(self, request: urllib.request.Request) -> Any:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2

        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = _TlsConnection(host, context=context, **options)
            made.sockets = self._sockets
            return made

        return self.do_open(connection, request)


class _Http(urllib.request.HTTPHandler):
    """Makes connections that can be shut from another thread."""

    def __init__(self, sockets: _Sockets) -> None:
        super().__init__()
        self._sockets = sockets

    def http_open(self, request: urllib.request.Request) -> Any:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = _Connection(host, **options)
            made.sockets = self._sockets
            return made

        return self.do_open(connection, request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows some redirects, none of them to another scheme; a login stays with its server."""

    max_redirections = MOST_REDIRECTS
    max_repeats = MOST_REDIRECTS

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any
    ) -> Any:
        target = urlsplit(headers.get("location") or headers.get("uri") or "")
        if target.scheme not in ("", self._scheme):
            fp.close()
            scheme = escaped(target.scheme, _LONGEST_REASON)
            raise _Refused(
                f"it redirects from {self._scheme}:// to {scheme}://, which is never followed"
            )
        # The library would read what comes with the redirect, however much that is.
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        login = req.unredirected_hdrs.get("Authorization")
        if again is not None and login is not None and again.host == req.host:
            again.add_unredirected_header("Authorization", login)
        return again


def _answer(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"it redirects more than {MOST_REDIRECTS} times, or to nowhere"
    if error.code in (401, 403):
        return (
            f"the server answers with status {error.code}: check the user and password in the URL,"
            " and what they may read"
        )
    return f"the server answers with status {error.code}"


def _described(error: object) -> str:
    """Return what went wrong, without the texts of others that may have a part of the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = escaped(error.verify_message, _LONGEST_REASON)
        named = os.environ.get(_AUTHORITIES)
        if named and not Path(named).is_file():
            # The library ignores it without a word.
            return (
                f"the certificate of the server cannot be trusted: {said}; the environment variable"
                f" {_AUTHORITIES}={quoted(named, _LONGEST_REASON)} names no file"
            )
        return (
            f"the certificate of the server cannot be trusted: {said}; the environment variable"
            f" {_AUTHORITIES} can name a file with other authorities"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {escaped(str(error.reason), _LONGEST_REASON)}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, UnicodeError):
        return "its host is not a name that can be looked up"
    if isinstance(error, OSError) and error.strerror:
        return escaped(error.strerror, _LONGEST_REASON)
    refused = _PROXY_REFUSES.match(str(error))
    if refused is not None:
        return f"the proxy that the environment names answers with status {refused[1]}"
    return f"{type(error).__name__}, which is not the answer of a web server"
