"""A small broker in the process: a log of messages, and a box for each who wants some of them.

It keeps everything for ever, which makes it unfit for anything but showing how a transport is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from spa_dat.errors import ConnectFailed
from spa_dat.transports import Envelope, TopicFilter

__all__ = ["Box", "Line", "Shelf", "Stored"]


@dataclass(eq=False)
class Stored:
    """A message that the broker has: its number, and the loop time at which it expires."""

    number: int
    envelope: Envelope
    expires: float


class Line:
    """A connection.

    Args:
        name: whose; one of each name is open at a time.
        filters: plain ones; after changing them call `changed`.
        window: the most messages that may be on it unacknowledged.
        arrived: called with a message and its number.
        lost: called when the broker ends it; says whether another took over the name.
    """

    box: Box

    def __init__(
        self,
        name: str,
        filters: dict[str, None],
        window: int,
        arrived: Callable[[Envelope, int], None],
        lost: Callable[[bool], None],
    ) -> None:
        self.name = name
        self.filters = filters
        self.window = window
        self.lost = lost
        self.open = True
        self.unsettled: dict[int, Stored] = {}
        self._arrived = arrived

    def acknowledge(self, number: int) -> None:
        """Done with a message."""
        if self.unsettled.pop(number, None) is not None:
            self.box.pump()

    def changed(self) -> None:
        """Take new filters."""
        self.box.changed()

    def send(self, envelope: Envelope, number: int) -> None:
        """Hand out a message soon."""
        asyncio.get_running_loop().call_soon(self._arrive, envelope, number)

    def _arrive(self, envelope: Envelope, number: int) -> None:
        if self.open:
            self._arrived(envelope, number)


class Box:
    """What a subscription, or a group of them, has not acknowledged."""

    def __init__(self, durable: bool) -> None:
        self.durable = durable
        self.lines: list[Line] = []
        self._filters: tuple[TopicFilter, ...] = ()
        self._waiting: list[Stored] = []
        self._sent: set[int] = set()
        self._turn = 0

    def changed(self) -> None:
        """Its lines, or their filters, are other ones. While there are none, all stays."""
        if self.lines:
            patterns = dict.fromkeys(pattern for line in self.lines for pattern in line.filters)
            self._filters = tuple(map(TopicFilter.parse, patterns))
        self.pump()

    def put(self, messages: Iterable[Stored]) -> None:
        """Keep those that match."""
        for stored in messages:
            if any(wanted.matches(stored.envelope.topic) for wanted in self._filters):
                self._waiting.append(stored)
        self.pump()

    def leave(self, line: Line) -> None:
        """Put back what was not acknowledged on the line, in its old place."""
        self.lines.remove(line)
        self._waiting = self.put_back(list(line.unsettled.values()), self._waiting)
        self.changed()

    def put_back(self, unsettled: list[Stored], waiting: list[Stored]) -> list[Stored]:
        """All that waits then."""
        return sorted([*unsettled, *waiting], key=lambda stored: stored.number)

    def pump(self) -> None:
        """Send what waits to whoever has room, in turn."""
        now = asyncio.get_running_loop().time()
        while self._waiting:
            free = [line for line in self.lines if len(line.unsettled) < line.window]
            if not free:
                return
            self._turn += 1
            line = free[self._turn % len(free)]
            stored = self._waiting.pop(0)
            if stored.expires <= now:
                continue
            envelope = msgspec.structs.replace(
                stored.envelope,
                redelivered=stored.number in self._sent,
                expiry=stored.expires - now if stored.envelope.expiry is not None else None,
            )
            self._sent.add(stored.number)
            line.unsettled[stored.number] = stored
            line.send(envelope, stored.number)


class Shelf:
    """The broker.

    Args:
        box: what it keeps messages in.

    Attributes:
        refuses: it takes no connections.
        lines: open connections by name.
    """

    def __init__(self, box: type[Box] = Box) -> None:
        self.refuses = False
        self._new_box = box
        self.lines: dict[str, Line] = {}
        self._log: list[Stored] = []
        self._boxes: dict[str, Box] = {}

    def publish(self, envelope: Envelope) -> None:
        """Keep a message and give it to who wants it."""
        expires = float("inf")
        if envelope.expiry is not None:
            expires = asyncio.get_running_loop().time() + envelope.expiry
        # Retained messages and those with QoS 0 are like all others here.
        plain = msgspec.structs.replace(envelope, retain=False, qos=1)
        stored = Stored(len(self._log), plain, expires)
        self._log.append(stored)
        for box in self._boxes.values():
            box.put([stored])

    def connect(self, line: Line, box_name: str, durable: bool) -> None:
        """Open a connection to a box; whoever has its name is thrown out."""
        if self.refuses:
            raise ConnectFailed("the shelf takes no connections")
        if line.name in self.lines:
            self.cut(self.lines[line.name], taken_over=True)
        self.lines[line.name] = line
        new = box_name not in self._boxes
        box = line.box = self._boxes.setdefault(box_name, self._new_box(durable))
        box.lines.append(line)
        box.changed()
        if new and durable:
            box.put(self._log)

    def disconnect(self, line: Line) -> None:
        """Note that the connection has ended."""
        if not line.open:
            return
        line.open = False
        del self.lines[line.name]
        line.box.leave(line)
        if not line.box.durable and not line.box.lines:
            self._boxes = {name: box for name, box in self._boxes.items() if box is not line.box}

    def cut(self, line: Line, *, taken_over: bool = False) -> None:
        """End a connection, which its owner notices."""
        self.disconnect(line)
        line.lost(taken_over)
