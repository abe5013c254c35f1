"""The conformance suite on the Kafka transport."""

from __future__ import annotations

import pytest

from conformance.kafka_harness import RealKafkaHarness
from spa_dat.testing import Kafka
from spa_dat.testing.conformance import ConformanceSuite, TransportHarness


@pytest.mark.kafka
class TestKafka(ConformanceSuite):
    @pytest.fixture
    def harness(self, kafka: Kafka) -> TransportHarness:
        return RealKafkaHarness(kafka)
