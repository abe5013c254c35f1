"""Restarts: when a failed start of an actor is retried."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from random import Random

from .._unknown_names import suggests_keywords
from ..errors import ConfigurationError

__all__ = ["RestartCounter", "RestartPolicy"]

_EXITS = (SystemExit, KeyboardInterrupt)


@suggests_keywords
@dataclass(frozen=True)
class RestartPolicy:
    """How often and how quickly a failed start is retried.

    That is all the supervision there is, and all that is needed: an error in a handler fails its
    message, and the actor continues with its state. So only a start can fail: the first one, or
    that of an instance that takes over, as after a handler's thread was given up.

    When ``on_start`` raises, or the factory does after its first call, the instance is dropped
    without its ``on_stop``, and after a pause another one is created and started. Messages wait in
    the mailbox meanwhile. A successful start clears the count of failures. One failure too many
    stops the actor with `RestartLimitReached`: an application that is starting fails with that
    error, and a running one continues without the actor and is unhealthy. `SystemExit` and
    `KeyboardInterrupt` stop it at once.

    Attributes:
        intensity: the most restarts in ``period`` before a start succeeds; one more failure
            stops the actor. 0 for no restarts at all.
        period: seconds.
        backoff_min: seconds before the first restart; doubled for each further one in the
            period, and shortened at random by up to a half.
        backoff_max: the longest pause before a restart, in seconds.

    Raises:
        ConfigurationError: a value is negative or not finite, or the minimum exceeds the maximum.
    """

    intensity: int = 5
    period: float = 60.0
    backoff_min: float = 0.1
    backoff_max: float = 10.0

    def __post_init__(self) -> None:
        for name in ("intensity", "period", "backoff_min", "backoff_max"):
            value = getattr(self, name)
            # Of NaN nothing is true, also not that it is negative.
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigurationError(
                    f"RestartPolicy({name}={value!r}): give a finite number, 0 or more"
                )
        if self.backoff_max < self.backoff_min:
            raise ConfigurationError(
                f"RestartPolicy(backoff_max={self.backoff_max!r}) is below"
                f" backoff_min={self.backoff_min!r}"
            )

    def problem(self, error: BaseException) -> str:
        """Describe, as a predicate of the actor, that its start finally failed with the error."""
        if isinstance(error, _EXITS):
            return "asked to end the program while it was starting"
        return f"failed to start again after {self.intensity} restarts within {self.period} s"


class RestartCounter:
    """The restarts of one actor in the latest period."""

    def __init__(self, policy: RestartPolicy, random: Random) -> None:
        self._policy = policy
        self._random = random
        self._times: deque[float] = deque()

    def next_delay(self, error: BaseException, now: float) -> float | None:
        """Count a restart and return the seconds to wait before it; None if there is to be none.

        There is none when the limit is reached, or when the program is to end.

        Args:
            error: what the start failed with.
            now: loop time.
        """
        if isinstance(error, _EXITS):
            return None
        times = self._times
        while times and times[0] <= now - self._policy.period:
            times.popleft()
        if len(times) >= self._policy.intensity:
            return None
        # 2.0**1024 overflows, and an intensity may be arbitrarily large.
        longest = self._policy.backoff_min * 2.0 ** min(len(times), 64)
        times.append(now)
        return min(longest, self._policy.backoff_max) * self._random.uniform(0.5, 1.0)
