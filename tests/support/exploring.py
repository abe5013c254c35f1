"""Scenarios in which `explore` has to find something."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spa_dat.testing import explore


def found_by_explore(scenario: Callable[[int], object], seeds: int = 30) -> None:
    """Fail unless one of so many seeds fails, and the error says how to replay it."""
    with pytest.raises(AssertionError, match=r"explore\(.*seeds=\[\d+\]\)  # replays") as found:
        explore(scenario, seeds=seeds)
    assert isinstance(found.value.__cause__, AssertionError)
