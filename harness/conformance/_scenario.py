"""Tests that are coroutines, for pytest without a plugin for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pytest

from ._transport_harness import TransportHarness

__all__ = ["Scenarios", "scenario"]

S = TypeVar("S")
P = ParamSpec("P")


def scenario(
    test: Callable[Concatenate[S, TransportHarness, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, TransportHarness, P], None]:
    """Turn a coroutine into a test that pytest can run; the harness runs it, with its broker."""

    @functools.wraps(test)
    def run(self: S, harness: TransportHarness, *args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        if not isinstance(harness, TransportHarness):
            pytest.fail(
                f"the fixture 'harness' of {type(self).__name__} returned {harness!r}; it has to"
                " return a TransportHarness",
                pytrace=False,
            )

        async def inside() -> None:
            async with harness:
                await test(self, harness, *args, **kwargs)

        harness.run(inside())

    # pytest gives the harness by its name, which this type cannot say.
    return cast("Callable[Concatenate[S, TransportHarness, P], None]", run)


class Scenarios:
    """Tests that need a harness."""

    @pytest.fixture
    def harness(self) -> TransportHarness:
        """Return the transport to test, not entered; has to be overridden."""
        pytest.fail(
            f"{type(self).__name__} has no transport to test: give it a fixture 'harness' that"
            " returns a TransportHarness",
            pytrace=False,
        )
