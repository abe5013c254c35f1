"""Publishes that a broker leaves unanswered, although it is connected and alive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import quoted
from .._outbox import Outbox, OutboxEntry
from .protocol._keepalive import LARGE
from .protocol._packets import PublishPacket

__all__ = ["UnansweredPublishes", "described", "is_large"]

_log = get_logger(__name__)

# Seconds after which it is trouble, and how many looks are taken meanwhile.
_LONG = 30.0
_LOOKS = 6


class _Waiting(NamedTuple):
    """A publish that waits for an answer.

    Brokers answer in order. Of publishes that were given up before they were first seen it is not
    known in which order they were written between two looks, so there are two numbers.

    Attributes:
        since: when it was seen first.
        last: it was written no later than what has this number.
        first: it was written no earlier than that.
    """

    since: float
    last: int
    first: int


class UnansweredPublishes:
    """The publishes that a broker has not answered, although it is connected and alive.

    It may answer none, or leave some out; pings say nothing about that.

    Args:
        outbox: the publishes.
        stats: counts ``publishes.unanswered``.
        address: of the broker.
        put_off: tells whether the broker does not accept publishes for now, which it has said.

    Attributes:
        answers: how many there have been so far.
    """

    def __init__(
        self, outbox: Outbox, stats: Counter[str], address: str, put_off: Callable[[], bool]
    ) -> None:
        self._outbox = outbox
        self._stats = stats
        self._address = address
        self._put_off = put_off
        self._loop = asyncio.get_running_loop()
        self._log = LimitedLog(_log)
        self._timer: asyncio.TimerHandle | None = None
        self.answers = self._seen_answers = 0
        self._looked = 0.0
        self._waiting: dict[OutboxEntry, _Waiting] = {}
        self._next = 0
        # Those after which something else was written that has been answered.
        self._passed_over: set[OutboxEntry] = set()
        # Those that were reported, and since when they wait.
        self._reported: dict[OutboxEntry, float] = {}
        # Since when there has been no answer at all, and whether that was reported.
        self._silent_since: float | None = None
        self._told = False

    def begin(self) -> None:
        """Begin with a new connection, on which everything is written again."""
        self.end()
        self._looked = self._loop.time()
        self._seen_answers = self.answers
        self._timer = self._loop.call_later(_LONG / _LOOKS, self._look)

    def end(self) -> None:
        """Expect nothing any more of a connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self._passed_over.clear()
        self._reported.clear()
        self._silent_since, self._told = None, False

    @property
    def trouble(self) -> str | None:
        """What was not answered for long, as text; None if there is nothing."""
        now = self._loop.time()
        if self._told and self._silent_since is not None and self.answers == self._seen_answers:
            return f"the broker {self._silence(now - self._silent_since)}"
        for entry, since in self._reported.items():
            if self._outbox.awaits_answer(entry):
                return (
                    f"the broker has not answered {described(entry)} for {now - since:.0f} s,"
                    " although it answers others"
                )
        return None

    def _look(self) -> None:
        """See what was answered since the last look, and report what was not for long."""
        now = self._loop.time()
        self._timer = self._loop.call_later(_LONG / _LOOKS, self._look)
        answered = self.answers - self._seen_answers
        written = [entry for entry in self._outbox.written if _expects_answer(entry)]
        given_up = [entry for entry in self._outbox.given_up if _expects_answer(entry)]
        there = {*written, *given_up}
        gone = [one for entry, one in self._waiting.items() if entry not in there]
        # What is large may take long to be sent, and what is behind it as well.
        expected = self._waiting and not self._put_off() and not any(map(is_large, written))
        # Of more answers than to those that were there at the last look, some are to later ones.
        latest = self._next if answered > len(gone) else max((one.first for one in gone), default=0)
        self._waiting = {entry: one for entry, one in self._waiting.items() if entry in there}
        self._passed_over &= there
        self._passed_over.update(e for e, one in self._waiting.items() if one.last < latest)
        self._reported = {e: since for e, since in self._reported.items() if e in there}
        self._note_silence(now, silent=bool(expected) and not answered)
        self._report(now)
        self._note(now, written, given_up)
        self._looked, self._seen_answers = now, self.answers

    def _note(self, now: float, written: list[OutboxEntry], given_up: list[OutboxEntry]) -> None:
        begin = self._next
        for entry in written:
            if entry not in self._waiting:
                self._waiting[entry] = _Waiting(now, self._next, self._next)
                self._next += 1
        for entry in given_up:
            if entry not in self._waiting:
                self._waiting[entry] = _Waiting(now, self._next, begin)
        self._next += 1

    def _note_silence(self, now: float, *, silent: bool) -> None:
        if not silent:
            self._silent_since, self._told = None, False
            return
        if self._silent_since is None:
            self._silent_since = self._looked
        if not self._told and now - self._silent_since >= _LONG:
            self._told = True
            _log.warning(
                "the broker at %s %s, although it is connected",
                self._address,
                self._silence(now - self._silent_since),
            )

    def _silence(self, seconds: float) -> str:
        oldest = described(next(iter(self._waiting)))
        count = len(self._waiting)
        return f"has not answered any of {count} publishes for {seconds:.0f} s, such as {oldest}"

    def _report(self, now: float) -> None:
        for entry, one in self._waiting.items():
            passed_over = entry in self._passed_over
            if entry in self._reported or now - one.since < _LONG:
                continue
            if passed_over or self._told:
                self._reported[entry] = one.since
                self._stats["publishes.unanswered"] += 1
            if passed_over:
                self._log.warning(
                    "the broker at %s has not answered %s for %.0f s, although it answers others",
                    self._address,
                    described(entry),
                    now - one.since,
                )


def _expects_answer(entry: OutboxEntry) -> bool:
    """Return whether there is to be an answer, and was none that puts the publish off."""
    return bool(entry.envelope.qos) and not entry.put_off


def is_large(entry: OutboxEntry) -> bool:
    """Return whether a publish may take long to be sent."""
    packet: PublishPacket = entry.note
    return packet.size > LARGE


def described(entry: OutboxEntry) -> str:
    """Return which publish it is, for log and error messages."""
    envelope = entry.envelope
    return f"the publish to {quoted(envelope.topic)} ({len(envelope.payload)} bytes)"
