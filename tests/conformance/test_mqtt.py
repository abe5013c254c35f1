"""The conformance suite on the MQTT transport."""

from __future__ import annotations

import pytest

from conformance.mqtt_harness import MqttHarness
from spa_dat.testing.conformance import ConformanceSuite, TransportHarness


@pytest.mark.mosquitto
class TestMqtt(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> TransportHarness:
        return MqttHarness()
