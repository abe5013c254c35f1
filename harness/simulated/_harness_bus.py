"""The contract of a bus in a harness, simulated or real, and of the world that it is in."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Protocol

from ...transports import Bus, Envelope, SocketProvider, Surroundings

if TYPE_CHECKING:
    from contextvars import Context

    from .._faults import Dice
    from .._trace import Trace
    from ..loop._virtual_time import VirtualLoop

__all__ = ["BusWorld", "HarnessBus", "SimulatedBus"]


class BusWorld(Protocol):
    """The part of a simulated world that its buses use.

    Attributes:
        loop: the event loop.
        trace: records what happens.
        dice: decides whether a fault strikes.
        outside: the context of code that belongs to no application, and so outlives them.
    """

    @property
    def loop(self) -> VirtualLoop: ...

    @property
    def trace(self) -> Trace: ...

    @property
    def dice(self) -> Dice: ...

    @property
    def outside(self) -> Context: ...

    def note(self, envelope: Envelope) -> None:
        """Note a message that the bus has accepted."""


class HarnessBus(abc.ABC):
    """One bus of a harness, in place of the one that its applications name.

    Connections know the `OWNER` of the code that made them. When its application is killed,
    `kill` ends them as the end of a process does.

    Attributes:
        pace: roughly how many steps of the event loop it needs for what a memory broker does in
            one.
        keeps_history: whether messages stay on it after they were handled.
        has_transactions: see `SocketProvider`.
    """

    pace: int = 1
    keeps_history: bool = False
    has_transactions: bool = False

    @abc.abstractmethod
    def open(self, original: SocketProvider, surroundings: Surroundings) -> Bus:
        """Return the bus of one application, not started.

        Args:
            original: the provider that is replaced; its options apply.
            surroundings: the application's.
        """

    def check(self, envelope: Envelope) -> None:  # noqa: B027 (a real broker says so itself)
        """Raise what a program gets when it publishes a message that the bus cannot carry."""

    @abc.abstractmethod
    def inject(self, envelope: Envelope) -> None:
        """Accept a message from outside; no fault strikes before that."""

    @abc.abstractmethod
    def under_way(self) -> str | None:
        """Describe what is unfinished although somebody is there to finish it; None if nothing is.

        For example a message that was delivered and not acknowledged, a publish that was not
        confirmed, or a connection that is to be made again.
        """

    def begin_to_settle(self) -> None:  # noqa: B027 (not every bus keeps progress by itself)
        """Note that the test begins to wait until all is settled, before any `all_handled`."""

    def all_handled(self) -> None:  # noqa: B027 (as before)
        """Note that nothing is under way on any bus of the world.

        From now on, until `begin_to_settle`, what was published so far counts as under way until
        the bus has stored the progress of those who have handled it.
        """

    @abc.abstractmethod
    def letters(self) -> list[Envelope]:
        """Return the stored dead letters, oldest first."""

    @abc.abstractmethod
    def kill(self, owner: object) -> None:
        """End the connections of an owner as if its process had ended."""

    def close(self) -> None:  # noqa: B027 (there is nothing that every bus has to do)
        """Release what the bus holds, at the end of the world."""


class SimulatedBus(HarnessBus):
    """A simulated bus, whose connections can be cut, and whose broker can be away."""

    @abc.abstractmethod
    def clients(self) -> list[str]:
        """Return the ids of the connected clients, in the order in which they connected.

        They are ``application.instance`` or ``application.instance.subscription``.
        """

    @abc.abstractmethod
    def cut(self, client: str, *, lose_session: bool = False) -> None:
        """Cut a connection; with ``lose_session`` also forget what was kept for the client."""

    @abc.abstractmethod
    def go_away(self) -> None:
        """Cut all connections, and refuse new ones."""

    @abc.abstractmethod
    def come_back(self) -> None:
        """Accept connections again."""

    def rebalance(self) -> bool:
        """Reassign the partitions; return False if there are none to assign."""
        return False

    @property
    def has_compacted_topics(self) -> bool:
        """Whether there is anything for `compact` to do."""
        return False

    def compact(self) -> None:
        """Compact the topics that are to be compacted."""
