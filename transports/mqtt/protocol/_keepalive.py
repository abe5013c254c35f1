"""The keep-alive: signs of life in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ._packets import PINGREQ

__all__ = ["LARGE", "KeepAlive", "WatchedStream"]

LARGE = 65_536
"""From this size in bytes a message may be in flight long after its last byte has left here."""

# There are two checks in each interval.
_LEAST_CHECKS = 2
# How slowly a proxy or load balancer may pass on what it has accepted from us, in bytes a second.
_SLOWEST = 32_768
# The most intervals that this may take, multiplied by the patience.
_MOST_INTERVALS = 4
# Seconds, and periods, that a broker that answers pings may take to confirm a message.
_LONGEST_WAIT = 60.0
_LEAST_PERIODS = 8


class WatchedStream(Protocol):
    """A connection's stream as the keep-alive sees it; see `FrameStream`."""

    heard: bool
    spoken: bool
    written: int

    @property
    def paused(self) -> bool:
        """Whether reading is paused."""

    def departed(self) -> int:
        """Return how many of the written bytes the peer's system has received."""

    def write(self, data: bytes) -> None:
        """Send data."""


class KeepAlive:
    """Pings a broker that hears or says nothing, and detects when it does not answer.

    A ping comes after what was written before it, and the broker cannot answer until that has
    arrived. So bytes that leave ahead of a ping are a sign of life, as bytes that arrive are. Bytes
    behind it are not: the system of a frozen broker continues to accept bytes.

    A dead connection is detected within one and a half times ``seconds`` after the last sign of
    life. While reading is paused the broker's answers cannot be seen and are not expected; pings
    are still sent, so that the broker does not give up, and that writing fails if it has closed.

    A proxy in between may accept a large message at once and pass it on slowly, which cannot be
    told from a frozen broker. As long as the peer's system accepts everything, including pings,
    such a message gets some more seconds for its size.

    A live broker that has not confirmed a message for a minute has lost it: the message has to be
    sent again, for which another connection is needed, and takes a place in the window until then.

    Args:
        stream: the connection's.
        seconds: the interval between signs of life from this side.
        on_silence: called once, with the reason as text, when the broker is gone or no longer
            confirms anything.
        unconfirmed: returns the size in bytes of the oldest message that is not confirmed.
        oldest: returns how many bytes were written up to its end; 0 if there is none.
        bearable: for how many seconds the broker may be silent, if more than ``seconds``: how often
            it wants to hear from us does not say how quickly it answers.
        patience: by how much to multiply the additional seconds for a large message, and those for
            a confirmation.
    """

    def __init__(
        self,
        stream: WatchedStream,
        seconds: float,
        on_silence: Callable[[str], None],
        unconfirmed: Callable[[], int],
        *,
        oldest: Callable[[], int] = lambda: 0,
        bearable: float = 0.0,
        patience: int = 1,
    ) -> None:
        self._stream = stream
        self._period = seconds / 2
        # Consecutive checks without a sign of life.
        self._most_checks = max(_LEAST_CHECKS, bearable / self._period)
        self._most_more = max(seconds, bearable) * _MOST_INTERVALS
        self._on_silence = on_silence
        self._unconfirmed = unconfirmed
        self._oldest = oldest
        self._waits_for = 0
        # Checks at which the broker was alive but had still not confirmed that message.
        self._waits = 0
        self._patience = patience
        self._quiet = 0
        # How many bytes were written before the first unanswered ping.
        self._asked: int | None = None
        self._departed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._schedule()

    def resumed(self) -> None:
        """Forgive the silence of a pause, as reading resumes."""
        self._quiet = 0
        self._asked = None

    def stop(self) -> None:
        """Stop sending pings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._check)

    def _check(self) -> None:
        stream = self._stream
        departed = stream.departed()
        if stream.heard:
            self._asked = None
        if stream.heard or stream.paused or self._comes_nearer(departed):
            self._quiet = 0
        else:
            self._quiet += 1
        reason = ""
        if self._quiet >= self._most_checks and self._quiet >= self._most_quiet(departed):
            reason = "the broker has gone silent"
        elif self._is_stalled(departed):
            reason = "the broker answers but does not confirm what was published"
        if reason:
            self._timer = None
            self._on_silence(reason)
            return
        self._departed = departed
        # Of a peer that has closed while reading is paused only writing again tells: the first ping
        # is answered with a reset, and counts as on its way for ever.
        is_idle = not stream.spoken and (stream.paused or departed >= stream.written)
        if is_idle or (self._asked is None and not stream.heard):
            if self._asked is None:
                self._asked = stream.written
            stream.write(PINGREQ)
        stream.heard = stream.spoken = False
        self._schedule()

    def _is_stalled(self, departed: int) -> bool:
        oldest = self._oldest()
        if oldest != self._waits_for:
            self._waits_for, self._waits = oldest, 0
        elif oldest and self._stream.heard and departed >= oldest:
            self._waits += 1
        seconds = (_LONGEST_WAIT + self._unconfirmed() / _SLOWEST) * self._patience
        return self._waits >= max(seconds / self._period, _LEAST_PERIODS)

    def _most_quiet(self, departed: int) -> float:
        size = self._unconfirmed()
        if size <= LARGE or departed < self._stream.written:
            return self._most_checks
        seconds = min(size / _SLOWEST, self._most_more) * self._patience
        return self._most_checks + seconds / self._period

    def _comes_nearer(self, departed: int) -> bool:
        """Return whether bytes ahead of the unanswered ping have left since the last check."""
        return self._asked is not None and self._departed < min(departed, self._asked)
