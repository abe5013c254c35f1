"""The stream: the socket of a connection, read and written in large pieces."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...._logs import get_logger
from ._packets import Dropped, MalformedPacket, PacketSink

if TYPE_CHECKING:
    from ._websocket import WebSocket

__all__ = ["FrameStream"]

if sys.platform == "linux":
    import fcntl
    import termios

_log = get_logger(__name__)

_CHUNK = 65_536
_DISCONNECT = 0xE0
# On macOS; Python has no name for it.
_SO_NWRITE = 0x1024
_WANT_READ = (BlockingIOError, InterruptedError, ssl.SSLWantReadError)
_WANT_WRITE = (*_WANT_READ, ssl.SSLWantWriteError)


class ReadingState(enum.Enum):
    """What a stream does with incoming data.

    Attributes:
        ON: it is read.
        PAUSED: it stays in the operating system's buffer.
        ENDED: the socket is closed, and nothing is written either.
    """

    ON = "on"
    PAUSED = "paused"
    ENDED = "ended"


class WritingState(enum.Enum):
    """Where written data is waiting.

    Attributes:
        IDLE: nothing is waiting: the operating system has everything.
        DUE: it is sent at the end of this iteration of the event loop.
        BLOCKED: it is sent when the operating system accepts more.
    """

    IDLE = "idle"
    DUE = "due"
    BLOCKED = "blocked"


# Members of an Enum are slow to look up, and every packet needs them.
_ON = ReadingState.ON
_PAUSED = ReadingState.PAUSED
_ENDED = ReadingState.ENDED
_IDLE = WritingState.IDLE
_DUE = WritingState.DUE
_BLOCKED = WritingState.BLOCKED


class FrameStream:
    """Splits the data from a socket into MQTT packets, and gathers what is written.

    What is written in one iteration of the event loop leaves in one piece at its end. To the client
    library this is the socket: its reads get the packets passed to `hand_over`, its writes join all
    others.

    Args:
        sock: connected, non-blocking: plain, TLS or a websocket.
        on_packet: called for every packet with its first byte, the data that holds it, and where
            its variable header starts and the packet ends.
        on_end: called once when the socket can no longer be read or written; with None if the peer
            closed it cleanly.
        divert: called for a packet that has not arrived completely, with its first byte and the
            length after its fixed header; returns a sink that takes it as it arrives, or None to
            have it assembled.

    Attributes:
        heard: whether anything was received since this was last set to False.
        spoken: whether anything was written since this was last set to False.
        on_packet: as given; it may be replaced.
        received: bytes received so far.
        written: bytes written so far by the user of the stream.
    """

    def __init__(
        self,
        sock: socket.socket | WebSocket,
        on_packet: Callable[[int, bytes, int, int], None],
        on_end: Callable[[Exception | None], None],
        divert: Callable[[int, int], PacketSink | None] = lambda first, length: None,
    ) -> None:
        self.heard = False
        self.spoken = False
        self.received = 0
        self.written = 0
        self._sock = sock
        # TLS and websockets report no progress until they have sent everything they were given.
        self._in_pieces = isinstance(sock, ssl.SSLSocket) or not isinstance(sock, socket.socket)
        # What they have read already does not show as readable.
        self._hidden: Callable[[], int] | None = getattr(sock, "pending", None)
        self._descriptor = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self.on_packet = on_packet
        self._on_end = on_end
        self._divert = divert
        self._sink: PacketSink | None = None
        self._rest = bytearray()
        self._needed = 2
        self._out = bytearray()
        self._reading = _PAUSED
        self._writing = _IDLE
        self._after_flush: list[Callable[[], None]] = []
        self._handed = b""
        self._at_end: asyncio.Future[None] = self._loop.create_future()
        self._flushed: asyncio.Future[None] | None = None
        is_unix = isinstance(sock, socket.socket) and sock.family == socket.AF_UNIX
        self._quick = None if is_unix else getattr(socket, "TCP_QUICKACK", None)
        self._set_reading(_ON)

    # The client library's view of it.

    def recv(self, size: int) -> bytes:
        """Return the next bytes of the packet handed over; empty once the connection has ended."""
        if not self._handed:
            if self._reading is _ENDED:
                return b""
            raise BlockingIOError
        data = self._handed[:size]
        self._handed = self._handed[size:]
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Write all of the data."""
        self.write(data)
        return len(data)

    def fileno(self) -> int:
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        """Do nothing: it never blocks."""

    def pending(self) -> int:
        """Return 0: nothing waits here that `hand_over` does not announce."""
        return 0

    def close(self) -> None:
        """Do nothing: the library is done with it, but `finish` or `abort` closes the socket."""

    def hand_over(self, packet: bytes) -> None:
        """Let the library's next reads see this packet."""
        self._handed = packet

    # The client's view of it.

    def write(self, data: bytes | bytearray) -> None:
        """Send data together with everything else written in this iteration of the loop."""
        writing = self._writing
        if writing is not _DUE:
            if self._reading is _ENDED:
                return
            if writing is _IDLE:
                self._set_writing(_DUE)
        self._out += data
        self.written += len(data)
        self.spoken = True

    def departed(self) -> int:
        """Return how many of the written bytes the peer's system has confirmed.

        Where our system does not tell, the bytes that it has accepted count.
        """
        if self._reading is _ENDED:
            return self.written
        return self.written - len(self._out) - _unconfirmed(self._sock)

    def after_flush(self, callback: Callable[[], None]) -> None:
        """Have a function called once the operating system has everything written so far."""
        self._after_flush.append(callback)

    def pause(self) -> None:
        """Stop reading from the next packet on."""
        if self._reading is _ON:
            self._set_reading(_PAUSED)

    def resume(self) -> None:
        """Read again."""
        if self._reading is _PAUSED:
            self._set_reading(_ON)
            self._loop.call_soon(self._catch_up)

    @property
    def paused(self) -> bool:
        """Whether `pause` is in effect."""
        return self._reading is _PAUSED

    async def finish(self, timeout: float) -> bool:
        """Send what is left, wait for the peer to close, and close; within ``timeout`` seconds.

        Returns whether the peer has closed, or the connection was lost. Closing with unread data
        would make the operating system reset the connection, and what was sent last would be lost:
        so what still arrives is read and dropped.
        """
        self.on_packet = _ignore
        self._drop_messages()
        self.resume()
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(timeout):
                if self._out and self._reading is not _ENDED:
                    self._flushed = self._loop.create_future()
                    await self._flushed
                if self._reading is not _ENDED:
                    self._sock.shutdown(socket.SHUT_WR)
                    await self._at_end
        ended = self._reading is _ENDED
        self.abort()
        return ended

    def abort(self) -> None:
        """Close the socket now. The end is not reported."""
        self._on_end = _ignore_end
        self._end(None)

    def _readable(self, cause: OSError | None = None) -> None:
        """Read once; ``cause`` is reported as the reason of the end if there is no more data."""
        if self._reading is not _ON:
            return
        try:
            data = self._sock.recv(_CHUNK)
        except ssl.SSLWantWriteError:
            self._set_writing(_BLOCKED)
            return
        except _WANT_READ:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(cause)
            return
        self.heard = True
        self.received += len(data)
        if self._quick is not None:
            # The kernel resets this option; without it a small answer waits up to 40 ms.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, self._quick, 1)
        self._split(data)
        if self._hidden is None or self._reading is _ENDED:
            return
        if self._hidden():
            self._loop.call_soon(self._readable)

    def _read_goodbye(self) -> None:
        """Read on to a DISCONNECT behind messages that there is no room for, and drop these.

        They are not acknowledged, so they come again.
        """
        on_packet = self.on_packet

        def only_goodbye(first: int, data: bytes, start: int, stop: int) -> None:
            if first & 0xF0 == _DISCONNECT:
                on_packet(first, data, start, stop)

        self.on_packet = only_goodbye
        self._drop_messages()
        self._set_reading(_ON)
        self._split(b"")
        while self._reading is _ON:
            try:
                data = self._sock.recv(_CHUNK)
            except OSError:
                return
            if not data:
                return
            self._split(data)

    def _drop_messages(self) -> None:
        self._divert = _drop
        if self._sink is not None:
            self._sink = Dropped(self._sink.left)

    def _catch_up(self) -> None:
        if self._reading is not _ON:
            return
        if self._rest:
            self._split(b"")
        self._readable()

    def _split(self, data: bytes) -> None:
        if self._sink is not None:
            data = self._fed(data)
            if self._reading is not _ON:
                self._rest += data
                return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        position, end = 0, len(data)
        needed = 2
        try:
            while end - position >= 2:
                length = data[position + 1]
                start = position + 2
                if length > 127:
                    length, start = _long_length(data, position + 1, end)
                    if start < 0:
                        needed = end - position + 1
                        break
                stop = start + length
                if stop > end:
                    needed = stop - position
                    self._sink = self._divert(data[position], length)
                    if self._sink is not None:
                        self._sink.feed(data[start:])
                        position = end
                        needed = 2
                    break
                self.on_packet(data[position], data, start, stop)
                position = stop
                if self._reading is not _ON:
                    break
        except Exception as error:  # noqa: BLE001
            self._give_up(error)
            return
        self._needed = needed
        if position < end:
            self._rest += data[position:] if position else data

    def _fed(self, data: bytes) -> bytes:
        """Feed the sink of the current packet, and return what is left of the data."""
        assert self._sink is not None
        try:
            taken = self._sink.feed(data)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)
            return b""
        if not self._sink.left:
            self._sink = None
        return data[taken:]

    def _give_up(self, error: Exception) -> None:
        # The packet stays unacknowledged and the connection is given up: nothing is lost.
        if not isinstance(error, MalformedPacket):
            _log.exception("a packet from the broker could not be handled")
        self._end(error)

    def _flush(self) -> None:
        if self._reading is _ENDED:
            return
        try:
            while self._out:
                piece = self._out[:_CHUNK] if self._in_pieces else self._out
                sent = self._sock.send(piece)
                del self._out[:sent]
        except _WANT_WRITE:
            self._set_writing(_BLOCKED)
            return
        except OSError as error:
            # The broker may have said why before it closed.
            if self._reading is _PAUSED:
                self._read_goodbye()
            self._readable(error)
            self._end(error)
            return
        self._set_writing(_IDLE)
        if self._after_flush:
            callbacks, self._after_flush = self._after_flush, []
            for callback in callbacks:
                callback()
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _set_reading(self, reading: ReadingState) -> None:
        self._reading = reading
        if reading is _ON:
            self._loop.add_reader(self._descriptor, self._readable)
        else:
            self._loop.remove_reader(self._descriptor)

    def _set_writing(self, writing: WritingState) -> None:
        before, self._writing = self._writing, writing
        if writing is before:
            return
        if writing is _DUE:
            self._loop.call_soon(self._flush)
        elif writing is _BLOCKED:
            self._loop.add_writer(self._descriptor, self._writable)
        elif before is _BLOCKED:
            self._loop.remove_writer(self._descriptor)

    def _writable(self) -> None:
        self._flush()
        # TLS may have had to write before it could read.
        self._readable()

    def _end(self, error: Exception | None) -> None:
        if self._reading is _ENDED:
            return
        self._set_reading(_ENDED)
        self._set_writing(_IDLE)
        self._sock.close()
        self._out.clear()
        self._rest.clear()
        self._sink = None
        self._after_flush.clear()
        for waiter in (self._at_end, self._flushed):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._on_end(error)


def _unconfirmed(sock: socket.socket | WebSocket) -> int:
    """Return the bytes in a socket's send buffer that the peer has not confirmed; 0 if unknown."""
    try:
        if sys.platform == "linux":
            answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            return int.from_bytes(answer, sys.byteorder)
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    except OSError:
        pass
    return 0


def _long_length(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a remaining length of several bytes and its end; -1 if it is incomplete."""
    value = 0
    for shift in (0, 7, 14, 21):
        if position >= end:
            return 0, -1
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise MalformedPacket("the length of a packet has more than four bytes")


def _ignore(first: int, data: bytes, start: int, stop: int) -> None:
    """Ignore a packet that arrives while the connection is being closed."""


def _drop(first: int, length: int) -> PacketSink:
    """Drop a packet that arrives while the connection is being closed."""
    return Dropped(length)


def _ignore_end(error: Exception | None) -> None:
    """Ignore an end that we caused ourselves."""
