"""The mailbox: the bounded queue of one actor, with waiting senders and overflow policies."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from typing import Any

from .._logs import get_logger
from .._texts import describe
from ..errors import ActorStopped, ConfigurationError, MailboxFull
from ._local_message import LocalMessage

__all__ = ["Mailbox", "Overflow", "Places", "Slot"]

_log = get_logger("spa_dat.actors")
_INCOMING_LOCK = threading.Lock()


class Overflow(Enum):
    """What a full mailbox does with another message."""

    REFUSE = "refuse"
    """The sender gets MailboxFull."""
    DROP_OLDEST = "drop_oldest"
    """The oldest message is dropped to make room."""
    DROP_NEWEST = "drop_newest"
    """The new message is dropped."""
    LATEST_BY_KEY = "latest_by_key"
    """A new message replaces the waiting one with the same key, full or not; if no waiting message
    has its key and the mailbox is full, the oldest message is dropped."""


class Slot:
    """The place of the latest item of one key."""

    __slots__ = ("item", "key")

    def __init__(self, key: Hashable, item: Any) -> None:
        self.key = key
        self.item = item


class Places:
    """The senders that wait for a place, and the places reserved for those that were granted one.

    A granted place is kept until its owner has run, so that nobody else can take it.

    Args:
        grant: called when a granted place is not needed after all.

    Attributes:
        reserved: how many places are granted but not taken yet.
    """

    __slots__ = ("_grant", "_waiting", "reserved")

    def __init__(self, grant: Callable[[], None]) -> None:
        self._grant = grant
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.reserved = 0

    def __len__(self) -> int:
        """Return how many senders are waiting without a granted place."""
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait for a place, which belongs to the caller on return; raise the error of `refuse`."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                if place in self._waiting:
                    self._waiting.remove(place)
            elif place.exception() is None:
                self.reserved -= 1
                self._grant()
            raise
        self.reserved -= 1

    def grant(self) -> None:
        """Reserve a place for the sender that has waited longest."""
        place = self._waiting.popleft()
        if not place.done():
            self.reserved += 1
            place.set_result(None)

    def refuse(self, error: BaseException) -> None:
        """Fail all waiting senders with an error."""
        waiting, self._waiting = self._waiting, deque()
        for place in waiting:
            if not place.done():
                place.set_exception(error)


class Mailbox:
    """The bounded first-in first-out queue of one actor: many producers, one consumer.

    It belongs to one event loop. Only `put` may be called from other threads.

    Args:
        capacity: the number of messages at which it is full.
        overflow: what happens to a message that is offered to a full mailbox.
        key: returns the key of a message, for `Overflow.LATEST_BY_KEY`.

    Attributes:
        capacity: as given.
        overflow: as given. An item with a true attribute ``is_kept`` is never dropped.
        dropped: how many items the overflow policy has dropped.
        on_drop: called with what was dropped: the item, or for a local message its content. It
            must not raise; if it does, that is logged.
        name: whose mailbox it is, for error messages.
        items: the waiting items; to be read only, except as `offer` does.
        limit: up to this many items `offer` needs no further checks; 0 if it always does.
        getter: what the consumer waits for; None if it does not wait.
        looks_after: whether items taken out of ``items`` have to go through `taken`.

    Raises:
        ConfigurationError: the capacity is below 1, or the key is missing or has no use.
    """

    __slots__ = (
        "_closed",
        "_incoming",
        "_latest",
        "_loop",
        "_places",
        "_thread",
        "capacity",
        "dropped",
        "getter",
        "items",
        "key",
        "limit",
        "looks_after",
        "name",
        "on_drop",
        "overflow",
    )

    def __init__(
        self,
        capacity: int = 1_000,
        overflow: Overflow = Overflow.REFUSE,
        key: Callable[[Any], Hashable] | None = None,
    ) -> None:
        if capacity < 1:
            raise ConfigurationError(
                f"the capacity of a mailbox must be at least 1, not {capacity!r}"
            )
        if (key is None) == (overflow is Overflow.LATEST_BY_KEY):
            problem = "needs a key function" if key is None else "has no use for a key function"
            raise ConfigurationError(f"overflow policy {overflow.value!r} {problem}")
        self.capacity: int = capacity
        self.overflow: Overflow = overflow
        self.key: Callable[[Any], Hashable] | None = key
        self.items: deque[Any] = deque()
        self._latest: dict[Hashable, Slot] | None = None if key is None else {}
        self._closed = False
        self.limit: int = capacity if key is None else 0
        self.getter: asyncio.Future[None] | None = None
        self._places: Places | None = None
        self.looks_after: bool = key is not None
        self._incoming: deque[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self.dropped: int = 0
        self.on_drop: Callable[[Any], None] | None = None
        self.name: str = ""

    @property
    def _reserved(self) -> int:
        return 0 if self._places is None else self._places.reserved

    @property
    def closed(self) -> bool:
        """Whether it accepts no more messages."""
        return self._closed

    @property
    def full(self) -> bool:
        """Whether it has no free place; places reserved for waiting senders are not free."""
        return len(self.items) + self._reserved >= self.capacity

    def __len__(self) -> int:
        return len(self.items)

    def __bool__(self) -> bool:
        return True

    def waiting(self) -> list[Any]:
        """Return the waiting items as they were put, first to last. Works from any thread."""
        # The list is copied at once: the event loop may change it meanwhile.
        return [entry.item if type(entry) is Slot else entry for entry in list(self.items)]

    def empty(self) -> bool:
        """Return whether it holds no items."""
        return not self.items

    def bind(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """Assign it to an actor, which lives on ``loop`` in the calling thread.

        Raises:
            ConfigurationError: it belongs to another actor, or is closed.
        """
        if self._closed or self._loop is not None:
            state = "closed" if self._closed else f"already in use by actor {self.name!r}"
            raise ConfigurationError(
                f"the mailbox for actor {name!r} is {state}; give each actor a new Mailbox"
            )
        self._loop = loop
        self._thread = threading.get_ident()
        self.name = name

    # Putting

    def offer(self, item: Any) -> bool:
        """Put an item, following the overflow policy if the mailbox is full. Does not wait.

        Returns:
            False if this very item was dropped.

        Raises:
            MailboxFull: it is full, and the policy is to refuse.
            ActorStopped: it is closed.
        """
        # `ActorRef.tell` does the same without the call.
        items = self.items
        if len(items) < self.limit:
            items.append(item)
            if self.getter is not None:
                self.wake()
            return True
        return self._offer_closely(item)

    def force(self, item: Any) -> None:
        """Put an item even if the mailbox is full: for sources that have their own limit.

        Raises:
            ActorStopped: it is closed.
        """
        if self._closed:
            raise self._stopped()
        self.items.append(item)
        self.wake()

    def force_all(self, items: Iterable[Any]) -> None:
        """Put the items as `force` does."""
        self._check_open()
        self.items.extend(items)
        self.wake()

    async def put_wait(self, item: Any) -> None:
        """Put an item, waiting for a place as long as it takes; places go to senders in order.

        An item whose put is cancelled is not in the mailbox.

        Raises:
            ActorStopped: it is closed, or was closed while waiting.
        """
        self._check_open()
        if self.full:
            if self._places is None:
                self._places = Places(self._grant)
                self.looks_after = True
            await self._places.wait()
            self._note_limit()
            self._check_open()
        self.items.append(item)
        self.wake()

    def put(self, item: Any) -> None:
        """Put an item from any thread; pykka's protocol. Does not wait.

        From another thread an item counts as accepted once this returns, and items of one thread
        stay in order. An item that expects an answer is never dropped unanswered.

        Raises:
            MailboxFull: it is full, and the policy is to refuse.
            ActorStopped: it is closed, or its event loop is.
        """
        if self._loop is None or threading.get_ident() == self._thread:
            self.offer(item)
            return
        self._check_open()
        with _INCOMING_LOCK:
            if self._incoming is None:
                self._incoming = deque()
        refuses = self.overflow is Overflow.REFUSE
        if refuses and len(self.items) + len(self._incoming) >= self.capacity:
            raise self._full()
        self._incoming.append(item)
        try:
            self._loop.call_soon_threadsafe(self._take_incoming)
        except RuntimeError as error:
            raise ActorStopped(f"the event loop of actor {self.name!r} is closed") from error

    def push_front(self, items: Iterable[Any]) -> None:
        """Put items, in their order, ahead of everything else, even if the mailbox is full.

        Raises:
            ActorStopped: it is closed.
        """
        self._check_open()
        self.items.extendleft(reversed(list(items)))
        self.wake()

    # Taking

    async def get(self) -> Any:
        """Take the first item, waiting for one as long as it takes.

        Raises:
            ActorStopped: it is closed and empty.
        """
        while not self.items:
            self._check_open()
            await self.arrival()
        return self.get_nowait()

    def get_nowait(self) -> Any:
        """Take the first item.

        Raises:
            asyncio.QueueEmpty: there is none.
        """
        # `actors._actor_cell.work` does the same without the call.
        try:
            item = self.items.popleft()
        except IndexError:
            raise asyncio.QueueEmpty from None
        return self.taken(item) if self.looks_after else item

    def taken(self, item: Any) -> Any:
        """Return what has just left `items` as it was put, and grant its place to a sender."""
        if self._latest is not None:
            item = self._unslot(item)
        if self._places is not None:
            self._grant()
        return item

    def arrival(self) -> asyncio.Future[None]:
        """Return a future that completes with the next item or `close`; for the consumer."""
        if self.getter is not None and not self.getter.done():
            raise RuntimeError(f"somebody else is already taking from the mailbox of {self.name!r}")
        loop = self._loop or asyncio.get_running_loop()
        getter: asyncio.Future[None] = loop.create_future()
        self.getter = getter
        if self.items or self._closed:
            self.wake()
        return getter

    def extract(self, predicate: Callable[[Any], bool]) -> list[Any]:
        """Remove and return the items for which ``predicate(item)`` is true; both stay in order."""
        taken: list[Any] = []
        left: list[Any] = []
        for entry in self.items:
            item = entry.item if type(entry) is Slot else entry
            if predicate(item):
                taken.append(item)
                self._unslot(entry)
            else:
                left.append(entry)
        if taken:
            self.items.clear()
            self.items.extend(left)
            self._grant()
        return taken

    def close(self) -> None:
        """Accept no more items; waiting senders get ActorStopped. The items in it stay."""
        self._closed = True
        self.limit = 0
        if self._places is not None:
            self._places.refuse(self._stopped())
        self.wake()

    # Inside

    def _offer_closely(self, item: Any) -> bool:
        self._check_open()
        content = item.message if isinstance(item, LocalMessage) else item
        asked = isinstance(item, LocalMessage) and item.reply is not None
        slot: Slot | None = None
        if self._latest is not None and not asked:
            assert self.key is not None
            key = self.key(content)
            old = self._latest.get(key)
            if old is not None:
                replaced, old.item = old.item, item
                self._drop(replaced)
                return True
            slot = Slot(key, item)
        if self.full:
            if asked or self.overflow is Overflow.REFUSE:
                raise self._full()
            place = None if self.overflow is Overflow.DROP_NEWEST else self._oldest()
            if place is None:
                self._drop(item)
                return False
            oldest = self.items[place]
            del self.items[place]
            self._drop(self._unslot(oldest))
        if slot is not None and self._latest is not None:
            self._latest[slot.key] = slot
        self.items.append(item if slot is None else slot)
        self.wake()
        return True

    def _oldest(self) -> int | None:
        kept = (getattr(entry, "is_kept", False) for entry in self.items)
        return next((place for place, is_kept in enumerate(kept) if not is_kept), None)

    def _unslot(self, entry: Any) -> Any:
        if type(entry) is not Slot:
            return entry
        if self._latest is not None:
            del self._latest[entry.key]
        return entry.item

    def _drop(self, item: Any) -> None:
        self.dropped += 1
        content = item
        if isinstance(item, LocalMessage):
            item.fail(
                MailboxFull(f"{self._described()} dropped the message in favour of a newer one")
            )
            content = item.message
        if self.on_drop is not None:
            try:
                self.on_drop(content)
            except BaseException as error:  # noqa: BLE001  (the one who sends is not to blame)
                _log.error("on_drop of %s raised", self._described(), exc_info=error)

    def wake(self) -> None:
        """Tell the consumer, if it waits, that there is something for it."""
        getter, self.getter = self.getter, None
        if getter is not None and not getter.done():
            getter.set_result(None)

    def _grant(self) -> None:
        """Reserve free places for the senders that have waited longest."""
        places = self._places
        if places is None:
            return
        while len(places) and not self.full:
            places.grant()
        self._note_limit()

    def _note_limit(self) -> None:
        simple = self._latest is None and not self._closed
        self.limit = self.capacity - self._reserved if simple else 0

    def _take_incoming(self) -> None:
        incoming = self._incoming
        while incoming:
            item = incoming.popleft()
            try:
                if self.overflow is Overflow.REFUSE:
                    self.force(item)
                else:
                    self.offer(item)
            except BaseException as error:  # noqa: BLE001
                # The thread that put it has moved on: the mailbox was closed, or the key function
                # raised.
                what, why = self._described(), describe(error)
                _log.warning("%s lost a message from a thread: %s", what, why)
                if isinstance(item, LocalMessage):
                    item.fail(error)
                self._drop(item)

    def _check_open(self) -> None:
        if self._closed:
            raise self._stopped()

    def _described(self) -> str:
        return f"the mailbox of actor {self.name!r}" if self.name else "the mailbox"

    def _stopped(self) -> ActorStopped:
        whose = f"actor {self.name!r}" if self.name else "the actor of this mailbox"
        return ActorStopped(f"{whose} has stopped and accepts no more messages")

    def _full(self) -> MailboxFull:
        return MailboxFull(
            f"{self._described()} is full ({self.capacity} messages);"
            " wait for room with send, or choose a larger capacity or another overflow policy"
        )
