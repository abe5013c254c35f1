"""Runs every test of the folder on every transport."""

from __future__ import annotations

import pytest

from conformance.harness import HARNESSES, Harness


def _parameters() -> list[object]:
    marks = {"mqtt": pytest.mark.mosquitto}
    return [pytest.param(name, marks=marks[name]) if name in marks else name for name in HARNESSES]


@pytest.fixture(params=_parameters())
def harness(request: pytest.FixtureRequest) -> Harness:
    """A broker that starts with ``async with``."""
    return HARNESSES[request.param]()
