"""The transport kit: what every transport must do, as tests that any transport can run.

class TestMyTransport(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> TransportHarness:
        return MyHarness()

Needs pytest.
"""

from __future__ import annotations

from ..harness.conformance import (
    Concurrency,
    ConformanceSuite,
    Inbox,
    Outages,
    Publishing,
    Receiving,
    Replies,
    Subscribing,
    TransportHarness,
    VirtualEnvironment,
    VirtualLoop,
    eventually,
    numbered,
    scenario,
)

__all__ = [
    "Concurrency",
    "ConformanceSuite",
    "Inbox",
    "Outages",
    "Publishing",
    "Receiving",
    "Replies",
    "Subscribing",
    "Subscriptions",
    "TransportHarness",
    "VirtualEnvironment",
    "VirtualLoop",
    "eventually",
    "numbered",
    "scenario",
]

# The name under which earlier versions of the documentation knew it.
Subscriptions = Subscribing
