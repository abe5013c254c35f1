"""The profiles of the test harness differ in nothing from what they stand for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from conformance.kafka_harness import RealKafkaHarness
from conformance.mqtt_harness import MqttHarness
from conformance.simulated_harness import SimulatedKafkaHarness, SimulatedMqttHarness
from spa_dat.testing.conformance import TransportHarness

# A broker that overruns its window is one's own bad luck; how quick it is no question of behaviour.
MAY_DIFFER = ("deadline", "overrun", "quick")


def differences(harness: type[TransportHarness]) -> dict[str, Any]:
    names = [name for name in inspect.get_annotations(TransportHarness) if name not in MAY_DIFFER]
    return {name: getattr(harness, name) for name in names}


@pytest.mark.parametrize(
    ("simulated", "real"),
    [(SimulatedMqttHarness, MqttHarness), (SimulatedKafkaHarness, RealKafkaHarness)],
)
def test_a_profile_is_like_its_broker(
    simulated: type[TransportHarness], real: type[TransportHarness]
) -> None:
    assert differences(simulated) == differences(real)
    assert len(differences(real)) > 10
