"""The faults that a harness injects, how likely they are, and the dice that decide."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

from ..errors import ConfigurationError

__all__ = ["Dice", "Faults"]

T = TypeVar("T")

_LONGEST_DELAY = 1.0
_LONGEST_DISORDER = 0.01


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How likely each fault is, from 0.0 (never) to 1.0, on each occasion for it.

    For ``drop``, ``delay``, ``reorder`` and ``duplicate`` each packet on its way is an occasion:
    a message, an acknowledgement, a publish, a confirmation. For the others each step of the event
    loop is one (every eighth where Kafka is simulated, which takes more steps for the same), so
    they can also strike between two steps at the same time.

    A named application keeps its promise under all of them: what was published with QoS 1 is
    handled at least once. What the broker itself forgets is another matter, so losing a session is
    not among them; see `Harness.cut`.

    Attributes:
        drop: the connection breaks during a packet, which is lost with all that follow; both ends
            notice up to a second later.
        duplicate: a message is delivered once more, as a separate message. (On Kafka it is appended
            once more, as by a publisher that missed its confirmation.)
        delay: a packet takes up to a second longer; those behind it on the connection wait. So does
            a marker of a transaction (Kafka only).
        reorder: a packet takes up to 0.01 s longer, so that packets of other connections overtake
            it; the order on each connection is kept, as with TCP.
        cut: a connection is cut, and opened again after the usual backoff.
        rebalance: the partitions of a group are reassigned (Kafka only).
        compact: compacted topics are compacted (Kafka only, and where there are such topics).
        crash_actor: an actor loses its state and starts again, with the message that it was working
            on.
        crash: an application is killed at once, and started again up to a second later.
        crash_in_commit: likewise, when a message of a durable actor has reached one of the steps of
            `Harness.crash`, each of which is an occasion.
        most: the most faults in a run, so that it comes to an end.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0
    rebalance: float = 0.0
    compact: float = 0.0
    crash_actor: float = 0.0
    crash: float = 0.0
    crash_in_commit: float = 0.0
    most: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            highest = 1_000_000 if field.name == "most" else 1
            if not isinstance(value, int | float) or not 0 <= value <= highest:
                raise ConfigurationError(
                    f"Faults({field.name}={value!r}): give a number from 0 to {highest}"
                )

    @classmethod
    def all(cls) -> Self:
        """Return some of each."""
        return cls(
            drop=0.03,
            duplicate=0.05,
            delay=0.1,
            reorder=0.3,
            cut=0.01,
            rebalance=0.01,
            compact=0.01,
            crash_actor=0.01,
            crash=0.01,
            crash_in_commit=0.02,
        )


class Dice:
    """Decides, repeatably, where faults strike.

    Args:
        seed: the same seed gives the same decisions.
        faults: how likely each fault is; None for no faults.

    Attributes:
        left: how many faults may still strike; delays do not count.
        active: whether any fault may strike now.
        at_steps: whether a fault may strike that has an occasion at each step.
    """

    def __init__(self, seed: int, faults: Faults | None) -> None:
        self.faults = faults or Faults()
        # Not the application's own source: that must give the same with and without faults.
        self._random = random.Random(f"faults {seed}")
        self.left = self.faults.most if faults is not None else 0
        self.active = False
        self.at_steps = False

    def start(self) -> None:
        """Let faults strike from now on."""
        made = self.faults
        chances = [getattr(made, field.name) for field in fields(made)[:-1]]
        self.active = self.left > 0 and any(chances)
        self.at_steps = self.active and any(
            (made.cut, made.rebalance, made.compact, made.crash_actor, made.crash)
        )

    def stop(self) -> None:
        """Let no more faults strike."""
        self.active = self.at_steps = False

    def strikes(self, chance: float) -> bool:
        """Decide whether a fault of this likelihood strikes now."""
        if not self.active or chance == 0 or self._random.random() >= chance:
            return False
        self.left -= 1
        if self.left <= 0:
            self.stop()
        return True

    def seconds(self, most: float = _LONGEST_DELAY) -> float:
        """Return a random time between 0 and ``most`` seconds."""
        return self._random.random() * most

    def latency(self) -> float:
        """Return how long a packet takes, in seconds."""
        if not self.active:
            return 0.0
        if self.faults.delay and self._random.random() < self.faults.delay:
            return self.seconds()
        if self.faults.reorder and self._random.random() < self.faults.reorder:
            return self.seconds(_LONGEST_DISORDER)
        return 0.0

    def choose(self, among: Sequence[T]) -> T:
        """Return a random item."""
        return self._random.choice(among)
