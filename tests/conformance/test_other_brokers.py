"""The conformance suite on MQTT brokers besides Mosquitto, and on Mosquitto over websockets.

It is run by ``scripts/test-brokers``.

A broker takes part when its name is in the environment variable SPA_DAT_BROKERS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from conformance.mqtt_harness import AedesHarness, HiveMqHarness, WebsocketHarness
from spa_dat.testing.conformance import ConformanceSuite, TransportHarness
from support.other_brokers import HiveMq

_CHOSEN = os.environ.get("SPA_DAT_BROKERS", "").split()


@pytest.fixture(scope="module")
def hivemq() -> Iterator[HiveMq]:
    with HiveMq() as broker:
        yield broker


class TestHiveMq(ConformanceSuite):
    __test__ = "hivemq" in _CHOSEN

    @pytest.fixture
    def harness(self, hivemq: HiveMq) -> TransportHarness:
        return HiveMqHarness(hivemq)


class TestAedes(ConformanceSuite):
    __test__ = "aedes" in _CHOSEN

    @pytest.fixture
    def harness(self) -> TransportHarness:
        return AedesHarness()


class TestWebsockets(ConformanceSuite):
    __test__ = "websockets" in _CHOSEN

    @pytest.fixture
    def harness(self) -> TransportHarness:
        return WebsocketHarness()
