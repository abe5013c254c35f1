"""A model of a mailbox that knows in which order the loop runs what is ready."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from spa_dat.actors import Overflow
from spa_dat.errors import ActorStopped, MailboxFull

__all__ = ["MailboxModel", "Putting"]


class Putting:
    """Somebody who puts an item and waits for a place."""

    def __init__(self, item: int) -> None:
        self.item = item
        self.task: asyncio.Task[None] | None = None
        self.phase = "starts"
        self.outcome: Any = None


class MailboxModel:
    """What waits in the mailbox, who waits for it, and who has been called and has not run yet."""

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        self.capacity = capacity
        self.overflow = overflow
        self.closed = False
        # Entries are (item, whether a newer one of the same key may replace it).
        self.items: deque[tuple[int, bool]] = deque()
        self.gone: list[int] = []
        self.incoming: deque[int] = deque()
        self.ready: deque[Putting | str] = deque()
        self.waiting: deque[Putting] = deque()
        self.granted = 0
        self.getter = ""
        self.got: Any = None

    @staticmethod
    def key(item: int) -> int:
        """Return the key of an item."""
        return item % 3

    def full(self) -> bool:
        return len(self.items) + self.granted >= self.capacity

    def arrived(self) -> None:
        if self.getter == "waits":
            self.getter = "called"
            self.ready.append("getter")

    def let_in(self) -> None:
        while self.waiting and not self.full():
            putting = self.waiting.popleft()
            putting.phase = "called"
            self.granted += 1
            self.ready.append(putting)

    def take(self) -> int:
        item, _ = self.items.popleft()
        self.let_in()
        return item

    def offer(self, item: int) -> bool | type[Exception]:
        if self.closed:
            return ActorStopped
        by_key = self.overflow is Overflow.LATEST_BY_KEY
        for place, (old, replaceable) in enumerate(self.items):
            if by_key and replaceable and self.key(old) == self.key(item):
                self.items[place] = (item, True)
                self.gone.append(old)
                return True
        if self.full():
            if self.overflow is Overflow.REFUSE:
                return MailboxFull
            if not self.items:
                self.gone.append(item)
                return False
            self.gone.append(self.items.popleft()[0])
        self.items.append((item, by_key))
        self.arrived()
        return True

    def run_ready(self) -> None:
        while self.ready:
            who = self.ready.popleft()
            if isinstance(who, Putting):
                self.run_putting(who)
            elif who == "incoming":
                self.run_incoming()
            elif self.getter in ("starts", "called"):
                if self.items:
                    self.got, self.getter = self.take(), "done"
                elif self.closed:
                    self.got, self.getter = ActorStopped, "done"
                else:
                    self.getter = "waits"

    def run_putting(self, putting: Putting) -> None:
        called = putting.phase in ("called", "cancelled when called")
        if putting.phase == "done":
            return
        if called:
            self.granted -= 1
        if putting.phase == "cancelled when called":
            putting.phase, putting.outcome = "done", asyncio.CancelledError
            self.let_in()
        elif self.closed:
            putting.phase, putting.outcome = "done", ActorStopped
        elif not called and self.full():
            putting.phase = "waits"
            self.waiting.append(putting)
        else:
            putting.phase, putting.outcome = "done", True
            self.items.append((putting.item, False))
            self.arrived()

    def run_incoming(self) -> None:
        while self.incoming:
            item = self.incoming.popleft()
            if self.closed:
                self.gone.append(item)
            elif self.overflow is Overflow.REFUSE:
                self.items.append((item, False))
                self.arrived()
            else:
                self.offer(item)
