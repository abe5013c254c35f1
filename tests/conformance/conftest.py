"""Runs every test of the folder on every transport."""

from __future__ import annotations

import pytest

from conformance.harness import Harness, MemoryHarness, MqttHarness
from conformance.kafka_harness import KafkaHarness


@pytest.fixture(
    params=[
        "memory",
        pytest.param("mqtt", marks=pytest.mark.mosquitto),
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def harness(request: pytest.FixtureRequest) -> Harness:
    """A broker that starts with ``async with``."""
    if request.param == "kafka":
        return KafkaHarness(request.getfixturevalue("kafka"))
    return MemoryHarness() if request.param == "memory" else MqttHarness()
