"""When an actor that fails outside of a message is started again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from ..errors import ConfigurationError

__all__ = ["RestartCounter", "RestartPolicy"]

_EXITS = (SystemExit, KeyboardInterrupt)


@dataclass(frozen=True)
class RestartPolicy:
    """How often and how fast an actor whose start fails is started again.

    Attributes:
        intensity: the most restarts in ``period``; one more stops the actor. 0 for none at all.
        period: seconds.
        backoff_min: seconds before the first restart; doubles with each one in the period, and
            is shortened at random by up to a half.
        backoff_max: the most seconds before a restart.

    Raises:
        ConfigurationError: a value is negative, or the minimum is over the maximum.
    """

    intensity: int = 5
    period: float = 60.0
    backoff_min: float = 0.1
    backoff_max: float = 10.0

    def __post_init__(self) -> None:
        for name in ("intensity", "period", "backoff_min"):
            if getattr(self, name) < 0:
                raise ConfigurationError(
                    f"RestartPolicy({name}={getattr(self, name)!r}) is negative; use 0 or more"
                )
        if self.backoff_max < self.backoff_min:
            raise ConfigurationError(
                f"RestartPolicy(backoff_max={self.backoff_max!r}) is below"
                f" backoff_min={self.backoff_min!r}"
            )

    def problem(self, error: BaseException) -> str:
        """What an actor has done whose start failed with the error, for the last time, in words."""
        if isinstance(error, _EXITS):
            return "asked for the end of the program while it started"
        return f"failed to start again after {self.intensity} restarts within {self.period} s"


class RestartCounter:
    """The restarts of one actor in the latest period."""

    def __init__(self, policy: RestartPolicy, random: Random) -> None:
        self._policy = policy
        self._random = random
        self._times: deque[float] = deque()

    def next_delay(self, error: BaseException, now: float) -> float | None:
        """Count a restart; seconds to wait before it, or None if there is to be none.

        That is when it is one too many, or when the program is to end.

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
        # 2.0**1024 overflows, and an intensity may be as large as one likes.
        longest = self._policy.backoff_min * 2.0 ** min(len(times), 64)
        times.append(now)
        return min(longest, self._policy.backoff_max) * self._random.uniform(0.5, 1.0)
