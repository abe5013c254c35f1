"""The test harness: applications on simulated buses, with virtual time and seeded faults.

with Harness(app) as harness:
    harness.publish("plant/boiler/temperature", 95.0)
    harness.settle()
    assert harness.published("plant/alarms") == ["boiler: 95.0"]
"""

from __future__ import annotations

from .runtime.testing import (
    AsyncHarness,
    DeadLetter,
    Failure,
    Faults,
    HandlerFailed,
    Harness,
    NotSettled,
    explore,
)

__all__ = [
    "AsyncHarness",
    "DeadLetter",
    "Failure",
    "Faults",
    "HandlerFailed",
    "Harness",
    "NotSettled",
    "explore",
]
