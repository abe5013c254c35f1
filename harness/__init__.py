"""The test harness: applications on simulated buses, with virtual time and seeded faults."""

from __future__ import annotations

from ._async_harness import AsyncHarness
from ._dead_letter import DeadLetter
from ._errors import HandlerFailed, NotSettled, NotSimulated
from ._explore import explore
from ._faults import Faults
from ._harness import Harness
from ._pytest_fixture import HarnessFactory, HarnessOptions
from .loop._foreign_threads import UnannouncedThread
from .loop._virtual_time import Deadlock, VirtualEnvironment, VirtualLoop
from .world._actor_monitor import Failure

__all__ = [
    "AsyncHarness",
    "DeadLetter",
    "Deadlock",
    "Failure",
    "Faults",
    "HandlerFailed",
    "Harness",
    "HarnessFactory",
    "HarnessOptions",
    "NotSettled",
    "NotSimulated",
    "UnannouncedThread",
    "VirtualEnvironment",
    "VirtualLoop",
    "explore",
]
