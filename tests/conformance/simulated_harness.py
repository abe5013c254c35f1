"""The simulated buses of the test harness, on virtual time."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Coroutine
from typing import Any

from conformance.kafka_harness import KafkaHarness
from spa_dat.harness.simulated._harness_bus import SimulatedBus
from spa_dat.harness.simulated._simulated_kafka import SimulatedKafkaBus
from spa_dat.harness.simulated._simulated_mqtt import SimulatedMqttBus
from spa_dat.harness.world._simulated_world import SimulatedWorld
from spa_dat.testing.conformance import TransportHarness, VirtualEnvironment
from spa_dat.transports import KafkaConfig, KafkaProvider, MqttConfig, MqttProvider, SocketProvider

__all__ = ["SimulatedHarness", "SimulatedKafkaHarness", "SimulatedMqttHarness"]


class SimulatedHarness(TransportHarness):
    """A world without faults of its own, and one bus in it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = SimulatedWorld(
            seed=1, profile=None, faults=None, grace=10.0, patience=600.0, limit=1_000_000
        )
        self.environment = VirtualEnvironment(1, loop=self.world.loop)

    @abc.abstractmethod
    def original(self, **options: Any) -> SocketProvider:
        """Return the provider that the bus stands in for."""

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        try:
            self.world.run(asyncio.wait_for(test, self.deadline))
            assert self.world.monitor.failures == []
        finally:
            self.world.close()

    async def start_broker(self) -> None:
        """Make the first provider, and with it the bus."""
        self.provider()

    async def stop_broker(self) -> None:
        """Do nothing: the bus goes with the world."""

    def provider(self, **options: Any) -> SocketProvider:
        return self.world.stand_in(self.original(**options))

    @property
    def simulated(self) -> SimulatedBus:
        """The bus."""
        (bus,) = self.world.buses.values()
        return bus

    async def cut(self) -> None:
        for client in self.simulated.clients():
            self.simulated.cut(client)

    async def go_away(self) -> None:
        self.simulated.go_away()

    async def come_back(self) -> None:
        self.simulated.come_back()


class SimulatedMqttHarness(SimulatedHarness):
    """The profile of MQTT."""

    def original(self, **options: Any) -> SocketProvider:
        return MqttProvider(MqttConfig("simulated", **options))

    @property
    def simulated(self) -> SimulatedMqttBus:
        bus = super().simulated
        assert isinstance(bus, SimulatedMqttBus)
        return bus


class SimulatedKafkaHarness(SimulatedHarness, KafkaHarness):
    """The profile of Kafka."""

    def original(self, **options: Any) -> SocketProvider:
        return KafkaProvider(KafkaConfig("simulated", **{**self.short_times, **options}))

    @property
    def simulated(self) -> SimulatedKafkaBus:
        bus = super().simulated
        assert isinstance(bus, SimulatedKafkaBus)
        return bus

    async def cut(self) -> None:
        """As with the real one, groups are also rebalanced."""
        self.remember_events()
        await super().cut()
        self.simulated.rebalance()
