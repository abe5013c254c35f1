"""Retry policies: what happens to a message whose handler failed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

from ..._unknown_names import suggests_keywords
from ...errors import ConfigurationError
from ._option_checks import is_number

__all__ = ["Reject", "Retry", "RetryPolicy"]


class Reject(Exception):
    """Raised in a handler to store the message as a dead letter, without a retry.

    Args:
        reason: why the message is wrong; goes into the dead letter.
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)


class Retry(Exception):
    """Raised in a handler to try this message again.

    Args:
        reason: goes into the log, and into the dead letter if the attempts run out.
        after: seconds to wait; None for the policy's backoff. The policy's ``hold`` still applies.
    """

    def __init__(
        self, reason: str = "asked for by the handler", *, after: float | None = None
    ) -> None:
        super().__init__(reason)
        if after is not None and not _is_time(after):
            raise ConfigurationError(f"Retry(after={after!r}): give seconds, 0 or more")
        self.after = after


@suggests_keywords
@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a failing message is tried in place before it becomes a dead letter.

    While it is retried, the actor's other messages wait, so that order is kept.

    Attributes:
        attempts: how often the handler is called at most, including the first time.
        first: seconds before the second attempt.
        factor: each further wait is this many times longer than the one before.
        jitter: each wait is multiplied by a random factor between 1 - jitter and 1 + jitter.
        hold: seconds after the first failure within which a further attempt may start.
    """

    attempts: int = 5
    first: float = 0.1
    factor: float = 4.0
    jitter: float = 0.1
    hold: float = 10.0

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigurationError(
                f"RetryPolicy(attempts={self.attempts!r}): give a whole number, 1 or more"
            )
        for name in ("first", "factor", "hold"):
            if not _is_time(getattr(self, name)):
                raise ConfigurationError(
                    f"RetryPolicy({name}={getattr(self, name)!r}): give a number, 0 or more"
                )
        if not _is_time(self.jitter) or self.jitter >= 1:
            raise ConfigurationError(
                f"RetryPolicy(jitter={self.jitter!r}): give a number, 0 or more, and less than 1"
            )

    def wait(
        self, failures: int, held: float, random: Random, error: BaseException
    ) -> float | None:
        """Return the seconds to wait before the next attempt; None for no further attempt.

        Args:
            failures: attempts that have failed, including this one.
            held: seconds since the first failure.
            random: where the jitter comes from.
            error: what the handler raised; `Retry` may ask for its own wait.
        """
        # A message that ends the program must not do so again at each start.
        if failures >= self.attempts or isinstance(error, Reject | SystemExit):
            return None
        if isinstance(error, Retry) and error.after is not None:
            seconds = error.after
        else:
            seconds = self._backoff(failures) * (1 + self.jitter * (2 * random.random() - 1))
        return seconds if held + seconds <= self.hold else None

    def _backoff(self, failures: int) -> float:
        if self.first == 0:
            return 0.0
        try:
            return self.first * self.factor ** (failures - 1)
        except OverflowError:
            return math.inf


def _is_time(value: Any) -> bool:
    return is_number(value) and bool(0 <= value < math.inf)
