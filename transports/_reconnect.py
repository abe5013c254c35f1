"""Reconnecting: how long to wait before the next attempt."""

from __future__ import annotations

from .._environment import Environment

__all__ = ["Backoff"]


class Backoff:
    """Exponential delays with jitter, so that many clients do not reconnect in step.

    Args:
        environment: where the jitter comes from.
        minimum: the longest first delay, in seconds.
        maximum: the longest delay at all, in seconds.
        factor: by which the delay grows from one attempt to the next.
        stable: a connection that has lasted for this many seconds counts as good: the delays start
            again at ``minimum``. Default: ``maximum``.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        minimum: float = 0.1,
        maximum: float = 10.0,
        factor: float = 2.0,
        stable: float | None = None,
    ) -> None:
        self._random = environment.random
        self._minimum = minimum
        self._maximum = maximum
        self._factor = factor
        self._stable = maximum if stable is None else stable
        self._ceiling = minimum

    def next_delay(self, lasted: float = 0.0, *, longest: bool = False) -> float:
        """Return the seconds to wait now: between half of the current ceiling and all of it.

        Args:
            lasted: for how many seconds the connection that has just ended had lasted; 0.0 for an
                attempt that never led to one.
            longest: whether to go to the longest delay at once.
        """
        if longest:
            self._ceiling = self._maximum
        elif lasted >= self._stable:
            self._ceiling = self._minimum
        ceiling = self._ceiling
        self._ceiling = min(self._maximum, ceiling * self._factor)
        return ceiling * (0.5 + self._random.random() / 2)

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._ceiling = self._minimum
