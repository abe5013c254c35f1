"""The outbox: publishes on their way to a broker, and their outcomes."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Any, Protocol

from .._limited_log import LimitedLog
from .._logs import get_logger
from .._texts import quoted
from ..errors import MessageTooLarge, OutboxFull, PublishNotSent, PublishUnknown
from ._connect_failures import not_outage
from ._envelope import Envelope

__all__ = [
    "DEFAULT_OUTBOX",
    "DEFAULT_OUTBOX_BYTES",
    "Outbox",
    "OutboxEntry",
    "on_failure",
    "on_outcome",
    "payload_too_large",
    "size_of",
]

_log = get_logger(__name__)

# Texts of up to this many characters together are not counted.
_FREE = 1_024
DEFAULT_OUTBOX = 10_000
DEFAULT_OUTBOX_BYTES = 67_108_864
# Seconds without any confirmation after which a broker counts as away, connected or not.
_SILENCE = 5.0
# Seconds: a full outbox is not looked through at each publish that it refuses.
_LOOK_AGAIN = 1.0


class Keeper(Protocol):
    """What keeps a publish until its outcome is known."""

    def give_up(self, entry: OutboxEntry, /) -> None:
        """Note that its outcome is no longer wanted."""

    def is_outage(self, entry: OutboxEntry, waited: float, /) -> bool:
        """Return whether the connection was away at some time since it was submitted."""


class OutboxEntry(asyncio.Future[None]):
    """One publish, which is also the future of its confirmation.

    Cancelling it withdraws the publish: completely if it has not been written; otherwise the broker
    may or may not have it, and it is not written again.

    Attributes:
        envelope: the message.
        note: for the transport, for example the encoded message.
        writes: how often it has been written so far, over all connections, without being refused.
        put_off: why the broker does not accept it for now; empty unless it said so.
        size: its size in bytes, as the outbox counts them.
        on_failure: called with it soon after it has failed; see the function of that name.
        on_outcome: called with it soon after it has an outcome; see the function of that name.
        deadline: loop time at which the message expires; None for never.
        awaited: whether somebody waits for its outcome, who is told if it expires.
    """

    __slots__ = (
        "_answers",
        "_losses",
        "_outbox",
        "awaited",
        "deadline",
        "envelope",
        "note",
        "on_failure",
        "on_outcome",
        "put_off",
        "size",
        "writes",
    )

    def __init__(
        self,
        envelope: Envelope,
        outbox: Keeper | None,
        note: Any = None,
        size: int = 0,
        losses: int = 0,
        answers: int = 0,
    ) -> None:
        super().__init__()
        self.envelope: Envelope = envelope
        self.note: Any = note
        self.writes: int = 0
        self.put_off: str = ""
        self.size: int = size
        self.awaited: bool = False
        self.deadline: float | None = None
        if envelope.expiry is not None:
            self.deadline = self.get_loop().time() + envelope.expiry
        self.on_failure: Callable[[asyncio.Future[None]], object] | None = None
        self.on_outcome: Callable[[asyncio.Future[None]], object] | None = None
        self._outbox = outbox
        # For comparison in `Outbox.is_outage`.
        self._losses = losses
        self._answers = answers

    def set_exception(self, exception: type | BaseException, /) -> None:
        super().set_exception(exception)
        if self.on_failure is not None:
            self.get_loop().call_soon(self.on_failure, self)
        self._tell()

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._tell()
        if cancelled and self._outbox is not None:
            self._outbox.give_up(self)
        return cancelled

    def _tell(self) -> None:
        # It must not be kept: what it belongs to may refer to this publish.
        callback, self.on_outcome = self.on_outcome, None
        if callback is not None:
            self.get_loop().call_soon(callback, self)

    @property
    def expired(self) -> bool:
        """Whether the message is not worth sending any more."""
        return self.deadline is not None and self.get_loop().time() >= self.deadline

    @property
    def left(self) -> float | None:
        """Seconds for which the message is worth delivering from now on; None for no limit."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self.get_loop().time())

    def met_outage(self, waited: float) -> bool:
        """Return whether the connection was down at some time since it was submitted.

        Args:
            waited: the seconds since then.
        """
        return self._outbox is not None and self._outbox.is_outage(self, waited)

    def unconfirmed(self, reason: str) -> PublishNotSent | PublishUnknown:
        """Return the error that says what is known of the publish if it is given up now."""
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
    """Return the bytes that a publish takes in an outbox: its payload, and its texts if long.

    Topics and headers are often those of a message from somebody else.
    """
    texts = len(envelope.topic)
    if envelope.headers:
        # Faster than adding up their lengths.
        texts += len("".join((*envelope.headers, *envelope.headers.values())))
    for text in (envelope.key, envelope.content_type):
        if text is not None:
            texts += len(text)
    return len(envelope.payload) + (texts if texts > _FREE else 0)


def payload_too_large(envelope: Envelope, most: int, who: str = "broker") -> MessageTooLarge:
    """Return the error for a publish whose payload has more than ``most`` bytes.

    Args:
        envelope: the message.
        most: what the bus allows.
        who: has to allow more, too.
    """
    return MessageTooLarge(
        f"the payload for {envelope.topic!r} has {len(envelope.payload)} bytes, and {most} are"
        f" allowed: send less, or raise the option 'max_payload' if the {who} allows it"
    )


def on_failure(
    posted: asyncio.Future[None], callback: Callable[[asyncio.Future[None]], object]
) -> None:
    """Have ``call`` called with the future of a publish, which nobody waits for, if it fails.

    For most publishes nothing is ever called, unlike with an ordinary callback. It may also be
    called with a future that has succeeded.
    """
    if isinstance(posted, OutboxEntry) and not posted.done():
        posted.on_failure = callback
    else:
        posted.add_done_callback(callback)


def on_outcome(
    posted: asyncio.Future[None], callback: Callable[[asyncio.Future[None]], object]
) -> None:
    """Have ``callback`` called with the future of a publish soon after it has an outcome.

    Only one can be called for each publish. Those of publishes that are confirmed together are
    called in one go, in an empty context, which costs much less than ordinary callbacks do.
    """
    if isinstance(posted, OutboxEntry) and not posted.done():
        posted.on_outcome = callback
    else:
        posted.add_done_callback(callback)


class Outbox:
    """The bounded queue of publishes, with a window of written but unconfirmed ones.

    The transport supplies ``write`` and reports what happens: `connected`, `disconnected`,
    `confirm` and `fail`, or `set_aside` and `take_back` for what has to be written again. What is
    pending when the connection ends is written again on the next one, first and in the order in
    which it was submitted. If a library below resends by itself what it was given, the transport
    reports `pause` and `resume` instead. Every operation takes constant time, except
    `disconnected`, `take_back` and `close`, which touch each publish that they move once, and once
    in a second the search of a full queue for what has expired.

    A message that expires while it waits is not written. Its sender has given the right to drop it:
    a post counts as done then, and only who awaits a publish is told. A transport that sends the
    expiry along takes what is left of it from `OutboxEntry.left`.

    Args:
        write: writes an entry to the connection; must not raise. It may call `confirm`, `fail` or
            `disconnected` before it returns.
        capacity: the most publishes that may be pending.
        capacity_bytes: the most bytes that may be pending, see `size_of`; a single larger publish
            may be pending alone.
        window: the most that may be written and unconfirmed; `connected` may change it.
        window_bytes: the most bytes of them, likewise.
        queues: whether ``write`` only queues entries, and the transport counts `OutboxEntry.writes`
            when it really writes them. It must skip those that are done by then, and `confirm`
            them.
        repeat_qos0: whether to write publishes with QoS 0 again, too.
        stats: counts ``publishes.expired``.

    Attributes:
        no_connection: why there is none, as text, if that is known; errors of publishes say so.
    """

    def __init__(
        self,
        write: Callable[[OutboxEntry], None],
        *,
        capacity: int = DEFAULT_OUTBOX,
        capacity_bytes: int = DEFAULT_OUTBOX_BYTES,
        window: int = 100,
        window_bytes: int = DEFAULT_OUTBOX_BYTES,
        queues: bool = False,
        repeat_qos0: bool = False,
        stats: Counter[str] | None = None,
    ) -> None:
        self.no_connection: str | None = None
        self._write = write
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._window = window
        self._window_bytes = window_bytes
        self._counted = 0 if queues else 1
        self._repeat_qos0 = repeat_qos0
        self._stats: Counter[str] = Counter() if stats is None else stats
        self._log = LimitedLog(_log)
        self._waiting: OrderedDict[OutboxEntry, None] = OrderedDict()
        self._written: dict[OutboxEntry, None] = {}
        # Given up after they were written: they keep their place in the window until the broker
        # answers.
        self._abandoned: dict[OutboxEntry, None] = {}
        self._aside: dict[OutboxEntry, None] = {}
        # Bytes of all publishes, and of those on the connection.
        self._size = 0
        self._written_size = 0
        self._connected = False
        self._losses = 0
        self._answers = 0
        self._closed = False
        self._pumping = False
        # The loop time from which on it is worth looking for what has expired.
        self._look_again = 0.0
        # Confirmed, and somebody waits to hear of it.
        self._confirmed: list[OutboxEntry] = []
        self._drained: list[asyncio.Future[None]] = []
        self._crowded: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        """Return the number of publishes without an outcome."""
        return len(self._waiting) + len(self._written) + len(self._aside)

    @property
    def size(self) -> int:
        """The bytes of the publishes that are kept."""
        return self._size

    @property
    def unconfirmed(self) -> int:
        """The number of publishes that are written and have no outcome."""
        return len(self._written)

    @property
    def written(self) -> list[OutboxEntry]:
        """The publishes that are written and have no outcome, oldest first."""
        return list(self._written)

    @property
    def given_up(self) -> list[OutboxEntry]:
        """The publishes that were given up after they were written, and are not answered."""
        return list(self._abandoned)

    def awaits_answer(self, entry: OutboxEntry) -> bool:
        """Return whether a publish is written and not answered, whether it was given up or not."""
        return entry in self._written or entry in self._abandoned

    @property
    def pending(self) -> list[OutboxEntry]:
        """The publishes without an outcome, oldest first."""
        return [*self._written, *self._waiting, *self._aside]

    @property
    def oldest(self) -> OutboxEntry | None:
        """The oldest publish without an outcome."""
        return next(itertools.chain(self._written, self._waiting, self._aside), None)

    @property
    def oldest_unconfirmed(self) -> OutboxEntry | None:
        """The oldest publish that is written and has no outcome."""
        return next(iter(self._written), None)

    def submit(self, envelope: Envelope, note: Any = None) -> OutboxEntry:
        """Queue a publish; write it at once if there is a connection and a place in the window.

        After `close` the returned entry has already failed with PublishNotSent.

        Args:
            envelope: the message.
            note: kept as the entry's ``note``.

        Raises:
            OutboxFull: ``capacity`` publishes, or ``capacity_bytes``, are pending.
        """
        if self._closed:
            entry = OutboxEntry(envelope, None)
            entry.set_exception(not_outage(entry.unconfirmed("the bus is closed")))
            return entry
        size = size_of(envelope)
        # len(self), without the cost of a call
        pending = len(self._waiting) + len(self._written) + len(self._aside)
        if pending >= self._capacity or (self._size and self._size + size > self._capacity_bytes):
            self._make_room(envelope, size)
        losses = self._losses if self._connected else -1
        entry = OutboxEntry(envelope, self, note, size, losses, self._answers)
        self._size += size
        if self._connected and not self._waiting and not self._pumping and self._has_place(size):
            # As _pump() would, bypassing the queue.
            entry.writes = self._counted
            self._written_size += size
            self._written[entry] = None
            self._pumping = True
            try:
                self._write(entry)
            finally:
                self._pumping = False
            if self._waiting:
                self._pump()
            return entry
        self._waiting[entry] = None
        if not self._pumping:
            self._pump()
        return entry

    async def publish(self, envelope: Envelope, timeout: float, note: Any = None) -> None:
        """Submit a publish and wait at most ``timeout`` seconds for the outcome.

        Raises:
            PublishNotSent: it was not written in time, and never will be.
            PublishUnknown: it was written but not confirmed in time; it is not written again.
            OutboxFull: as in `submit`.
            SpaDatError: what the transport passed to `fail`.
        """
        entry = self.submit(envelope, note)
        entry.awaited = True
        timer = asyncio.get_running_loop().call_later(timeout, self._expire, entry, timeout)
        try:
            await entry
        finally:
            timer.cancel()

    def connected(self, window: int | None = None) -> None:
        """Write what is pending, oldest first, as there is a connection.

        Args:
            window: the most publishes that may be written and unconfirmed on this connection; None
                keeps the value.
        """
        if self._closed:
            return
        self.disconnected()
        if window is not None:
            self._window = window
        self._connected = True
        self._pump()

    def disconnected(self) -> None:
        """Write again on the next connection what was not confirmed on this one, which is lost.

        With QoS 0 that could create duplicates, so what was written counts as done.
        """
        self._lose()
        self._written_size = 0
        for entry in self._abandoned:
            self._size -= entry.size
        self._abandoned.clear()
        self._queue_aside()
        written, self._written = self._written, {}
        for entry in reversed(written):
            if entry.envelope.qos == 0 and not self._repeat_qos0:
                self._size -= entry.size
                self._succeed(entry)
            else:
                self._waiting[entry] = None
                self._waiting.move_to_end(entry, last=False)
        self._wake_drained()

    def pause(self) -> None:
        """Write nothing until `resume`; what has been written stays so."""
        self._lose()

    def resume(self, window: int | None = None) -> None:
        """Go on after `pause`.

        Args:
            window: as in `connected`.
        """
        if not self._closed:
            self._window = self._window if window is None else window
            self._connected = True
            self._pump()

    def confirm(self, entry: OutboxEntry) -> None:
        """Note that the broker has the publish. Ignored unless the entry is written."""
        if not self._answered(entry):
            return
        if not entry.done():
            self._succeed(entry)
        if self._waiting or self._drained or self._crowded:
            self._advance()

    def confirm_all(self, entries: Iterable[OutboxEntry]) -> None:
        """Note that the broker has these publishes: `confirm` for each, but faster."""
        for entry in entries:
            if entry not in self._written:
                self.confirm(entry)
                continue
            # _answered(), without the cost of a call
            del self._written[entry]
            self._answers += 1
            size = entry.size
            self._size -= size
            self._written_size -= size
            self._succeed(entry)
        if self._waiting or self._drained or self._crowded:
            self._advance()

    def _succeed(self, entry: OutboxEntry) -> None:
        entry.set_result(None)
        if entry.on_outcome is not None:
            if not self._confirmed:
                entry.get_loop().call_soon(self._tell, context=Context())
            self._confirmed.append(entry)

    def _tell(self) -> None:
        confirmed, self._confirmed = self._confirmed, []
        for entry in confirmed:
            callback, entry.on_outcome = entry.on_outcome, None
            try:
                assert callback is not None
                callback(entry)
            # As the loop does it: the others are called all the same.
            except Exception as error:  # noqa: BLE001
                text = "the callback of a publish has raised"
                entry.get_loop().call_exception_handler({"message": text, "exception": error})

    def fail(self, entry: OutboxEntry, error: BaseException) -> None:
        """Fail the publish with this error. Ignored if the entry is not written at the moment."""
        if not self._answered(entry):
            return
        if not entry.done():
            entry.set_exception(error)
        self._advance()

    def refuse(self, entry: OutboxEntry, error: BaseException) -> None:
        """Fail the publish with this error, whether it is written or waiting."""
        if (entry in self._waiting or entry in self._aside) and not entry.done():
            entry.set_exception(error)
            self.give_up(entry)
        else:
            self.fail(entry, error)

    def set_aside(self, entry: OutboxEntry) -> None:
        """Note that the broker has not accepted a publish, to be written again after `take_back`.

        Others are written meanwhile. Ignored unless the entry is written.
        """
        if entry in self._written and self._answered(entry):
            self._size += entry.size
            self._aside[entry] = None
            self._advance()

    def take_back(self) -> None:
        """Queue what was set aside behind everything that is waiting."""
        self._queue_aside()
        if self._connected and not self._pumping:
            self._pump()

    def _queue_aside(self) -> None:
        self._waiting.update(self._aside)
        self._aside.clear()

    async def drain(self) -> None:
        """Wait until every pending publish has an outcome."""
        while len(self):
            await self._outcome(self._drained)

    async def room(self) -> None:
        """Wait until at most half of the capacity is in use, or the outbox is closed.

        No guarantee: a later `submit` may still find the outbox full if others have filled it.
        """
        if self._is_crowded:
            self._drop_expired()
        while self._is_crowded and not self._closed:
            await self._outcome(self._crowded)

    async def _outcome(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        await waiter

    def close(self, reason: str = "the bus was closed first") -> None:
        """Fail what is pending with PublishNotSent or PublishUnknown, and accept no more."""
        self._closed = True
        self._connected = False
        left = self.pending
        self._written.clear()
        self._waiting.clear()
        self._aside.clear()
        self._abandoned.clear()
        self._size = self._written_size = 0
        for entry in left:
            entry.set_exception(not_outage(entry.unconfirmed(reason)))
        self._wake_drained()

    def _pump(self) -> None:
        # write() may confirm, fail or disconnect before it returns, which leads back here.
        self._pumping = True
        try:
            while self._connected and self._waiting:
                entry = next(iter(self._waiting))
                if entry.deadline is not None and entry.expired:
                    self.drop(entry)
                    continue
                size = entry.size
                if not self._has_place(size):
                    break
                del self._waiting[entry]
                self._written_size += size
                entry.writes += self._counted
                self._written[entry] = None
                self._write(entry)
        finally:
            self._pumping = False

    def _has_place(self, size: int) -> bool:
        """Return whether a publish of this size may be written."""
        written = len(self._written) + len(self._abandoned)
        return written < self._window and (
            not written or self._written_size + size <= self._window_bytes
        )

    def drop(self, entry: OutboxEntry) -> None:
        """End a publish that has expired, wherever it waits; it has no other outcome yet."""
        self._stats["publishes.expired"] += 1
        topic = entry.envelope.topic
        if entry.awaited:
            error = entry.unconfirmed("it has expired while it waited for the broker")
            error.outage = self.is_outage(entry, entry.envelope.expiry or 0.0)
            entry.set_exception(error)
        else:
            if entry.envelope.response_topic is None:
                self._log.warning(
                    "the message to %s has expired while it waited for the broker, and is not sent",
                    quoted(topic),
                )
            self._succeed(entry)
        if entry in self._written:
            # The broker has said that it does not accept it for now.
            del self._written[entry]
            self._free(entry)
            self._wake_drained()
        else:
            self.give_up(entry)

    def _make_room(self, envelope: Envelope, size: int) -> None:
        """Drop what has expired; raise OutboxFull if it is too little."""
        self._drop_expired()
        if len(self) >= self._capacity or (self._size and self._size + size > self._capacity_bytes):
            raise self._full(envelope, size)

    def _drop_expired(self) -> None:
        """Drop what has expired in the queue, if it was not looked through just now."""
        now = asyncio.get_running_loop().time()
        if now < self._look_again:
            return
        self._look_again = now + _LOOK_AGAIN
        for entry in [entry for entry in self._waiting if entry.expired]:
            self.drop(entry)

    def _full(self, envelope: Envelope, size: int) -> OutboxFull:
        what, option = f"{self._capacity} publishes are waiting", "outbox"
        hint = "wait for room with 'await socket.drain()', await the publishes, or raise the option"
        if len(self) < self._capacity:
            what, option = f"publishes of {self._size} bytes are waiting", "outbox_bytes"
            if size > self._capacity_bytes:
                # For that no room is enough that others have left.
                hint = (
                    f"it has {size} bytes, and more than {self._capacity_bytes} have to wait alone:"
                    " await the publishes, or raise the option"
                )
        full = OutboxFull(
            f"{what} for the broker's confirmation; the one to {envelope.topic!r} was not accepted:"
            f" {hint} {option!r}"
        )
        full.outage = not self._connected
        return full

    @property
    def _is_crowded(self) -> bool:
        return len(self) > self._capacity // 2 or self._size > self._capacity_bytes // 2

    def _lose(self) -> None:
        if self._connected:
            self._connected = False
            self._losses += 1

    def is_outage(self, entry: OutboxEntry, waited: float) -> bool:
        """Return whether the connection was down at some time since the entry was submitted.

        A broker that is frozen or silently cut off shows only by its silence.

        Args:
            entry: the publish.
            waited: the seconds since then.
        """
        if not self._connected or entry._losses != self._losses:
            return True
        return waited >= _SILENCE and entry._answers == self._answers

    def _answered(self, entry: OutboxEntry) -> bool:
        self._answers += 1
        if entry in self._written:
            del self._written[entry]
        elif entry in self._abandoned:
            del self._abandoned[entry]
        else:
            return False
        self._free(entry)
        return True

    def _free(self, entry: OutboxEntry) -> None:
        size = entry.size
        self._size -= size
        self._written_size -= size

    def _advance(self) -> None:
        if self._waiting and not self._pumping:
            self._pump()
        self._wake_drained()

    def give_up(self, entry: OutboxEntry) -> None:
        """Never write the entry again, as it was cancelled or has failed."""
        if entry in self._written:
            del self._written[entry]
            self._abandoned[entry] = None
        elif entry in self._waiting:
            del self._waiting[entry]
            self._size -= entry.size
        elif entry in self._aside:
            del self._aside[entry]
            self._size -= entry.size
        self._wake_drained()

    def let_go(self, entry: OutboxEntry) -> None:
        """Drop an entry that was given up while it was in the transport's queue, unanswered."""
        if entry in self._abandoned:
            del self._abandoned[entry]
            self._free(entry)
            self._advance()

    def _expire(self, entry: OutboxEntry, timeout: float) -> None:
        if entry.done():
            return
        why = "" if self.no_connection is None else f": {self.no_connection}"
        error = entry.unconfirmed(f"no confirmation within {timeout:g} s{why}")
        error.outage = self.is_outage(entry, timeout)
        entry.set_exception(error)
        self.give_up(entry)

    def _wake_drained(self) -> None:
        if self._drained and not len(self):
            _wake(self._drained)
        if self._crowded and (self._closed or not self._is_crowded):
            _wake(self._crowded)


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
