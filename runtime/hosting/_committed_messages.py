"""Messages that were committed, until their outputs are sent and they do not come again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ...transports import Delivery, DeliveryState, Envelope, on_outcome
from ...transports._state_store import Handled
from ..messaging._turn import is_confirmed

__all__ = ["CommittedMessages", "SentOutputs", "left_of"]

_MANY = 1_000


class SentOutputs:
    """What one message has published, on its way to the bus: each once, unless it fails.

    Args:
        outputs: what it has published.
    """

    __slots__ = ("_outputs", "_posts")

    def __init__(self, outputs: Sequence[Envelope]) -> None:
        self._outputs = outputs
        self._posts: list[asyncio.Future[None] | None] = [None] * len(outputs)

    def post(self, post: Callable[[Envelope], asyncio.Future[None]]) -> None:
        """Post what was not posted yet, or has failed; raise what ``post`` does."""
        for index, envelope in enumerate(self._outputs):
            posted = self._posts[index]
            if posted is None or _failure(posted) is not None:
                self._posts[index] = posted = post(envelope)
                # Whoever else waits for it takes this over.
                on_outcome(posted, _failure)

    @property
    def pending(self) -> list[asyncio.Future[None]]:
        """What was posted and has no outcome yet."""
        return [post for post in self._posts if post is not None and not post.done()]

    @property
    def confirmed(self) -> bool:
        """Whether all of it has arrived."""
        return all(post is not None and is_confirmed(post) for post in self._posts)


class _Waiting(msgspec.Struct, eq=False):
    """A message that was committed.

    Attributes:
        number: of its change.
        delivery: its receipt; None if that was in an earlier run.
        outputs: what it has published; None for nothing.
    """

    number: int
    delivery: Delivery | None
    outputs: SentOutputs | None


class CommittedMessages:
    """Those messages that were committed and are not done with, and what to note of them next.

    Attributes:
        sent: the numbers of changes whose outputs are done with.
        acknowledged: the numbers of those whose messages do not come again, either.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.acknowledged: list[int] = []
        self._outputs: dict[int, SentOutputs] = {}
        # In the order in which they were committed, which is hardly ever another one.
        self._unsent = _Queue(self._is_sent)
        self._unacknowledged = _Queue(self._is_acknowledged)

    def outputs_of(self, number: int, outputs: Sequence[Envelope]) -> SentOutputs:
        """Return what a message has published: with what of it is on its way already."""
        found = self._outputs.get(number)
        if found is None:
            found = self._outputs[number] = SentOutputs(outputs)
        return found

    def watch(self, number: int, delivery: Delivery | None) -> None:
        """Note, from now on, when the outputs of a message are done with, and it is itself."""
        self._unsent.put(_Waiting(number, delivery, self._outputs.get(number)))

    def take(self) -> tuple[list[int], list[int]]:
        """Return what is to be noted, see the attributes, and forget it."""
        self._unsent.look()
        self._unacknowledged.look()
        acknowledged, self.acknowledged = self.acknowledged, []
        sent, self.sent = self.sent, []
        both = set(acknowledged) if sent else ()
        return [number for number in sent if number not in both], acknowledged

    def give_back(self, sent: Iterable[int], acknowledged: Iterable[int]) -> None:
        """Undo `take`, as it could not be noted."""
        self.sent[:0] = sent
        self.acknowledged[:0] = acknowledged

    def noted(self, numbers: Iterable[int]) -> None:
        """Forget what was published, now that the store has forgotten it, too."""
        for number in numbers:
            self._outputs.pop(number, None)

    def _is_sent(self, message: _Waiting, stale: bool) -> bool:
        delivery, outputs = message.delivery, message.outputs
        if delivery is not None and delivery.state is DeliveryState.SETTLED:
            if outputs is not None and not outputs.confirmed:
                # What the bus has refused for good is a dead letter, whose replay sends it.
                self._outputs.pop(message.number, None)
                return True
            if outputs is not None:
                self.sent.append(message.number)
            self._unacknowledged.put(message)
            return True
        if delivery is not None and delivery.state is not DeliveryState.WITHDRAWN:
            return False
        # It comes again, or came in an earlier run.
        if outputs is None:
            return True
        if outputs.confirmed:
            self.sent.append(message.number)
            return True
        return not outputs.pending

    def _is_acknowledged(self, message: _Waiting, stale: bool) -> bool:
        delivery = message.delivery
        assert delivery is not None
        if delivery.acknowledged:
            self.acknowledged.append(message.number)
            return True
        tracker = delivery.tracker
        lost = tracker is not None and delivery.epoch != tracker.epoch
        # It may come again and be recognised, which shows in it, or be known to the store then.
        return stale and lost and delivery.successor is None


class _Queue:
    """Messages in order, of which those that are over leave at the front, or when they are many.

    Args:
        is_over: whether a message is over, and what follows from it; called once more if not. Its
            second argument is whether there are many.
    """

    def __init__(self, is_over: Callable[[_Waiting, bool], bool]) -> None:
        self._is_over = is_over
        self._messages: deque[_Waiting] = deque()
        self._many = _MANY

    def put(self, message: _Waiting) -> None:
        """Add a message."""
        self._messages.append(message)

    def look(self) -> None:
        """Take out messages that are over."""
        messages = self._messages
        while messages and self._is_over(messages[0], False):
            messages.popleft()
        if len(messages) > self._many:
            # One that takes long must not keep all those behind it.
            left = [message for message in messages if not self._is_over(message, True)]
            self._messages = deque(left)
            self._many = max(_MANY, 2 * len(left))


def left_of(handled: Handled, now: float) -> tuple[Envelope, ...]:
    """Return what a message has published earlier and is worth sending, with what is left of it."""
    left = []
    for envelope in handled.outputs:
        if envelope.expiry is None:
            left.append(envelope)
            continue
        # The clock may have been put back.
        expiry = min(envelope.expiry, envelope.expiry - (now - handled.at))
        if expiry > 0:
            left.append(msgspec.structs.replace(envelope, expiry=expiry))
    return tuple(left)


def _failure(posted: asyncio.Future[None]) -> BaseException | None:
    """Return what has become of a post if that is bad; also so that somebody has asked."""
    if not posted.done():
        return None
    return asyncio.CancelledError() if posted.cancelled() else posted.exception()
