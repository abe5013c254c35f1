"""Signs of life in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ._packets import PINGREQ

__all__ = ["LARGE", "KeepAlive", "WatchedStream"]

LARGE = 65_536
"""Bytes from which on a message may be on its way for long after its last byte has left here."""

# There are two checks in each interval.
_LEAST_CHECKS = 2
# How slowly a proxy or load balancer may pass on what it has taken from us, in bytes a second.
_SLOWEST = 32_768
# The most intervals that this may take, times the patience.
_MOST_INTERVALS = 4
# Seconds, and periods, that a broker which answers pings may take to confirm a message.
_LONGEST_WAIT = 60.0
_LEAST_PERIODS = 8


class WatchedStream(Protocol):
    """What a connection's stream tells of the bytes that pass it; see `FrameStream`."""

    heard: bool
    spoken: bool
    written: int

    @property
    def paused(self) -> bool:
        """Whether nothing is read for the time being."""

    def departed(self) -> int:
        """How many of the written bytes the peer's system has received."""

    def write(self, data: bytes) -> None:
        """Send."""


class KeepAlive:
    """Pings a broker that hears or says nothing, and notices when it does not answer.

    A ping stands behind what was written before it, and the broker cannot answer before that has
    arrived. So bytes that leave in front of a ping are a sign of life like bytes that come. What
    is written behind it is not: the system of a broker that is frozen goes on taking bytes.

    A dead connection is noticed within one and a half times ``seconds`` after the last sign of
    life. While reading is paused the broker's answers cannot be seen and are not asked for; pings
    still go out, so that the broker does not give up.

    A proxy on the way may take a large message at once and pass it on slowly, which cannot be
    told from a broker that is frozen. As long as the peer's system takes everything, pings too,
    such a message gets some seconds more for its size.

    A broker that lives, and has not confirmed a message for a minute, has lost it: it has to be
    sent again, for which another connection is needed, and takes a place in the window until then.

    Args:
        stream: of the connection.
        seconds: the interval between signs of life from here.
        on_silence: called once, with the reason in words, when the broker is not there any more,
            or confirms nothing any more.
        unconfirmed: how many bytes the oldest message has that the broker has not confirmed.
        oldest: how many bytes were written up to the end of that message; 0 when there is none.
        bearable: for how many seconds the broker may be silent, if that is more than ``seconds``:
            how often it wants to hear something does not tell how fast it answers.
        patience: by how much to multiply the additional seconds for a large message, and those
            for a confirmation.
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
        # Checks in a row without a sign of life.
        self._most_checks = max(_LEAST_CHECKS, bearable / self._period)
        self._most_more = max(seconds, bearable) * _MOST_INTERVALS
        self._on_silence = on_silence
        self._unconfirmed = unconfirmed
        self._oldest = oldest
        self._waits_for = 0
        # Checks at which the broker was there and had still not confirmed that message.
        self._waits = 0
        self._patience = patience
        self._quiet = 0
        # How many bytes were written before the first unanswered ping.
        self._asked: int | None = None
        self._departed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._schedule()

    def resumed(self) -> None:
        """Reading goes on after a pause: what was not seen until now does not count."""
        self._quiet = 0
        self._asked = None

    def stop(self) -> None:
        """No more pings."""
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
            reason = "the broker answers, and does not confirm what was published"
        if reason:
            self._timer = None
            self._on_silence(reason)
            return
        self._departed = departed
        is_idle = not stream.spoken and departed >= stream.written
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
        """Whether bytes in front of the unanswered ping have left since the last look."""
        return self._asked is not None and self._departed < min(departed, self._asked)
