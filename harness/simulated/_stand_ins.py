"""Simulated buses in place of the real ones."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from ...transports import Bus, Envelope, KafkaProvider, SocketProvider, Surroundings

if TYPE_CHECKING:
    from contextvars import Context

    from .._faults import Dice
    from .._trace import Trace
    from ..loop._virtual_time import VirtualLoop

__all__ = ["BusWorld", "HarnessBus", "Profile", "StandInProvider", "simulate"]

Profile: TypeAlias = Literal["mqtt", "kafka"]
"""Whose behaviour a simulated bus has."""


class BusWorld(Protocol):
    """What a simulated bus has of the harness.

    Attributes:
        loop: the event loop.
        trace: where its events go.
        dice: whether a fault strikes.
        outside: the context of what belongs to no application, and so survives them.
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
        """The bus has taken a message."""


class HarnessBus(abc.ABC):
    """One bus of a simulated world, with the behaviour of a kind of broker.

    Connections know the `OWNER` of the code that made them. When its application is killed,
    `kill` ends them as the end of a process does.

    Attributes:
        pace: so many steps of the event loop, roughly, get as much done as one on a memory broker.
    """

    pace: int = 1

    @abc.abstractmethod
    def open(self, original: SocketProvider, surroundings: Surroundings) -> Bus:
        """The presence of one application, not started.

        Args:
            original: the provider that is replaced; its options count.
            surroundings: the application's.
        """

    def check(self, envelope: Envelope) -> None:  # noqa: B027 (a real broker says so itself)
        """Raise what a program gets that wants to publish a message that the bus cannot carry."""

    @abc.abstractmethod
    def inject(self, envelope: Envelope) -> None:
        """Take a message from outside; no fault strikes it before it is taken."""

    @abc.abstractmethod
    def under_way(self) -> str | None:
        """What is not settled though somebody is there for it; None when there is nothing.

        For example a message that was delivered and not acknowledged, a publish without
        confirmation, a connection that is to come back.
        """

    def begin_to_settle(self) -> None:  # noqa: B027 (not every bus keeps progress by itself)
        """The test waits for rest from now on, and `all_handled` has not been called for that."""

    def all_handled(self) -> None:  # noqa: B027 (as before)
        """Nothing is under way on any bus of the world.

        From now on, until `begin_to_settle`, what was published so far is under way again as
        long as the progress of those who have handled it is not kept.
        """

    @abc.abstractmethod
    def letters(self) -> list[Envelope]:
        """The dead letters that are stored, oldest first."""

    @abc.abstractmethod
    def clients(self) -> list[str]:
        """Ids of what is connected, in the order of connecting.

        They are ``application.instance`` or ``application.instance.subscription``.
        """

    @abc.abstractmethod
    def cut(self, client: str, *, lose_session: bool = False) -> None:
        """End a connection; with ``lose_session`` forget what was kept for it, too."""

    @abc.abstractmethod
    def kill(self, owner: object) -> None:
        """The process that made these connections is gone: nothing of theirs arrives any more."""

    @abc.abstractmethod
    def go_away(self) -> None:
        """Cut all connections, and refuse new ones."""

    @abc.abstractmethod
    def come_back(self) -> None:
        """Take connections again."""

    def rebalance(self) -> bool:
        """Hand partitions out anew; False when there is nothing to hand out."""
        return False

    def close(self) -> None:  # noqa: B027 (there is nothing that every bus has to do)
        """The world has come to its end; nothing happens any more."""


class StandInProvider(SocketProvider):
    """Stands in for a provider: same address, defaults and rules, on a simulated bus.

    Args:
        original: what it stands in for.
        bus: the simulated one.
    """

    def __init__(self, original: SocketProvider, bus: HarnessBus) -> None:
        self._original = original
        self.bus = bus
        self.config = original.config
        self.default_deliver = original.default_deliver
        self.default_qos = original.default_qos
        self.default_window = original.default_window
        self.default_window_bytes = original.default_window_bytes

    @property
    def address(self) -> str:
        return self._original.address

    def open(self, surroundings: Surroundings) -> Bus:
        return self.bus.open(self._original, surroundings)

    def check_topic(self, topic: str) -> None:
        self._original.check_topic(topic)

    def check_filter(self, pattern: str) -> None:
        self._original.check_filter(pattern)

    def check_message(self, envelope: Envelope) -> None:
        self._original.check_message(envelope)


def simulate(
    original: SocketProvider,
    world: BusWorld,
    buses: dict[str, HarnessBus],
    profile: Profile | None = None,
) -> StandInProvider:
    """What stands in for a provider.

    Args:
        original: the provider.
        world: the world that the simulated bus is in.
        buses: the simulated buses so far, by address; gets a new one where there is none.
        profile: whose behaviour it is to have; None for what fits the original.
    """
    bus = buses.get(original.address)
    if bus is None:
        kind: Profile = profile or ("kafka" if isinstance(original, KafkaProvider) else "mqtt")
        bus = buses[original.address] = _simulated(kind, world)
    return StandInProvider(original, bus)


def _simulated(kind: Profile, world: BusWorld) -> HarnessBus:
    # Not at the top: they build on this module, and the Kafka client takes time to import.
    if kind == "kafka":
        from ._kafka import SimulatedKafkaBus

        return SimulatedKafkaBus(world)
    from ._mqtt import SimulatedMqttBus

    return SimulatedMqttBus(world)
