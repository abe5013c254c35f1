"""Which faults a harness is to make, how often, and the dice that decide."""

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
    """How likely each fault is, from 0.0 (never) to 1.0, whenever there is an occasion for it.

    For ``drop``, ``delay``, ``reorder`` and ``duplicate`` each packet on its way is an occasion:
    a message, an acknowledgement, a publish, a confirmation. For the others each step of the event
    loop is one (each eighth where Kafka is simulated, which takes more of them for the same), so
    that they also strike between two steps of the same moment.

    An application that has a name keeps its promise under all of them: what was published with
    QoS 1 is handled, at least once. What the broker itself forgets is another matter, so losing a
    session is not among them; see `Harness.cut`.

    Attributes:
        drop: the connection breaks down under a packet, which is lost with all that follows; both
            ends notice up to a second later.
        duplicate: a message is delivered once more, as one of its own. (On Kafka it is appended
            once more, as by a publisher that did not get to know that it was.)
        delay: a packet takes up to a second longer; those behind it on the connection wait.
        reorder: a packet takes up to 0.01 s longer, so that what comes from different sources
            overtakes; the order on each connection is kept, as TCP does.
        cut: a connection is cut, and made again after the usual backoff.
        rebalance: a group's partitions are handed out anew (Kafka only).
        crash_actor: an actor loses its state and starts again; it begins anew with the message
            that it was working on.
        crash: an application is killed, all at once, and started again up to a second later.
        most: how many faults there are at the most, so that an end is reached.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0
    rebalance: float = 0.0
    crash_actor: float = 0.0
    crash: float = 0.0
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
        """Some of each."""
        return cls(
            drop=0.03,
            duplicate=0.05,
            delay=0.1,
            reorder=0.3,
            cut=0.01,
            rebalance=0.01,
            crash_actor=0.01,
            crash=0.01,
        )


class Dice:
    """Decides, repeatably, where faults strike.

    Args:
        seed: the same seed gives the same decisions.
        faults: how likely each is; None for no faults.

    Attributes:
        left: how many may still strike; delays do not count.
        active: whether any may strike now.
        at_steps: whether any of those may that have an occasion at each step.
    """

    def __init__(self, seed: int, faults: Faults | None) -> None:
        self.faults = faults or Faults()
        # Not the application's own source: its draws must be the same with and without faults.
        self._random = random.Random(f"faults {seed}")
        self.left = self.faults.most if faults is not None else 0
        self.active = False
        self.at_steps = False

    def start(self) -> None:
        """Faults from now on."""
        made = self.faults
        chances = [getattr(made, field.name) for field in fields(made)[:-1]]
        self.active = self.left > 0 and any(chances)
        self.at_steps = self.active and any(
            (made.cut, made.rebalance, made.crash_actor, made.crash)
        )

    def stop(self) -> None:
        """No faults any more."""
        self.active = self.at_steps = False

    def strikes(self, chance: float) -> bool:
        """Whether a fault of this likelihood strikes now."""
        if not self.active or chance == 0 or self._random.random() >= chance:
            return False
        self.left -= 1
        if self.left <= 0:
            self.stop()
        return True

    def seconds(self, most: float = _LONGEST_DELAY) -> float:
        """A time between 0 and ``most``."""
        return self._random.random() * most

    def latency(self) -> float:
        """How long a packet is under way, in seconds."""
        if not self.active:
            return 0.0
        if self.faults.delay and self._random.random() < self.faults.delay:
            return self.seconds()
        if self.faults.reorder and self._random.random() < self.faults.reorder:
            return self.seconds(_LONGEST_DISORDER)
        return 0.0

    def choose(self, among: Sequence[T]) -> T:
        """One of several."""
        return self._random.choice(among)
