"""The contract of what keeps the states of keys, and which messages have changed them."""

from __future__ import annotations

import abc
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ._envelope import DEFAULT_TYPE, Envelope

__all__ = [
    "MOST_HANDLED",
    "SECONDS_HANDLED",
    "Change",
    "Handled",
    "MessageIdentity",
    "StateStore",
    "StoredKey",
    "identity_of",
]

SECONDS_HANDLED = 86_400.0
"""How long a store knows a message that was handled, in seconds."""
MOST_HANDLED = 1_000_000
"""How many of them it knows."""
# What handlers publish has ids of this kind: UUIDs of version 5.
_DERIVED = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_encode = msgspec.msgpack.Encoder().encode


class MessageIdentity(msgspec.Struct, frozen=True, gc=False):
    """What tells a message that comes again from all others.

    Ids and sources come from strangers. So the key and the content count, too: whoever uses an id
    twice, or that of somebody else, must not have one message taken for another.

    Attributes:
        name: stands for the actor, the key, the sender or topic, and the id.
        digest: of the topic, the type, the content type and the payload.
    """

    name: bytes
    digest: bytes


class Handled(msgspec.Struct, gc=False):
    """A message that was handled.

    Attributes:
        number: its place in the order.
        actor: who has handled it.
        at: when, in seconds since 1970.
        outputs: what it has published, unless it is known to have been sent.
    """

    number: int
    actor: str
    at: float
    outputs: tuple[Envelope, ...]


class StoredKey(msgspec.Struct, frozen=True, gc=False):
    """What a store has of a key.

    Attributes:
        value: as it was committed last.
        revision: the number of the change that has written it.
    """

    value: bytes
    revision: int


class Change(msgspec.Struct, gc=False):
    """What one message has changed; kept as a whole, or not at all.

    Attributes:
        actor: the name of the actor.
        key: the key.
        revision: that of what was loaded of the key; 0 if there was nothing.
        value: what there is of the key from now on, empty if that is nothing; None if it is what
            it was.
        message: the message; None if it has no id, so that it cannot be known again.
        outputs: what it has published.
        at: when, in seconds since 1970.
        wake: with a value: when something is to be done with the key, in seconds since 1970; None
            for never.
    """

    actor: str
    key: str
    revision: int
    value: bytes | None
    message: MessageIdentity | None
    outputs: tuple[Envelope, ...]
    at: float
    wake: float | None = None


class StateStore(abc.ABC):
    """Keeps the states of the keys of an application's actors.

    One thread at a time calls its methods, which may block. What `commit` has returned for survives
    the process and the computer.
    """

    @abc.abstractmethod
    def load(self, actor: str, keys: Iterable[str]) -> Mapping[str, StoredKey]:
        """Return what there is of those keys of which there is anything."""

    @abc.abstractmethod
    def find(self, message: MessageIdentity) -> Handled | bool:
        """Return what is known of a message that was handled.

        If none was, return whether one of the same name with another content was.
        """

    @abc.abstractmethod
    def commit(
        self, changes: Sequence[Change], sent: Sequence[int], acknowledged: Sequence[int] = ()
    ) -> Sequence[int | None]:
        """Keep changes, all of them or none, and return their numbers, which grow.

        A change is a conflict if its key has another revision now than the one that was loaded, or
        if its message was handled: the number is None, and nothing of this change is kept, while
        the others are.

        Args:
            changes: in the order in which their outputs are to be sent, one of each key at most.
            sent: the numbers of earlier ones whose outputs are done with.
            acknowledged: the numbers of those whose messages the bus does not send again, and whose
                outputs are done with.

        Raises:
            StateNotWritten: nothing was kept; it may be tried again.
            StateLost: it is unknown what was kept, so that nothing may be done any more.
        """

    @abc.abstractmethod
    def first_due(self, actor: str, most: int) -> Sequence[tuple[str, float]]:
        """Return the keys of an actor that are to be woken first, in order, each with the time."""

    @abc.abstractmethod
    def unsent(self) -> Sequence[Handled]:
        """Return the changes whose outputs may not have been sent, in order."""

    @abc.abstractmethod
    def trim(self, now: float) -> None:
        """Forget acknowledged messages that are older than a day, or too many.

        While nothing is handled no time passes: what was handled before a pause, and was not known
        to be acknowledged, may still come again after it.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release what it uses; never raises."""


def identity_of(
    actor: str, key: str, envelope: Envelope, *, by_place: bool = False
) -> MessageIdentity | None:
    """Return what a message is known again by; None if its sender gave it no id.

    Args:
        actor: the name of the actor that handles it.
        key: the key whose state it changes.
        envelope: the message.
        by_place: whether its place in a partition stands for its id if it has none. So it is known
            when it comes again, and not when its sender has published it twice.
    """
    identifier: object = envelope.id
    if envelope.id is not None:
        sender = _sender_of(envelope, envelope.id)
    elif by_place and envelope.offset is not None:
        sender = envelope.source or envelope.topic
        # The time tells it from what was there before the topic was recreated.
        identifier = envelope.partition, envelope.offset, envelope.time
    else:
        return None
    # A key may have what no text in UTF-8 can have.
    parts = (actor, key.encode("utf-8", "surrogatepass"), sender, identifier)
    name = hashlib.sha256(_encode(parts)).digest()[:16]
    # As in its dead letter, which has a type in any case, and may be handled in its place.
    kind = envelope.type or DEFAULT_TYPE
    content = hashlib.sha256(
        _encode((envelope.topic, kind, envelope.content_type, len(envelope.payload)))
    )
    content.update(envelope.payload)
    return MessageIdentity(name, content.digest()[:16])


def _sender_of(envelope: Envelope, identifier: str) -> str:
    """Return whom the id of a message is unique to.

    What one instance of an application has published may be published again by another, with the
    same id, if they share the messages that it follows from.
    """
    source = envelope.source or envelope.topic
    levels = source.split("/", 3)
    if len(levels) == 3 and _DERIVED.fullmatch(identifier):
        application, _, actor = levels
        return f"{application}/{actor}"
    return source
