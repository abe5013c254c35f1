"""The transport kit: one suite of tests for every transport, whatever its broker.

It may import `loop`. Begin with `_transport_harness`, which a transport implements, and `_suite`.
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as _missing:
    if _missing.name != "pytest":
        raise
    raise ModuleNotFoundError(
        "the transport kit needs pytest, which is not installed: pip install pytest",
        name="pytest",
    ) from _missing

_SUITES = (
    "_concurrency",
    "_inbox",
    "_outages",
    "_publishing",
    "_receiving",
    "_replies",
    "_subscribing",
)
# Before they are imported, so that a failed assertion shows what it compared.
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _SUITES))

from .._eventually import eventually  # noqa: E402
from ..loop._virtual_time import VirtualEnvironment, VirtualLoop  # noqa: E402
from ._concurrency import Concurrency  # noqa: E402
from ._inbox import Inbox, numbered  # noqa: E402
from ._outages import Outages  # noqa: E402
from ._publishing import Publishing  # noqa: E402
from ._receiving import Receiving  # noqa: E402
from ._replies import Replies  # noqa: E402
from ._scenario import scenario  # noqa: E402
from ._subscribing import Subscribing  # noqa: E402
from ._suite import ConformanceSuite  # noqa: E402
from ._transport_harness import TransportHarness  # noqa: E402

__all__ = [
    "Concurrency",
    "ConformanceSuite",
    "Inbox",
    "Outages",
    "Publishing",
    "Receiving",
    "Replies",
    "Subscribing",
    "TransportHarness",
    "VirtualEnvironment",
    "VirtualLoop",
    "eventually",
    "numbered",
    "scenario",
]
