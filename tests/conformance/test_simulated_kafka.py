"""The conformance suite on the Kafka profile of the test harness."""

from __future__ import annotations

import pytest

from conformance.simulated_harness import SimulatedKafkaHarness
from spa_dat.testing.conformance import ConformanceSuite, TransportHarness


class TestSimulatedKafka(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> TransportHarness:
        return SimulatedKafkaHarness()
