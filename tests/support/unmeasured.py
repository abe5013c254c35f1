"""Programs that are not measured for coverage, which imports modules of its own into each."""

from __future__ import annotations

import os

__all__ = ["unmeasured_environment"]


def unmeasured_environment() -> dict[str, str]:
    """Return the environment for a program whose imported modules are looked at."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
