"""Signs of life in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ._packets import PINGREQ
from ._stream import FrameStream

__all__ = ["KeepAlive"]


class KeepAlive:
    """Pings a broker that hears or says nothing, and notices when it does not answer.

    A dead connection is noticed within one and a half times ``seconds``. While reading is paused
    the broker's answers can not be seen and are not asked for; pings still go out, so that the
    broker does not give up.

    Args:
        stream: of the connection.
        seconds: the interval agreed with the broker.
        on_silence: called once when the broker is not there any more.
    """

    def __init__(self, stream: FrameStream, seconds: float, on_silence: Callable[[], None]) -> None:
        self._stream = stream
        self._period = seconds / 2
        self._on_silence = on_silence
        self._unanswered = False
        self._timer: asyncio.TimerHandle | None = None
        self._schedule()

    def resumed(self) -> None:
        """Reading goes on after a pause: what was not seen until now does not count."""
        self._unanswered = False

    def stop(self) -> None:
        """No more pings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._check)

    def _check(self) -> None:
        stream = self._stream
        if self._unanswered and not stream.heard and not stream.paused:
            self._timer = None
            self._on_silence()
            return
        self._unanswered = not stream.heard
        if not (stream.heard and stream.spoken):
            stream.write(PINGREQ)
        stream.heard = stream.spoken = False
        self._schedule()
