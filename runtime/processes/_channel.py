"""One end of the channel, two pipes, between an actor's runner and its child process."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from io import FileIO
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import msgspec
from msgspec.structs import astuple, replace

from ...transports import Envelope
from ._frames import Deliver, Park, Post, Publish, Replied, Taken
from ._shared_memory import LARGE, Arena

__all__ = ["LONGEST_FRAME", "BrokenFrame", "Channel"]

LONGEST_FRAME = 2**30
"""Bytes; far more than any bus carries in one message."""
_LENGTH = struct.Struct("!I")
_AT_ONCE = 262_144
# What is gathered goes out at the end of the loop's turn, or earlier when there is so much of it.
_GATHERED = 262_144
_CARRIERS = frozenset((Deliver, Replied, Post, Publish, Park))
"""The kinds of frames whose payload may be in shared memory."""


class BrokenFrame(Exception):
    """What came in was not written by the other end of the channel."""


def _encoded(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in a frame")


class Channel:
    """Sends and receives frames over a pair of pipes; used on its event loop only.

    Frames that are sent in one turn of the loop go out together. In a process that is forked off it
    sends nothing: what is gathered would be sent twice.

    Args:
        reading: the end of one pipe, which it closes at the end.
        writing: the end of the other one, likewise.
        kind: what comes in: a union of tagged structs.
        received: called with each frame.
        ended: called once, when nothing more comes in: with None at the other side's end, else
            with what was wrong. Not after `close`.
        outgoing: for large payloads that are sent.
        incoming: for those that come in.
    """

    def __init__(
        self,
        reading: FileIO,
        writing: FileIO,
        kind: Any,
        received: Callable[[Any], None],
        ended: Callable[[BaseException | None], None],
        outgoing: Arena,
        incoming: Arena,
    ) -> None:
        for end in (reading, writing):
            os.set_blocking(end.fileno(), False)
        self._reading = reading
        self._writing = writing
        self._read_into = reading.readinto
        self._write = writing.write
        self._loop = asyncio.get_running_loop()
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._encode_into = msgspec.msgpack.Encoder(enc_hook=_encoded).encode_into
        self._received = received
        self._ended = ended
        self._outgoing = outgoing
        self._incoming = incoming
        # One for all that comes in: to make one each time takes longer than to read a message.
        self._room = memoryview(bytearray(_AT_ONCE))
        self._in = bytearray()
        self._needed = _LENGTH.size
        self._out = bytearray()
        self._flushing: asyncio.Handle | None = None
        self._blocked = False
        self._drained: asyncio.Future[None] | None = None
        self._closed = False
        self._loop.add_reader(reading, self._read)
        _channels.add(self)

    @property
    def pending(self) -> int:
        """Bytes that the operating system has not taken yet."""
        return len(self._out)

    @property
    def closed(self) -> bool:
        """Whether it neither sends nor receives any more."""
        return self._closed

    def send(self, frame: Any, *, at_once: bool = False) -> None:
        """Send a frame: a struct, or a list of its tag and its fields. Nothing when it is closed.

        Args:
            frame: what is sent.
            at_once: not only at the end of the loop's turn.

        Raises:
            ValueError: the frame is longer than `LONGEST_FRAME`.
        """
        if self._closed:
            return
        out = self._out
        begin = len(out)
        out += b"\0\0\0\0"
        try:
            self._encode_into(frame, out, begin + 4)
            length = len(out) - begin - 4
            if length > LONGEST_FRAME:
                raise ValueError(f"a frame of {length} bytes is too long")
        except BaseException:
            del out[begin:]
            raise
        _LENGTH.pack_into(out, begin, length)
        if self._blocked:
            return
        if at_once or len(out) >= _GATHERED:
            self.flush()
        elif self._flushing is None:
            self._flushing = self._loop.call_soon(self.flush)

    def send_envelope(
        self, head: tuple[Any, ...], envelope: Envelope, *, at_once: bool = False
    ) -> None:
        """Send a frame whose last field is an envelope, a large payload by shared memory.

        Args:
            head: the tag, and the fields before the envelope.
            envelope: the message.
            at_once: as in `send`.

        Raises:
            ValueError: as `send`.
        """
        payload = envelope.payload
        place = self._outgoing.put(payload) if len(payload) >= LARGE else None
        if place is None:
            self.send((*head, astuple(envelope)), at_once=at_once)
        else:
            emptied = astuple(replace(envelope, payload=b""))
            self.send((*head, emptied, place), at_once=at_once)

    def flush(self) -> None:
        """Give the operating system what it takes of what was sent."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        out = self._out
        while out and not self._closed:
            try:
                sent = self._write(out)
            except OSError as error:
                out.clear()
                if not isinstance(error, ConnectionError):
                    # Not the other side's end, which reading tells: somebody has closed it here.
                    self._end(error)
                break
            if sent is None:
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._writing, self.flush)
                return
            if sent == len(out):
                out.clear()
            else:
                del out[:sent]
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._writing)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drain(self, timeout: float) -> None:
        """Wait until all is sent, or ``timeout`` seconds."""
        self.flush()
        if self._out and not self._closed:
            self._drained = self._loop.create_future()
            await asyncio.wait((self._drained,), timeout=timeout)

    def read_rest(self) -> None:
        """Take what has come in already; the other side has ended."""
        while not self._closed and self._read():
            pass

    def forked(self) -> None:
        """Send nothing in a forked process, and leave what both processes watch as it is."""
        self._closed, self._blocked = True, False
        self._out.clear()

    def close(self) -> None:
        """Send and receive nothing more."""
        if self._closed:
            return
        self._closed = True
        if self._flushing is not None:
            self._flushing.cancel()
        self._loop.remove_reader(self._reading)
        if self._blocked:
            self._loop.remove_writer(self._writing)
        self._reading.close()
        self._writing.close()

    def _read(self) -> bool:
        """Take what has come in; False when there was nothing."""
        try:
            size = self._read_into(self._room)
        except OSError as error:
            self._end(error)
            return False
        if size is None:
            return False
        if not size:
            self._end(None if not self._in else BrokenFrame("it ended in the middle of a frame"))
            return False
        try:
            self._take(size)
        except (BrokenFrame, msgspec.MsgspecError, UnicodeError) as error:
            self._end(error)
            return False
        return True

    def _take(self, size: int) -> None:
        """Take so many bytes that have come in."""
        view = self._room
        if not self._in and size >= _LENGTH.size and _LENGTH.unpack_from(view)[0] == size - 4:
            # Mostly it is one whole frame.
            self._hand_on(self._decode(view[4:size]))
            return
        if self._in:
            self._in += view[:size]
            size = len(self._in)
            if size < self._needed:
                return
            buffer, self._in = self._in, bytearray()
            view = memoryview(buffer)
        at = 0
        while size - at >= 4:
            (length,) = _LENGTH.unpack_from(view, at)
            if length > LONGEST_FRAME:
                raise BrokenFrame(f"a frame claims {length} bytes")
            end = at + 4 + length
            if end > size:
                break
            frame = self._decode(view[at + 4 : end])
            at = end
            self._hand_on(frame)
            if self._closed:
                return
        if at < size:
            self._in += view[at:size]
            rest = size - at
            self._needed = 4
            if rest >= 4:
                self._needed = 4 + _LENGTH.unpack_from(view, at)[0]

    def _hand_on(self, frame: Any) -> None:
        kind = type(frame)
        if kind is Taken:
            self._outgoing.free(frame.at)
            return
        if kind in _CARRIERS and frame.place is not None:
            frame = self._with_payload(frame)
        self._received(frame)

    def _with_payload(self, frame: Any) -> Any:
        at, size = frame.place
        try:
            payload = self._incoming.take(at, size)
        except ValueError as error:
            raise BrokenFrame(str(error)) from error
        self.send(Taken(at))
        return replace(frame, envelope=replace(frame.envelope, payload=payload))

    def _end(self, error: BaseException | None) -> None:
        if not self._closed:
            self._loop.remove_reader(self._reading)
            self._ended(error)


_channels: WeakSet[Channel] = WeakSet()


def _forked() -> None:
    for channel in _channels:
        channel.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
