"""The test harness: applications on simulated buses, with virtual time and seeded faults.

with Harness(app) as harness:
    harness.publish("plant/boiler/temperature", 95.0)
    harness.settle()
    assert harness.published("plant/alarms") == ["boiler: 95.0"]
"""

from __future__ import annotations

from .._busy_threads import BusyThread
from ..harness import (
    AsyncHarness,
    DeadLetter,
    Failure,
    Faults,
    HandlerFailed,
    Harness,
    HarnessFactory,
    NotSettled,
    NotSimulated,
    UnannouncedThread,
    explore,
)
from ..harness.brokers import (
    Acl,
    BrokerFailed,
    BrokerProcess,
    BrokerUnavailable,
    Kafka,
    Mosquitto,
    Proxy,
)

__all__ = [
    "Acl",
    "AsyncHarness",
    "BrokerFailed",
    "BrokerProcess",
    "BrokerUnavailable",
    "BusyThread",
    "DeadLetter",
    "Failure",
    "Faults",
    "HandlerFailed",
    "Harness",
    "HarnessFactory",
    "Kafka",
    "Mosquitto",
    "NotSettled",
    "NotSimulated",
    "Proxy",
    "UnannouncedThread",
    "explore",
]
