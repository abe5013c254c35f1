"""Units: what a bus with transactions commits together, and the outcomes of messages in them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import msgspec

from ..errors import SpaDatError
from ._delivery import Delivery, Tracker

__all__ = ["Outcome", "OwnDelivery", "Refused", "Unit"]


class Outcome(msgspec.Struct, eq=False):
    """What handling one message has come to: kept with its acknowledgement, or not at all.

    Attributes:
        output: what is published, as `Bus.add_output` has added it; None for nothing.
        more: what is published after that; None for nothing.
        committed: called once all of it is committed; never if it is not.
        dropped: called if the attempt fails after all, which it cannot once it is settled.
        lost: called if it was noted, and is not known to be committed and never will be.
        key: the key whose state has changed; None if none has.
        value: what is kept of that key from now on; None for nothing.
        wake: when something is to be done with that key, in seconds since 1970; None for never.
        size: the bytes of the outputs, as the bus counts them; once it is noted, with the value.
        after: of which message of its key it comes behind, or is, in the terms of the unit.
        behind: whose message that is, likewise.
    """

    # Neither lists nor tuples: thousands of outcomes wait for a commit, and the garbage collector
    # looks at each of these again and again. Most have one output, and nothing to call.
    output: object = None
    more: list[object] | None = None
    committed: tuple[Callable[[], None], ...] = ()
    dropped: tuple[Callable[[], None], ...] = ()
    lost: tuple[Callable[[], None], ...] = ()
    key: str | None = None
    value: bytes | None = None
    wake: float | None = None
    size: int = 0
    after: int = -1
    behind: object = None

    def add(self, output: object, size: int) -> None:
        """Add something that is published, and its bytes."""
        if self.output is None:
            self.output = output
        elif self.more is None:
            self.more = [output]
        else:
            self.more.append(output)
        self.size += size

    def drop(self) -> None:
        """Forget all of it: the attempt has failed."""
        self.output = self.more = None
        self.committed = ()
        self.key = self.value = self.wake = None
        dropped, self.dropped = self.dropped, ()
        for call in dropped:
            call()

    def lose(self) -> None:
        """Tell that it is not known to be committed, and never will be."""
        lost, self.lost = self.lost, ()
        for call in lost:
            call()


class Refused(NamedTuple):
    """Why an earlier outcome of a message cannot be committed, so that it has to have another one.

    Attributes:
        error: the answer to one of its outputs.
        letter_too: whether its dead letter was refused as well.
    """

    error: SpaDatError
    letter_too: bool


class Unit(Tracker, abc.ABC):
    """What is committed together: outcomes of deliveries, with their acknowledgement.

    The deliveries have trackers of their own, whose `Tracker.unit` it is. It is itself that of each
    `OwnDelivery`. The longest settled prefix is committed now and then. If that fails, everything
    that is not committed comes again, and what handlers make of the earlier deliveries counts for
    nothing.
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def number(self) -> int:
        """Its number among those of its subscription: on Kafka that of the partition."""

    @property
    @abc.abstractmethod
    def over(self) -> bool:
        """Whether nothing more of it is handed out, and soon nothing more is committed."""

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether the states of its keys are known, and nobody before us can commit anything."""

    @abc.abstractmethod
    def note(self, delivery: Delivery, outcome: Outcome, *, hurry: bool = False) -> None:
        """Note the outcome of a delivery that is about to be settled, in place of any earlier one.

        Args:
            delivery: the delivery.
            outcome: its outcome, to which more may be added until it is settled.
            hurry: whether somebody waits for it.
        """

    @abc.abstractmethod
    def add(self, outcome: Outcome, key: str, name: str = "") -> None:
        """Take the outcome of what it has not handed out, to be committed as soon as it can be.

        It is committed after, or together with, all that was settled before and has changed the
        key, and before, or together with, all that is settled of it from now on. What an earlier
        message of the key has come to that has changed nothing may be committed later: the key is
        as if that message had come after it.

        Args:
            outcome: the outcome, which is not changed any more.
            key: the key that it is about.
            name: of what it is the outcome of, for `refused`.
        """

    @abc.abstractmethod
    async def first_due(self, most: int) -> Sequence[tuple[str, float]]:
        """Return the keys in which something is to be done first, and when, in that order.

        What is settled and not committed is left out; its `Outcome.committed` says when to ask
        again. Nothing is returned while the states of the keys are not known.

        Args:
            most: how many at the most.

        Raises:
            StateNotWritten: they cannot be read at the moment.
        """

    @abc.abstractmethod
    async def load(self, key: str) -> bytes | None:
        """Return what is kept of a key, after everything that was settled; None for nothing.

        Raises:
            StateNotWritten: it cannot be read at the moment.
        """

    @abc.abstractmethod
    async def peek(self, key: str) -> bytes | None:
        """Return what was committed last of a key; None for nothing, or while that is unknown.

        Raises:
            StateNotWritten: as `load`.
        """

    @abc.abstractmethod
    def refused(self, delivery: Delivery) -> Refused | None:
        """Return why the outcome of an earlier receipt of a message was refused, if it was."""


class OwnDelivery(Delivery):
    """A delivery that no bus has handed out, because its message is stored elsewhere.

    If it belongs to a unit, that is its tracker, and gets the outcome when it is settled.

    Attributes:
        outcome: what it has come to; None if nothing is to be committed.
    """

    is_stored: ClassVar[bool] = True

    outcome: Outcome | None = None

    def complete(self, outcome: Outcome) -> None:
        """Note what it has come to, as it was handled."""
        self.outcome = outcome

    def lost(self) -> None:
        """Note that what it has come to is not known to be committed, after it was settled."""
