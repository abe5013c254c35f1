"""Deliveries: the receipt of a message, and the tracker of what may be acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Generic

import msgspec

from ._envelope import Envelope

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with a default; of type checkers only

    from ._tenures import Tenure
    from ._units import Unit

    R = TypeVar("R", covariant=True, default=object)
else:
    from typing import TypeVar

    R = TypeVar("R", covariant=True)

__all__ = ["Delivery", "DeliveryState", "Tracker"]


class DeliveryState(Enum):
    """The stages of a delivery."""

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

    A receiver calls `start` before it works on the delivery and `settle` when it is done with it
    for good. A delivery that was withdrawn in between comes again from the bus: it must not be
    started. Only the receiver knows what a route is and uses a ``Delivery[Route]``; to a transport
    it is just a ``Delivery``.

    Attributes:
        envelope: the message.
        epoch: the number of the connection or assignment it came with.
        token: what the transport needs to acknowledge it (MQTT packet id, Kafka offset);
            -1 if nothing is to be acknowledged (QoS 0).
        tracker: keeps the order of acknowledgements and counts what is unsettled; None if nothing
            does.
        size: how many bytes of its subscription's window it takes.
        state: its stage.
        attempts: how often a handler has already failed on it, including earlier receipts.
        outages: how often an outage has ended an attempt at it, which does not count as one.
        deadline: loop time after which it is no longer worth starting; set by the receiver.
        route: where it goes, in the receiver's own terms; None until the receiver sets it.
        released: whether the bus was told that it need not send the message again.
        arrived: loop time at which the receiver got it, if it measures that; otherwise 0.
        on_withdraw: called once when it is withdrawn while running, to cut a wait short.
        on_awaited: called when it becomes `awaited`; set by the receiver.
        successor: a later receipt of the same message, which waits for this one's result.
        is_stored: whether the message is stored until this is settled, so that withdrawing it
            never loses the message.
    """

    is_stored: ClassVar[bool] = False

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
    released: bool = False
    arrived: float = 0.0
    outages: int = 0

    @property
    def acknowledged(self) -> bool:
        """Whether the bus need not send the message again, in whichever receipt."""
        last: Delivery = self
        while last.successor is not None:
            last = last.successor
        if last.released:
            return True
        if last.tracker is None or last.token < 0:
            return last.state is _SETTLED
        return last.tracker.acknowledges(last)

    @property
    def awaited(self) -> bool:
        """Whether the bus sends nothing more until this one is settled."""
        tracker = self.tracker
        return tracker is not None and tracker.full and tracker.next is self

    @property
    def unit(self) -> Unit | None:
        """What commits its outcome; None if nothing does."""
        return None if self.tracker is None else self.tracker.unit

    def start(self) -> bool:
        """Claim the delivery for a handler; False when it must not run (withdrawn or settled)."""
        if self.state is not _QUEUED:
            return False
        self.state = _RUNNING
        return True

    def settle(self) -> None:
        """Note that the receiver is done with it for good. Calling it again changes nothing.

        Settling a delivery that was withdrawn while running also settles the receipt that
        replaced it.
        """
        if self.state is _SETTLED:
            return
        self.state = _SETTLED
        if self.successor is not None:
            self.successor.settle()
        if self.tracker is not None:
            self.tracker.settled(self)

    def requeue(self) -> None:
        """Return a running delivery to the queue, so that it can be claimed again."""
        if self.state is _RUNNING:
            self.state = _QUEUED

    def withdraw(self) -> None:
        """Take back what has not been settled: the bus will send it again.

        A receipt that waits for this one's result is taken back with it: nobody else would ever
        settle it.
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
        """Let the result of this one also settle ``successor``, a later receipt."""
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
    """The deliveries of one source (a connection, a partition), in order of arrival.

    Deliveries may be settled in any order; they are released as the longest settled prefix, so
    that acknowledgements never overtake an unfinished message. A new epoch forgets what came
    before: settling that later releases nothing.

    Args:
        release: called with the deliveries that are released, oldest first, at least one.
        on_settled: called when a delivery is settled that is never released.

    Attributes:
        epoch: the number of the connection.
        size: bytes of the deliveries of this epoch that are not released or, if nothing is to be
            acknowledged, not settled.
        passing: how many of them are never acknowledged, and not settled.
        full: whether the transport accepts nothing more until something is released; see `fill`.
        tenure: for how long nobody else handles what comes from the source; None if nobody else
            ever does.
        unit: commits what the deliveries have come to; None if nothing does.
    """

    __slots__ = (
        "_on_settled",
        "_release",
        "_slots",
        "epoch",
        "full",
        "passing",
        "size",
        "tenure",
        "unit",
    )

    def __init__(
        self,
        release: Callable[[list[Delivery]], None],
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._release = release
        self._on_settled = on_settled
        self._slots: deque[Delivery] = deque()
        self.epoch: int = 0
        self.size: int = 0
        self.passing: int = 0
        self.full: bool = False
        self.tenure: Tenure | None = None
        self.unit: Unit | None = None

    def __len__(self) -> int:
        """Return the number of deliveries that are not released yet."""
        return len(self._slots)

    def begin(self) -> list[Delivery]:
        """Start the next epoch; return what the last one leaves unreleased, oldest first."""
        left = list(self._slots)
        self._slots.clear()
        self.size = self.passing = 0
        self.full = False
        self.epoch += 1
        return left

    @property
    def next(self) -> Delivery | None:
        """The delivery that has to be settled before anything can be released."""
        return self._slots[0] if self._slots else None

    @property
    def newest(self) -> Delivery | None:
        """The delivery that arrived last of those that are not released."""
        return self._slots[-1] if self._slots else None

    def fill(self) -> None:
        """Note that there is no room, and tell the receiver which delivery everything waits for.

        Everything behind that one may be settled already, so that only it can make room.
        """
        self.full = True
        if self._slots and (tell := self._slots[0].on_awaited) is not None:
            tell()

    def register(self, envelope: Envelope, token: int, size: int = 0) -> Delivery:
        """Append a slot for a delivery of this size that has just arrived."""
        delivery = Delivery(envelope, self.epoch, token, self, size)
        self._slots.append(delivery)
        self.size += size
        return delivery

    def count(self, envelope: Envelope, size: int) -> Delivery:
        """Count a delivery of this size until it is settled; it is never acknowledged."""
        self.size += size
        self.passing += 1
        return Delivery(envelope, self.epoch, -1, self, size)

    def unreleased(self) -> tuple[Delivery, ...]:
        """Return the deliveries that are not released yet, oldest first."""
        return tuple(self._slots)

    def acknowledges(self, delivery: Delivery) -> bool:
        """Return whether the bus has been told of a delivery that it need not send it again."""
        return delivery.released

    def settled(self, delivery: Delivery) -> None:
        """Release the settled prefix, if it has grown; called by the delivery itself."""
        if delivery.epoch != self.epoch:
            return
        if delivery.token < 0:
            self.size -= delivery.size
            self.passing -= 1
            self._on_settled()
            return
        slots = self._slots
        if not slots or slots[0] is not delivery:
            return
        free = [slots.popleft()]
        delivery.released = True
        self.size -= delivery.size
        while slots and slots[0].state is _SETTLED:
            next_one = slots.popleft()
            next_one.released = True
            self.size -= next_one.size
            free.append(next_one)
        self._release(free)
