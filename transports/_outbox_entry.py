"""One publish on its way to a broker, and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import PublishNotSent, PublishUnknown
from ._envelope import Envelope

__all__ = ["OutboxEntry", "on_failure", "size_of"]

# Texts of so many characters together are not counted.
_FREE = 1_024


class Keeper(Protocol):
    """What keeps a publish until its outcome is known."""

    def give_up(self, entry: OutboxEntry, /) -> None:
        """Its outcome is wanted no more."""

    def is_outage(self, entry: OutboxEntry, waited: float, /) -> bool:
        """Whether the connection was away in the seconds since it was submitted."""


class OutboxEntry(asyncio.Future[None]):
    """One publish, and at the same time the future of its confirmation.

    Cancelling it gives the publish up: at once if it waits to be written, else the broker may or
    may not have it, and it is not written again.

    Attributes:
        envelope: the message.
        note: the transport's own, for example the message in encoded form.
        writes: how often it has been written so far, over all connections, without having been
            refused.
        put_off: why the broker does not take it for now, in words; empty when nothing says so.
        size: its bytes, as the outbox counts them.
        on_failure: called with it, soon after it has failed; see the function of that name.
    """

    __slots__ = (
        "_answers",
        "_losses",
        "_outbox",
        "envelope",
        "note",
        "on_failure",
        "put_off",
        "size",
        "writes",
    )

    def __init__(self, envelope: Envelope, outbox: Keeper | None, note: Any = None) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.envelope = envelope
        self.note = note
        self.writes = 0
        self.put_off = ""
        self.size = 0
        self.on_failure: Callable[[asyncio.Future[None]], object] | None = None
        self._outbox = outbox
        # What `Outbox.is_outage` compares with.
        self._losses = self._answers = 0

    def set_exception(self, exception: type | BaseException, /) -> None:
        super().set_exception(exception)
        if self.on_failure is not None:
            self.get_loop().call_soon(self.on_failure, self)

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled and self._outbox is not None:
            self._outbox.give_up(self)
        return cancelled

    def met_outage(self, waited: float) -> bool:
        """Whether the connection was away at some time since it was submitted.

        Args:
            waited: the seconds since then.
        """
        return self._outbox is not None and self._outbox.is_outage(self, waited)

    def unconfirmed(self, reason: str) -> PublishNotSent | PublishUnknown:
        """The error that says what is known of the publish when it is given up now."""
        where = f"publish to {self.envelope.topic!r}"
        if self.put_off:
            reason = f"{reason}; {self.put_off}"
        if self.writes:
            return PublishUnknown(
                f"{where} was written but not confirmed: {reason}; it may have been received, so"
                " publish it again only where a duplicate does no harm"
            )
        return PublishNotSent(f"{where} was not sent: {reason}; it is safe to publish it again")


def size_of(envelope: Envelope) -> int:
    """What a publish takes of an outbox: its payload, and its texts where they are long.

    Topics and headers are often those of a message that somebody else has sent.
    """
    texts = len(envelope.topic)
    if envelope.headers:
        texts += sum(map(len, envelope.headers)) + sum(map(len, envelope.headers.values()))
    for text in (envelope.key, envelope.content_type):
        if text is not None:
            texts += len(text)
    return len(envelope.payload) + (texts if texts > _FREE else 0)


def on_failure(
    posted: asyncio.Future[None], callback: Callable[[asyncio.Future[None]], object]
) -> None:
    """Call back with the future of a publish that nobody waits for once it has failed.

    For most publishes nothing is ever called, which an ordinary callback could not offer. It may
    also be called with a future that has ended well.
    """
    if isinstance(posted, OutboxEntry) and not posted.done():
        posted.on_failure = callback
    else:
        posted.add_done_callback(callback)
