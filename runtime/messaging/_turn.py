"""The turn: one attempt of one actor at one message, with what it publishes meanwhile."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import Sequence
from contextvars import Context, ContextVar
from hashlib import sha1
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from ...transports import Delivery, Envelope
from ._carried_headers import carried_by, carried_by_all

if TYPE_CHECKING:
    from ...transports._units import Outcome

__all__ = [
    "Effects",
    "Turn",
    "carried_now",
    "current_turn",
    "inherited",
    "is_confirmed",
    "lasting_identity",
]

_NAMESPACE = uuid.UUID("6f1c7d1e-6a0b-5e57-9c0b-0d5b5a3f4f11").bytes
_DIGEST_OF_NAMESPACE = sha1(_NAMESPACE, usedforsecurity=False)
# The digit of a UUID with its variant.
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class Effects(msgspec.Struct, eq=False):
    """What an attempt at a message of a durable key has done, to be committed as a whole.

    Attributes:
        outputs: what it has published.
        size: the bytes that these take.
        deletes: whether it has deleted the state of the key.
        reminders: those that it has set, by name, each as when it is due, payload and content type;
            None for those that it has removed.
    """

    outputs: list[Envelope] = []
    size: int = 0
    deletes: bool = False
    reminders: dict[str, tuple[float, bytes, str | None] | None] = {}


class Turn(msgspec.Struct, eq=False):
    """One attempt at one message: its posts, and the ids of what it publishes.

    Tasks that a handler starts inherit the turn through the context; once the handler has
    returned, what they publish no longer belongs to the message.

    Attributes:
        message_id: the id of the message, or None; a delivery instead means the id of its message.
        actor: ``application/instance/actor``.
        request: the message, if it is a request that may be answered.
        settles: whether there is a message to be settled; if not, posts are on their own.
        answered: whether a reply was sent or is on its way.
        reply: the post of that reply, unless it is an error.
        posts: publishes that have to be confirmed before the message is settled.
        active: whether the handler is still running.
        shared: whether another instance may have to handle the message again, so that the ids do
            not depend on the instance. If every instance gets the message, they do.
        failure: what the handler raised, or did wrong unnoticed, until it has been dealt with.
        batch: the messages, if it is an attempt at several.
        context: the variables of a handler whose reply is to be shown to middleware.
        effects: what it has published and asked for, if that is to be committed; else None.
        outcome: what is to be committed with the acknowledgement of the message; else None.
    """

    message_id: str | Delivery | None
    actor: str
    request: Envelope | None = None
    settles: bool = True
    answered: bool = False
    reply: asyncio.Future[None] | None = None
    posts: list[asyncio.Future[None]] = []
    active: bool = True
    shared: bool = False
    failure: BaseException | None = None
    batch: Sequence[Delivery] = ()
    context: Context | None = None
    effects: Effects | None = None
    outcome: Outcome | None = None
    _delivery: Delivery | None = None
    _ordinals: dict[str, int] | None = None
    _crowded: int = 1000
    _carried: MappingProxyType[str, str] | None = None

    def add(self, posted: asyncio.Future[None]) -> None:
        """Add a publish that has to be confirmed before the message is settled."""
        posts = self.posts
        posts.append(posted)
        if len(posts) >= self._crowded:
            # A handler may post for hours: confirmed posts must not stay in memory.
            self.posts = [post for post in posts if not is_confirmed(post)]
            self._crowded = max(1000, 2 * len(self.posts))

    def take(self) -> BaseException:
        """Return the failure and forget it: its traceback may refer to the turn."""
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure

    def refuse_failure(self) -> None:
        """Raise what the handler did wrong, if it has returned all the same."""
        if self.failure is not None:
            raise self.take()

    @property
    def delivery(self) -> Delivery | None:
        """The message, if it is an attempt at one."""
        return self.message_id if isinstance(self.message_id, Delivery) else self._delivery

    def is_reply(self, topic: str) -> bool:
        """Return whether what is published to a topic now is the reply to the request."""
        return self.request is not None and self.request.response_topic == topic

    def addresses(self, text: str) -> bool:
        """Return whether a text is part of the message's topic or of its response topic."""
        if (delivery := self.delivery) is None:
            return False
        envelope = delivery.envelope
        return text in envelope.topic or text in (envelope.response_topic or "")

    def carried(self) -> MappingProxyType[str, str]:
        """Return the headers of the message that everything published meanwhile has, too.

        Of a batch, those that all of its messages have in common.
        """
        if self._carried is None:
            delivery = self.delivery
            envelope = self.request if delivery is None else delivery.envelope
            if envelope is None:
                carried = carried_by_all(delivery.envelope for delivery in self.batch)
            else:
                carried = carried_by(envelope)
            # Many messages may have them as they are.
            self._carried = MappingProxyType(carried)
        return self._carried

    def publish_id(self, topic: str) -> str | None:
        """Return the id for the next publish on ``topic``: the same at every attempt.

        It is a UUID version 5 (RFC 9562) of the message's topic, source and id, the actor, the
        topic and the number of earlier publishes on that topic. None if the message has no id to
        derive it from.
        """
        identity = self.message_id
        if isinstance(identity, Delivery):
            self._delivery = identity
            envelope = identity.envelope
            identity = self.message_id = lasting_identity(envelope)
        if identity is None or not self.active:
            return None
        ordinals = self._ordinals
        if ordinals is None:
            ordinal, self._ordinals = 0, {topic: 1}
        else:
            ordinal = ordinals.get(topic, 0)
            ordinals[topic] = ordinal + 1
        actor = _common(self.actor) if self.shared else self.actor
        # By hand: uuid.uuid5 takes several times as long.
        digest = _DIGEST_OF_NAMESPACE.copy()
        digest.update(f"{identity}\0{actor}\0{topic}\0{ordinal}".encode())
        digits = digest.hexdigest()
        variant = _VARIANTS[digits[16]]
        return (
            f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"
        )


def lasting_identity(envelope: Envelope) -> str | None:
    """Return what the ids of a message's publishes are derived from: its id, or its log position.

    Ids are unique to a sender, and strangers choose them, so the source and the topic count, too.
    The position includes the time, because a topic that was deleted and created again has other
    messages at the same positions. None if the message has neither.
    """
    if envelope.id is not None:
        # The topic comes first: of the three it alone never has a null character.
        return f"{envelope.topic}\0{envelope.source or ''}\0{envelope.id}"
    identity = envelope.identity
    return None if identity is None else f"{identity}@{envelope.time}"


def is_confirmed(post: asyncio.Future[None]) -> bool:
    """Return whether the broker has confirmed a post."""
    return post.done() and not post.cancelled() and post.exception() is None


@functools.lru_cache(1_024)
def _common(actor: str) -> str:
    application, _, name = actor.split("/", 2)
    return f"{application}/{name}"


current_turn: ContextVar[Turn | None] = ContextVar("spa_dat_turn", default=None)
"""The turn that the running code belongs to."""

inherited: ContextVar[MappingProxyType[str, str] | None] = ContextVar(
    "spa_dat_inherited", default=None
)
"""In a scheduled call: the carried headers of the message whose handler has scheduled it."""


def carried_now() -> MappingProxyType[str, str] | None:
    """Return the headers that what the running code publishes has to carry; None for none."""
    turn = current_turn.get()
    if turn is None:
        return inherited.get()
    return turn.carried() if turn.active else None


def _forked() -> None:
    # A handler that comes back in a process that it has forked off has not succeeded there: nothing
    # may be acknowledged. What that process does otherwise is no part of the message.
    turn = current_turn.get()
    if turn is not None:
        turn.failure = RuntimeError("another process")
        current_turn.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
