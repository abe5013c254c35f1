"""MQTT over websockets: a socket whose bytes travel in frames."""

from __future__ import annotations

import contextlib
import socket
import ssl
from http import HTTPStatus

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from ...._texts import quoted
from ..._connect_failures import OtherEnd

__all__ = ["WebSocket"]

_SUBPROTOCOL = "mqtt"
_CHUNK = 65_536
# As much as TLS hands out at once. So many frames without content may be in it that reading more of
# them would block the event loop for long.
_MOST_READ = 16_384
_LONGEST_REASON = 123
_MAY_PASS = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_WANTS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NORMAL = (1000, 1001, 1005)
_CLOSING = (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED)
_LONGEST_ADDRESS = 200


class WebSocket:
    """The socket of a websocket connection, as far as `FrameStream` needs one.

    Payloads of frames are handed out as they arrive: a large message is never in memory as a whole.

    Args:
        sock: connected, non-blocking, plain or TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._path = ""
        self._frames = WSConnection(ConnectionType.CLIENT)
        self._out = bytearray()
        self._accepted = 0
        self._closed = ""
        self._is_closed = False

    def ask(self, host: str, path: str) -> None:
        """Begin the handshake; `flush` sends the request.

        Args:
            host: of the URL, with the port unless it is the default.
            path: of the URL.
        """
        self._path = path
        self._out += self._frames.send(Request(host=host, target=path, subprotocols=[_SUBPROTOCOL]))

    def flush(self) -> None:
        """Write what is waiting; raises if the operating system does not accept all of it."""
        while self._out:
            # TLS reports no progress until it has sent everything that it was given.
            sent = self._sock.send(self._out[:_CHUNK])
            del self._out[:sent]

    def take_answer(self) -> bool:
        """Read the answer to the handshake; return whether it is complete.

        Raises:
            OtherEnd: what answers does not speak MQTT over websockets at this path.
            OSError: the connection ended, or it may work later.
        """
        data = self._sock.recv(_CHUNK)
        if not data:
            raise ConnectionResetError(
                f"the connection was closed without an answer to the websocket request for"
                f" {self._path!r}"
            )
        events = self._events(data)
        for event in events:
            if isinstance(event, RejectConnection):
                raise self._rejected(event)
            if isinstance(event, AcceptConnection) and event.subprotocol != _SUBPROTOCOL:
                raise OtherEnd(
                    f"what answers the websocket request for {self._path!r} does not speak MQTT:"
                    " check the path"
                )
        if len(events) > 1:
            raise OSError("the broker sent something before it was asked for anything")
        return bool(events)

    def recv(self, size: int) -> bytes:
        """Return what has arrived; empty at the end of the connection."""
        while not self._is_closed:
            data = self._sock.recv(min(size, _MOST_READ))
            if not data:
                return b""
            payload = b"".join(map(self._payload, self._events(data)))
            with contextlib.suppress(*_WANTS):
                self.flush()
            if payload:
                return payload
            if not self._is_closed and not self.pending():
                raise BlockingIOError
        if self._closed:
            raise OSError(self._closed)
        return b""

    def send(self, data: bytes | bytearray) -> int:
        """Send the data as one frame; like TLS, report no progress until all of it is sent.

        The next call must be with the same data, or more.
        """
        if not self._accepted:
            self._out += self._encoded(BytesMessage(data=bytes(data)))
            self._accepted = len(data)
        self.flush()
        sent, self._accepted = self._accepted, 0
        return sent

    def pending(self) -> int:
        """Return how many bytes TLS has that the operating system does not show."""
        return self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0

    def shutdown(self, how: int) -> None:
        """Say that nothing more is sent."""
        if not self._is_closed:
            self._out += self._encoded(CloseConnection(code=1000))
        with contextlib.suppress(*_WANTS):
            self.flush()
        self._sock.shutdown(how)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        return self._sock.getsockopt(level, option)

    def close(self) -> None:
        self._sock.close()

    def _events(self, data: bytes) -> list[Event]:
        try:
            self._frames.receive_data(data)
            return list(self._frames.events())
        except (RemoteProtocolError, LocalProtocolError, ValueError) as error:
            if self._frames.connection is None:
                # The library's own words are fewer than those of what it reads HTTP with.
                why = quoted(str(error.__context__ or error), _LONGEST_REASON)
                raise OtherEnd(
                    f"what answers the websocket request for {self._path!r} does not speak"
                    f" websockets: {why}; check the port and the path"
                ) from error
            raise OSError(f"the frames of the websocket are broken: {error}") from error

    def _payload(self, event: Event) -> bytes:
        if isinstance(event, BytesMessage):
            return bytes(event.data)
        if isinstance(event, TextMessage):
            raise OSError("the broker sent text over the websocket; MQTT is binary")
        if isinstance(event, Ping):
            # Only the latest needs an answer, and nobody may make us keep many.
            if len(self._out) < _CHUNK:
                self._out += self._encoded(Pong(payload=event.payload))
        elif isinstance(event, CloseConnection):
            self._is_closed = True
            said = f" {quoted(event.reason, _LONGEST_REASON)}" if event.reason else ""
            if self._frames.state not in _CLOSING:
                # The library closes over what it cannot read, and says so like a broker's close.
                self._closed = f"the frames of the websocket are broken:{said}"
            elif event.code not in _NORMAL:
                self._closed = f"the broker closed the websocket: {int(event.code)}{said}"
            self._out += self._encoded(event.response())
        return b""

    def _encoded(self, event: Event) -> bytes:
        try:
            return self._frames.send(event)
        except LocalProtocolError:
            # It is being closed.
            return b""

    def _rejected(self, answer: RejectConnection) -> OSError:
        status = answer.status_code
        text = f"the websocket request for {self._path!r} was answered with HTTP status {status}"
        for name, value in answer.headers:
            if name.lower() == b"location":
                elsewhere = quoted(value.decode("utf-8", "replace"), _LONGEST_ADDRESS)
                text += f", a redirect to {elsewhere}, which is not followed"
                break
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _MAY_PASS:
            return OSError(text)
        return OtherEnd(f"{text}: check the path, and whether the port wants TLS")
