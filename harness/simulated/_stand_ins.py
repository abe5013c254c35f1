"""Stand-ins: the providers that lead applications to the buses of a harness."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ...transports import Bus, Envelope, KafkaProvider, SocketProvider, Surroundings
from ._harness_bus import BusWorld, HarnessBus, SimulatedBus

__all__ = ["Profile", "StandInProvider", "simulate"]

Profile: TypeAlias = Literal["mqtt", "kafka"]
"""The kind of broker whose behaviour a simulated bus has."""


class StandInProvider(SocketProvider):
    """Stands in for a provider: same address, defaults and rules, on a bus of the harness.

    Args:
        original: the provider that it stands in for.
        bus: where it leads.
    """

    def __init__(self, original: SocketProvider, bus: HarnessBus) -> None:
        self._original = original
        self.bus = bus
        self.config = original.config
        self.default_deliver = original.default_deliver
        # The rules of both apply.
        self.keeps_history = original.keeps_history and bus.keeps_history
        self.has_transactions = original.has_transactions and bus.has_transactions
        self.null_headers = original.null_headers
        self.default_qos = original.default_qos
        self.default_window = original.default_window
        self.default_window_bytes = original.default_window_bytes
        self.wires = original.wires

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
    buses: dict[str, SimulatedBus],
    profile: Profile | None = None,
) -> StandInProvider:
    """Return the stand-in for a provider, on a simulated bus.

    Args:
        original: the provider.
        world: the world that the simulated bus is in.
        buses: the simulated buses so far, by address; a missing one is added.
        profile: the kind of broker to simulate; None for the kind that fits the original.
    """
    bus = buses.get(original.address)
    if bus is None:
        kind: Profile = profile or ("kafka" if isinstance(original, KafkaProvider) else "mqtt")
        bus = buses[original.address] = _simulated(kind, world)
    return StandInProvider(original, bus)


def _simulated(kind: Profile, world: BusWorld) -> SimulatedBus:
    # Not at the top: the Kafka client takes time to import.
    if kind == "kafka":
        from ._simulated_kafka import SimulatedKafkaBus

        return SimulatedKafkaBus(world)
    from ._simulated_mqtt import SimulatedMqttBus

    return SimulatedMqttBus(world)
