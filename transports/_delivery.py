"""One receipt of one message, and the book-keeping of what may be acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Generic

import msgspec

from ._envelope import Envelope

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with a default; of type checkers only

    R = TypeVar("R", covariant=True, default=object)
else:
    from typing import TypeVar

    R = TypeVar("R", covariant=True)

__all__ = ["Delivery", "DeliveryState", "Tracker"]


class DeliveryState(Enum):
    """How far a delivery has come."""

    QUEUED = "queued"
    RUNNING = "running"
    SETTLED = "settled"
    WITHDRAWN = "withdrawn"


# Members of an Enum are slow to look up, and every message needs them several times.
_QUEUED = DeliveryState.QUEUED
_RUNNING = DeliveryState.RUNNING
_SETTLED = DeliveryState.SETTLED
_WITHDRAWN = DeliveryState.WITHDRAWN


class Delivery(msgspec.Struct, Generic[R], eq=False):
    """One receipt of one envelope for one subscription, settled at most once.

    A receiver calls `start` before it works on the delivery and `settle` when it is done with
    it for good. What was withdrawn in between comes again from the bus: it must not be started.
    What a route is only the receiver knows, for which it is a ``Delivery[Route]``; a transport
    has a ``Delivery`` of any receiver.

    Attributes:
        envelope: the message.
        epoch: number of the connection or assignment it came with.
        token: what the transport needs to acknowledge it (MQTT packet id, Kafka offset);
            -1 where nothing is to be acknowledged (QoS 0).
        tracker: what keeps the order of acknowledging, and count of what is unsettled; None where
            nobody does.
        size: the bytes that it takes of its subscription's window.
        state: how far it has come.
        attempts: how often a handler has already failed on it, earlier receipts included.
        deadline: loop time after which it is not worth starting; the receiver sets it.
        route: where it goes, in the receiver's own terms: None until the receiver sets it.
        on_withdraw: called once when it is withdrawn while running, to cut a wait short.
        on_awaited: called when it becomes `awaited`; the receiver sets it.
        successor: the same message once more, which waits for this one's result.
    """

    envelope: Envelope
    epoch: int = 0
    token: int = -1
    tracker: Tracker | None = None
    size: int = 0
    state: DeliveryState = _QUEUED
    attempts: int = 0
    deadline: float | None = None
    route: R = None  # type: ignore[assignment]
    on_withdraw: Callable[[], None] | None = None
    on_awaited: Callable[[], None] | None = None
    successor: Delivery | None = None

    @property
    def awaited(self) -> bool:
        """Whether the bus sends nothing more before this one is settled."""
        tracker = self.tracker
        return tracker is not None and tracker.full and tracker.next is self

    def start(self) -> bool:
        """Claim the delivery for a handler; False when it must not run (withdrawn or settled)."""
        if self.state is not _QUEUED:
            return False
        self.state = _RUNNING
        return True

    def settle(self) -> None:
        """The receiver is done with it for good. Calling it again changes nothing.

        A delivery that was withdrawn while it ran counts for the receipt that replaced it.
        """
        if self.state is _SETTLED:
            return
        self.state = _SETTLED
        if self.successor is not None:
            self.successor.settle()
        if self.tracker is not None:
            self.tracker.settled(self)

    def requeue(self) -> None:
        """Give a running delivery back unstarted, so that it can be claimed again."""
        if self.state is _RUNNING:
            self.state = _QUEUED

    def withdraw(self) -> None:
        """Take back what has not been settled: the bus will send it again.

        A receipt that waited for this one's result is taken back with it: nobody else would
        ever settle it.
        """
        if self.state in (_SETTLED, _WITHDRAWN):
            return
        self.state = _WITHDRAWN
        if self.successor is not None:
            self.successor.attempts = self.attempts
            self.successor.withdraw()
        if self.on_withdraw is not None:
            self.on_withdraw()

    def replaced_by(self, successor: Delivery) -> None:
        """The running handler's result also settles ``successor``, the same message once more."""
        successor.state = _RUNNING
        successor.attempts = self.attempts
        self.successor = successor
        if self.state is _SETTLED:
            successor.settle()

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.envelope.topic!r} token={self.token} epoch={self.epoch}"
            f" {self.state.value}>"
        )


class Tracker:
    """What came from one source (a connection, a partition), in order of arrival.

    Deliveries may be settled in any order; they are released as the longest settled prefix, so
    that what is acknowledged never passes an unfinished message. A new epoch forgets what came
    before: settling it later releases nothing.

    Args:
        release: called with the deliveries that have become free, oldest first, never empty.
        on_settled: called when a delivery is settled that nobody waits for to be released.

    Attributes:
        epoch: the number of the connection.
        size: bytes of the deliveries of this epoch that are not released, or not settled where
            nothing is to be acknowledged.
        full: whether the transport takes nothing more before something is released; see `fill`.
    """

    def __init__(
        self,
        release: Callable[[list[Delivery]], None],
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._release = release
        self._on_settled = on_settled
        self._slots: deque[Delivery] = deque()
        self.epoch = 0
        self.size = 0
        self.full = False

    def __len__(self) -> int:
        """Deliveries that are not released yet."""
        return len(self._slots)

    def begin(self) -> list[Delivery]:
        """Start the next epoch; returns what the last one leaves unreleased, oldest first."""
        left = list(self._slots)
        self._slots.clear()
        self.size = 0
        self.full = False
        self.epoch += 1
        return left

    @property
    def next(self) -> Delivery | None:
        """The delivery that has to be settled first for something to be released."""
        return self._slots[0] if self._slots else None

    def fill(self) -> None:
        """Note that there is no room, and tell the receiver which delivery everything waits for.

        What comes later may be settled already, so that nothing else would make room.
        """
        self.full = True
        if self._slots and (tell := self._slots[0].on_awaited) is not None:
            tell()

    def register(self, envelope: Envelope, token: int, size: int = 0) -> Delivery:
        """Append a slot for what has just arrived, and takes so many bytes."""
        delivery = Delivery(envelope, self.epoch, token, self, size)
        self._slots.append(delivery)
        self.size += size
        return delivery

    def count(self, envelope: Envelope, size: int) -> Delivery:
        """A delivery that takes so many bytes until it is settled, and is never acknowledged."""
        self.size += size
        return Delivery(envelope, self.epoch, -1, self, size)

    def unreleased(self) -> tuple[Delivery, ...]:
        """Return what is not released yet, oldest first."""
        return tuple(self._slots)

    def settled(self, delivery: Delivery) -> None:
        """Called by the delivery itself; releases the prefix that has become free."""
        if delivery.epoch != self.epoch:
            return
        if delivery.token < 0:
            self.size -= delivery.size
            self._on_settled()
            return
        slots = self._slots
        if not slots or slots[0] is not delivery:
            return
        free = [slots.popleft()]
        self.size -= delivery.size
        while slots and slots[0].state is _SETTLED:
            next_one = slots.popleft()
            self.size -= next_one.size
            free.append(next_one)
        self._release(free)
