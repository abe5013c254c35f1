"""The test harness: applications on simulated buses, with virtual time and seeded faults."""

from __future__ import annotations

from ._clock import Deadlock, VirtualEnvironment, VirtualLoop
from ._errors import HandlerFailed, NotSettled
from ._explore import explore
from ._faults import Faults
from ._harness import AsyncHarness, Harness
from ._letters import DeadLetter
from ._watch import Failure

__all__ = [
    "AsyncHarness",
    "DeadLetter",
    "Deadlock",
    "Failure",
    "Faults",
    "HandlerFailed",
    "Harness",
    "NotSettled",
    "VirtualEnvironment",
    "VirtualLoop",
    "explore",
]
