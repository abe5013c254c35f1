"""The conformance suite on the memory transport."""

from __future__ import annotations

import pytest

from conformance.memory_harness import MemoryHarness
from spa_dat.testing.conformance import ConformanceSuite, TransportHarness


class TestMemory(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> TransportHarness:
        return MemoryHarness()
