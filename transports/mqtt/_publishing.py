"""Publishing on connections that come and go: what is written, confirmed, refused."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import quoted
from ...errors import MessageTooLarge, NoResponder, PublishRefused
from .._envelope import REPLY_HEADER, Envelope
from .._outbox import Outbox, OutboxEntry
from .._reconnect import Backoff
from .._suspect_publishes import Blame, Course, Suspicion
from .._topics import is_foreign_reply
from ._connection_events import Ending, Loss
from ._unanswered_publishes import UnansweredPublishes, described, is_large
from .protocol._reason_codes import (
    NO_SUBSCRIBERS,
    PACKET_TOO_LARGE,
    Decision,
    Packet,
    answer_to,
    publish_refusal,
    reason_text,
)

__all__ = ["OutgoingPublishes", "blame"]

_log = get_logger(__name__)

_REFUSED = 0x80
_LONGEST_ALONE = 30.0
# For this many seconds no replies go to unknown addresses after a broker ended connections over
# one, or accepted everything else.
_NO_REPLIES = 60.0
_MOST_PROVEN = 1_000
# A reply that the broker does not accept for now is written again after this many seconds, for as
# long as a requester waits by default; not for that long if the broker accepts what else there is.
_REPLIES_AGAIN = 1.0
_REPLIES_REFUSED_FOR = 30.0
_ONLY_REPLIES_REFUSED_FOR = 5.0
# Seconds after which it is trouble that a publish of the application is not accepted for now.
_LONG = 30.0
# Reasons of a DISCONNECT that may be about a message without saying so. All others that are not
# final for a message state another cause.
_VAGUE = frozenset({0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x94})


def blame(loss: Loss) -> Blame:
    """Return what the end of a connection says about the publishes in flight."""
    if loss.ending in (Ending.CLOSED, Ending.RESET):
        return Blame.POSSIBLE
    if loss.ending is not Ending.GOODBYE:
        return Blame.NONE
    code = 0 if loss.reason is None else loss.reason
    if answer_to(Packet.DISCONNECT, code).decision is Decision.MESSAGE:
        return Blame.NAMED
    return Blame.POSSIBLE if code in _VAGUE else Blame.NONE


class OutgoingPublishes:
    """Writes an outbox to each connection as far as is wise, and evaluates the answers.

    A message over which the broker keeps ending connections is found and refused, see `Suspicion`;
    one that the broker does not accept for now is written again after a while.

    Args:
        outbox: the publishes.
        write: writes one of them to the connection.
        backoff: pauses before something that the broker did not accept is written again.
        stats: counters.
        address: of the broker, for log and error messages.
    """

    def __init__(
        self,
        outbox: Outbox,
        write: Callable[[OutboxEntry], None],
        backoff: Backoff,
        stats: Counter[str],
        address: str,
    ) -> None:
        self._outbox = outbox
        self._write = write
        self._backoff = backoff
        self._stats = stats
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._suspicion: Suspicion[OutboxEntry] = Suspicion(is_large)
        self._timer: asyncio.TimerHandle | None = None
        # What the broker does not accept for now, until when, and the first of it being retried.
        self._put_off: deque[OutboxEntry] = deque()
        self._pause: asyncio.TimerHandle | None = None
        self._again: OutboxEntry | None = None
        self._put_off_since: float | None = None
        # Replies that the broker does not accept for now, since when, and whether it has accepted
        # anything after that: requesters choose where replies go, and must not hold up the rest.
        self._aside: dict[OutboxEntry, float] = {}
        self._others_accepted = False
        self._back: asyncio.TimerHandle | None = None
        self._unanswered = UnansweredPublishes(
            outbox, stats, address, lambda: self._put_off_since is not None
        )
        self._log = LimitedLog(_log)
        self._suspect: OutboxEntry | None = None
        # The latest publish that was refused on the current connection.
        self._latest_refused: OutboxEntry | None = None
        self._window = 1
        self._since = 0.0
        self._end = ""
        self._end_reason: int | None = None
        # Reply addresses of others at which the broker has accepted replies, the latest last.
        self._proven: dict[str, None] = {}
        self._no_replies_until = 0.0

    @property
    def suspects(self) -> bool:
        """Whether a message may be the reason why connections end."""
        oldest = self._outbox.oldest
        return oldest is not None and self._suspicion.ends(oldest) > 1

    @property
    def trouble(self) -> str | None:
        """What keeps publishes of the application from being accepted; None if nothing does."""
        since, entry = self._put_off_since, self._again or next(iter(self._put_off), None)
        if since is not None and entry is not None and self._loop.time() - since >= _LONG:
            return f"{described(entry)} waits, and all others behind it: {entry.put_off}"
        return self._unanswered.trouble

    def check(self, envelope: Envelope) -> None:
        """Raise PublishRefused for a reply over which the broker may end the connection.

        Some brokers end it over each publish that is not allowed, and requesters choose where
        replies go. Finding each such reply one at a time would leave no time for anything else. The
        same applies to replies that a broker does not accept for now, for long.
        """
        if self._loop.time() < self._no_replies_until and self._is_unproven(envelope):
            raise self._unwanted_reply(envelope)

    def begin(self, window: int) -> None:
        """Begin writing to a connection on which this many publishes may be unconfirmed."""
        self._since = self._loop.time()
        self._window = window
        self._latest_refused = None
        self._outbox.disconnected()
        self._go_on()
        self._unanswered.begin()

    def end(self, loss: Loss) -> None:
        """Stop writing, as the connection is lost."""
        self._end, self._end_reason = loss.text, loss.reason
        self._cancel_timers()
        lasted = self._loop.time() - self._since
        self._suspicion.ended(self._outbox.written, blame(loss), lasted)
        self._outbox.disconnected()
        refused = self._latest_refused
        if loss.ending is Ending.REFUSED and refused and self._is_unproven(refused.envelope):
            self._refuse_replies()

    def unreachable(self) -> None:
        """Note that an attempt to connect has failed."""
        self._suspicion.unreachable()

    def close(self) -> None:
        """Give up what is pending."""
        self._cancel_timers()
        self._aside.clear()
        self._outbox.close()

    def answered(self, entry: OutboxEntry, code: int) -> None:
        """Evaluate the broker's answer to a publish; without QoS 1, that it was written."""
        if entry.envelope.qos:
            self._unanswered.answers += 1
        if code < _REFUSED and is_foreign_reply(entry.envelope):
            self._prove(entry.envelope.topic)
        if self._aside and code < _REFUSED:
            self._aside.pop(entry, None)
            self._others_accepted = True
        if code == 0:
            if entry.put_off:
                self._backoff.reset()
            self._outbox.confirm(entry)
        elif code >= _REFUSED:
            self._refused(entry, code)
        elif code == NO_SUBSCRIBERS and entry.envelope.response_topic and not entry.envelope.retain:
            self._outbox.fail(
                entry,
                NoResponder(
                    f"the broker says that nobody listens on {entry.envelope.topic!r}; start the"
                    " responder first, or check the topic"
                ),
            )
        else:
            # What is retained waits for whoever comes: dead letters, for example.
            if not entry.envelope.retain:
                self._stats["publishes.unheard"] += 1
            self._outbox.confirm(entry)
        if entry is self._again:
            self._write_again()
        elif self._suspicion.course is Course.ALONE and self._pause is None:
            self._go_on()

    # A message that ends connections.

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        before, course = self._suspicion.course, self._suspicion.connected()
        if course is Course.REFUSE:
            self._condemn()
        elif course is Course.QUIETLY:
            self._timer = self._loop.call_later(self._suspicion.quiet, self._condemn)
        elif course is Course.ALONE:
            self._timer = self._loop.call_later(_LONGEST_ALONE, self._acquit)
            if before is not course:
                self._say_what_is_suspected()
            self._outbox.resume(1)
        else:
            self._suspect = None
            self._outbox.resume(self._window)

    def _say_what_is_suspected(self) -> None:
        entry = self._outbox.oldest
        if entry is not None and entry is not self._suspect:
            self._suspect = entry
            self._stats["publishes.suspected"] += 1
            _log.warning(
                "the broker at %s ended %d connections on which %s was not confirmed (most"
                " recently: %s); it will be sent alone now",
                self._address,
                self._suspicion.ends(entry),
                described(entry),
                self._end,
            )

    def _condemn(self) -> None:
        proof = "and the connection holds without it"
        if self._suspicion.course is Course.REFUSE:
            proof = "and the broker says that a message was the reason"
        entry = self._suspicion.condemn()
        if entry is not None:
            self._stats["publishes.refused"] += 1
            kind = MessageTooLarge if self._end_reason == PACKET_TOO_LARGE else PublishRefused
            error = kind(
                f"the broker at {self._address} ends the connection over {described(entry)}:"
                f" {entry.writes} times so far, the last time with nothing else in flight, {proof}."
                f" The last end: {self._end}. It is not sent again; check the broker's log and"
                " limits"
            )
            self._outbox.refuse(entry, error)
            if self._is_unproven(entry.envelope):
                self._refuse_replies()
        self._go_on()

    def _refuse_replies(self) -> None:
        self._no_replies_until = self._loop.time() + _NO_REPLIES
        for entry in self._outbox.pending:
            if not entry.done() and self._is_unproven(entry.envelope):
                self._stats["publishes.refused"] += 1
                self._outbox.refuse(entry, self._unwanted_reply(entry.envelope))

    def _unwanted_reply(self, envelope: Envelope) -> PublishRefused:
        return PublishRefused(
            f"the broker at {self._address} has ended connections over a reply, or has not"
            f" accepted one for long, so for {_NO_REPLIES:g} s none is sent where it has not"
            f" accepted one before, such as to {quoted(envelope.topic)}: name with"
            " reply_topics= where replies may go"
        )

    def _is_unproven(self, envelope: Envelope) -> bool:
        return is_foreign_reply(envelope) and envelope.topic not in self._proven

    def _prove(self, topic: str) -> None:
        self._proven.pop(topic, None)
        self._proven[topic] = None
        if len(self._proven) > _MOST_PROVEN:
            del self._proven[next(iter(self._proven))]

    def _acquit(self) -> None:
        self._suspicion.acquit()
        # What is put off is written before everything that waits behind it.
        if self._pause is None and self._again is None:
            self._go_on()

    # Refused, for now or for good.

    def _refused(self, entry: OutboxEntry, code: int) -> None:
        if answer_to(Packet.PUBACK, code).decision is Decision.MESSAGE or entry.done():
            self._stats["publishes.refused"] += 1
            self._latest_refused = entry
            self._aside.pop(entry, None)
            self._outbox.fail(entry, publish_refusal(code, entry.envelope.topic))
            return
        self._stats["publishes.put_off"] += 1
        entry.put_off = f"the broker does not accept it for now: {reason_text(code)}"
        entry.writes -= 1
        if REPLY_HEADER in entry.envelope.headers:
            self._set_aside(entry, code)
            return
        if self._put_off_since is None:
            self._put_off_since = self._loop.time()
        if entry is self._again:
            self._again = None
            self._put_off.appendleft(entry)
        else:
            self._put_off.append(entry)
        if self._again is None and self._pause is None:
            delay = self._backoff.next_delay()
            _log.warning("%s: %s; retrying in %.1f s", described(entry), entry.put_off, delay)
            self._outbox.pause()
            self._pause = self._loop.call_later(delay, self._write_again)

    def _write_again(self) -> None:
        """Write the oldest publish that was put off; one at a time, to keep the order."""
        self._pause = self._again = None
        while self._put_off:
            entry = self._put_off.popleft()
            if entry.done():
                # It was given up meanwhile: this frees its place in the window.
                self._outbox.confirm(entry)
            elif entry.expired:
                self._outbox.drop(entry)
            else:
                self._again = entry
                entry.writes += 1
                self._write(entry)
                return
        self._put_off_since = None
        self._go_on()

    def _set_aside(self, entry: OutboxEntry, code: int) -> None:
        """Have a reply written again later, behind all else, unless that was in vain for long."""
        now = self._loop.time()
        if not self._aside:
            self._others_accepted = False
        lasted = now - self._aside.setdefault(entry, now)
        if lasted >= (_ONLY_REPLIES_REFUSED_FOR if self._others_accepted else _REPLIES_REFUSED_FOR):
            del self._aside[entry]
            self._stats["publishes.refused"] += 1
            self._outbox.fail(entry, publish_refusal(code, entry.envelope.topic))
            if self._others_accepted and self._is_unproven(entry.envelope):
                self._refuse_replies()
            return
        if not lasted:
            self._log.warning("%s, a reply: %s; it is sent later", described(entry), entry.put_off)
        self._outbox.set_aside(entry)
        if self._back is None:
            self._back = self._loop.call_later(_REPLIES_AGAIN, self._take_back)

    def _take_back(self) -> None:
        self._back = None
        for entry in [entry for entry in self._aside if entry.done()]:
            del self._aside[entry]
        self._outbox.take_back()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._pause, self._back):
            if timer is not None:
                timer.cancel()
        self._timer = self._pause = self._again = self._back = self._put_off_since = None
        self._unanswered.end()
        self._put_off.clear()
