"""All tests of the kit."""

from __future__ import annotations

from ._concurrency import Concurrency
from ._outages import Outages
from ._publishing import Publishing
from ._receiving import Receiving
from ._replies import Replies
from ._subscribing import Subscribing

__all__ = ["ConformanceSuite"]


class ConformanceSuite(Publishing, Receiving, Subscribing, Replies, Outages, Concurrency):
    """What every transport must do, whatever its broker.

    Subclass it in a module of tests, under a name that pytest collects, and give it a fixture
    ``harness``::

        class TestMyTransport(ConformanceSuite):
            @pytest.fixture
            def harness(self) -> TransportHarness:
                return MyHarness()

    Each test gets a harness of its own, enters it, and runs in the event loop that the harness
    provides: no plugin for asynchronous tests is needed.
    """
