"""When to connect again, and which of two programs with one name gives way."""

from __future__ import annotations

from .._environment import Environment

__all__ = ["Backoff", "Rivalry"]


class Backoff:
    """Exponential delays with jitter, so that many clients do not come back in step.

    Args:
        environment: where the jitter comes from.
        minimum: the longest first delay, in seconds.
        maximum: the longest delay of all, in seconds.
        factor: by how much the delay grows from one attempt to the next.
        stable: a connection that held for so many seconds counts as good: the delays start
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
        """Seconds to wait now: between half of the current ceiling and all of it.

        Args:
            lasted: how many seconds the connection held that has just ended; 0.0 for an attempt
                that never led to one.
            longest: go to the longest delay at once.
        """
        if longest:
            self._ceiling = self._maximum
        elif lasted >= self._stable:
            self._ceiling = self._minimum
        ceiling = self._ceiling
        self._ceiling = min(self._maximum, ceiling * self._factor)
        return ceiling * (0.5 + self._random.random() / 2)

    def reset(self) -> None:
        """Start again at the shortest delay."""
        self._ceiling = self._minimum


class Rivalry:
    """Counts how often somebody else has taken our place.

    The one that came second gives way: it has not held its place for long yet, and has less
    patience. Who was there first comes back until then.

    Args:
        settled_after: who has held its place for so many seconds, before it was pushed out for the
            first time, was there first.
        lasting: who holds it for so many seconds has won: the count starts anew.
        newcomer: how often a newcomer lets itself be pushed out.
        settled: how often one that was there first does.

    Attributes:
        count: how often it was pushed out so far.
        is_newcomer: it has not held its place for long yet.
    """

    def __init__(
        self, *, settled_after: float, lasting: float, newcomer: int, settled: int
    ) -> None:
        self.count = 0
        self.is_newcomer = True
        self._settled_after = settled_after
        self._lasting = lasting
        self._newcomer = newcomer
        self._settled = settled

    @property
    def gives_way(self) -> bool:
        """Whether to end."""
        return self.count >= (self._newcomer if self.is_newcomer else self._settled)

    def held(self, seconds: float) -> None:
        """Note that the place was held for so long, and is lost now, for whatever reason."""
        # In a fight the times grow with the pauses that the other one makes.
        if seconds >= (self._lasting if self.count else self._settled_after):
            self.is_newcomer = False
        if seconds >= self._lasting:
            self.count = 0

    def pushed_out(self) -> None:
        """Somebody else has taken the place."""
        self.count += 1

    def over(self) -> None:
        """Nobody else is there."""
        self.count = 0
