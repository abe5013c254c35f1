"""The conformance suite on the MQTT profile of the test harness."""

from __future__ import annotations

import pytest

from conformance.simulated_harness import SimulatedMqttHarness
from spa_dat.testing.conformance import ConformanceSuite, TransportHarness


class TestSimulatedMqtt(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> TransportHarness:
        return SimulatedMqttHarness()
