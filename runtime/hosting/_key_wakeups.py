"""Waking durable keys at the time at which something is to be done in them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from ..._environment import Environment
from ..._limited_log import LimitedLog
from ..._texts import describe

__all__ = ["KeyWakeups", "Look", "checked"]

Look = Callable[[int], asyncio.Future[Sequence[tuple[str, float]]]]
"""Returns the first keys, as many as it is told, and when, in seconds since 1970, in that order."""

_AT_ONCE = 100
# Loop time and wall time may drift apart: the wall clock is looked at so often at least.
_LOOK_AGAIN = 60.0
_AFTER_FAILURE = 1.0
# Keys that are awake for long, as those whose handlers fail, must not keep others from being woken:
# so often more are, up to so many at a time.
_WAKE_MORE, _MOST_AWAKE = 1.0, 1_000


class KeyWakeups:
    """Wakes the keys of one durable actor, some at a time, when it is time for them.

    Never early by the environment's clock. A key that was woken is not woken again until it has
    come to rest.

    Args:
        actor: the actor's name.
        look: looks for the keys whose time comes first.
        environment: the clock.
        wake: called with each key whose time has come.
        log: where it is told that nothing can be looked for.
    """

    def __init__(
        self,
        actor: str,
        look: Look,
        environment: Environment,
        wake: Callable[[str], None],
        log: LimitedLog,
    ) -> None:
        self._actor = actor
        self._look_for = look
        self._log = log
        self._now = environment.now
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._awake: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Future[Sequence[tuple[str, float]]] | None = None
        self._stopped = False
        # Whether something has changed since it was looked.
        self._again = False

    def start(self) -> None:
        """Begin to look for keys whose time has come."""
        self._look()

    def look(self) -> None:
        """Look again for keys whose time has come: there may be others."""
        self._look_in(0.0)

    def note(self, when: float | None) -> None:
        """Note that a key is to be woken at a time, in seconds since 1970; None if it is not."""
        if when is not None:
            self._look_in(when - self._now())

    def has_rested(self, key: str, wait: float = 0.0) -> None:
        """Note that all is done for which a key was woken, or is to be tried again.

        Args:
            key: the key.
            wait: seconds before it may be woken again.
        """
        self._awake.pop(key, None)
        # There may be more of them than were asked for, and it may be time for this one again.
        if len(self._awake) <= _AT_ONCE // 2:
            self._look_in(wait)

    def stop(self) -> None:
        """Wake no more keys."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        if self._stopped:
            return
        if self._looking is not None:
            self._again = True
            return
        at = self._loop.time() + min(max(0.0, seconds), _LOOK_AGAIN)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopped or self._looking is not None:
            return
        self._again = False
        self._looking = self._look_for(len(self._awake) + _AT_ONCE)
        self._looking.add_done_callback(self._looked)

    def _looked(self, looking: asyncio.Future[Sequence[tuple[str, float]]]) -> None:
        self._looking = None
        if self._stopped or looking.cancelled():
            return
        error = looking.exception()
        if error is not None:
            self._log.warning(
                "actor %r cannot look for keys whose time has come: %s",
                self._actor,
                describe(error),
            )
            self._look_in(_AFTER_FAILURE)
            return
        now = self._now()
        for key, when in looking.result():
            if when > now:
                self._look_in(when - now)
                break
            if key not in self._awake:
                self._awake[key] = None
                self._wake(key)
        else:
            if self._awake and len(self._awake) < _MOST_AWAKE:
                self._look_in(_WAKE_MORE)
        if self._again:
            self._look_in(0.0)


def checked(key: object, when: object) -> tuple[str, float]:
    """Return what a store has said of a key; raise TypeError if it cannot be that."""
    if not isinstance(key, str) or not isinstance(when, int | float) or not math.isfinite(when):
        raise TypeError(
            f"first_due() of the store has returned {key!r:.100} and {when!r:.100}, and not the"
            " string and the seconds since 1970 that were stored"
        )
    return key, float(when)
