"""The socket of a connection, read and written in large pieces."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import ssl
import sys
from collections.abc import Callable

from ...._logs import get_logger
from ._packets import Dropped, MalformedPacket, PacketSink

__all__ = ["FrameStream"]

if sys.platform == "linux":
    import fcntl
    import termios

_log = get_logger(__name__)

_CHUNK = 65_536
# Of macOS; Python does not name it.
_SO_NWRITE = 0x1024
_WANT_READ = (BlockingIOError, InterruptedError, ssl.SSLWantReadError)
_WANT_WRITE = (*_WANT_READ, ssl.SSLWantWriteError)


class Reading(enum.Enum):
    """What a stream does with what comes.

    Attributes:
        ON: it is read.
        PAUSED: it stays with the operating system.
        ENDED: the socket is closed, and nothing is written any more either.
    """

    ON = "on"
    PAUSED = "paused"
    ENDED = "ended"


class Writing(enum.Enum):
    """Where what was written is waiting.

    Attributes:
        IDLE: everything is with the operating system.
        DUE: it is sent at the end of this turn of the event loop.
        BLOCKED: it is sent when the operating system takes more.
    """

    IDLE = "idle"
    DUE = "due"
    BLOCKED = "blocked"


# Members of an Enum are slow to look up, and every packet needs them.
_ON = Reading.ON
_PAUSED = Reading.PAUSED
_ENDED = Reading.ENDED
_IDLE = Writing.IDLE
_DUE = Writing.DUE
_BLOCKED = Writing.BLOCKED


class FrameStream:
    """Splits what a connected socket receives into MQTT packets, and gathers what is written.

    What one turn of the event loop writes leaves in one piece at its end. For the client library
    this is the socket: its reads get the packets handed to it with `hand_over`, its writes join
    all others.

    Args:
        sock: connected, not blocking, plain or TLS.
        on_packet: called for every packet with its first byte, the data that holds it, and where
            its variable header starts and the packet ends.
        on_end: called once when the socket cannot be read or written any more; with None when
            the peer closed it in good order.
        divert: asked about a packet that has not come whole yet, with its first byte and the
            length behind its fixed header; returns what takes it as it comes, or None to have it
            put together.

    Attributes:
        heard: something was received since this was last set to False.
        spoken: something was written since this was last set to False.
        on_packet: as given; it may be replaced.
        received: bytes received so far.
        written: bytes written so far, by the user of the stream.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_packet: Callable[[int, bytes, int, int], None],
        on_end: Callable[[Exception | None], None],
        divert: Callable[[int, int], PacketSink | None] = lambda first, length: None,
    ) -> None:
        self.heard = False
        self.spoken = False
        self.received = 0
        self.written = 0
        self._sock = sock
        self._encrypted = isinstance(sock, ssl.SSLSocket)
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
        self._quick = getattr(socket, "TCP_QUICKACK", None)
        self._set_reading(_ON)

    # What the client library sees of it.

    def recv(self, size: int) -> bytes:
        """The next bytes of the packet handed over; empty once the connection has ended."""
        if not self._handed:
            if self._reading is _ENDED:
                return b""
            raise BlockingIOError
        data = self._handed[:size]
        self._handed = self._handed[size:]
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Take all of it."""
        self.write(data)
        return len(data)

    def fileno(self) -> int:
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def pending(self) -> int:
        """Nothing waits here that `hand_over` does not announce."""
        return 0

    def close(self) -> None:
        """The library is done with it; `finish` or `abort` closes the socket."""

    def hand_over(self, packet: bytes) -> None:
        """Let the library's next reads see this packet."""
        self._handed = packet

    # What the adapter does with it.

    def write(self, data: bytes | bytearray) -> None:
        """Send with everything else that this turn of the loop writes."""
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
        """How many of the bytes written the peer's system has confirmed to have.

        Where the system does not tell, what it has taken over counts.
        """
        if self._reading is _ENDED:
            return self.written
        return self.written - len(self._out) - _unconfirmed(self._sock)

    def after_flush(self, callback: Callable[[], None]) -> None:
        """Call it once everything written so far is with the operating system."""
        self._after_flush.append(callback)

    def pause(self) -> None:
        """Stop reading, from the next packet on."""
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
        """Send what is left, wait for the peer to close, close; at most ``timeout`` seconds.

        Returns whether the peer has closed, or the connection was lost. Closing with data unread
        would make the operating system reset the connection, and what was sent last would be lost:
        so what still comes is read and thrown away.
        """
        self.on_packet = _ignore
        self._divert = _drop
        if self._sink is not None:
            self._sink = Dropped(self._sink.left)
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
        """Read once; ``cause`` is what the end is put down to when there is no more."""
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
            # The kernel forgets it again; without it a small answer waits up to 40 ms.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, self._quick, 1)
        self._split(data)
        if not isinstance(self._sock, ssl.SSLSocket) or self._reading is _ENDED:
            return
        if self._sock.pending():
            self._loop.call_soon(self._readable)

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
        """What is left of the data when the sink of the packet under way has had its part."""
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
        # The packet is left unacknowledged and the connection given up: nothing is lost.
        if not isinstance(error, MalformedPacket):
            _log.exception("a packet of the broker could not be handled")
        self._end(error)

    def _flush(self) -> None:
        if self._reading is _ENDED:
            return
        try:
            while self._out:
                # TLS says nothing of its progress before it has sent all that it was given.
                piece = self._out[:_CHUNK] if self._encrypted else self._out
                sent = self._sock.send(piece)
                del self._out[:sent]
        except _WANT_WRITE:
            self._set_writing(_BLOCKED)
            return
        except OSError as error:
            # The broker may have said why before it closed.
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

    def _set_reading(self, reading: Reading) -> None:
        self._reading = reading
        if reading is _ON:
            self._loop.add_reader(self._descriptor, self._readable)
        else:
            self._loop.remove_reader(self._descriptor)

    def _set_writing(self, writing: Writing) -> None:
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


def _unconfirmed(sock: socket.socket) -> int:
    """Bytes in the send buffer of a socket that the peer has not confirmed; 0 where unknown."""
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
    """A remaining length of several bytes and where it ends; -1 when it is not complete."""
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
    """For packets that come while the connection is being closed."""


def _drop(first: int, length: int) -> PacketSink:
    """What comes while the connection is being closed need not be put together."""
    return Dropped(length)


def _ignore_end(error: Exception | None) -> None:
    """For an end that we made ourselves."""
