"""Runs one asynchronous test on a loop of its own and looks for what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from spa_dat.harness import VirtualLoop
from spa_dat.harness.loop._run_alone import LeftBehind, run_alone
from support.deadline import interruptible

__all__ = ["run_async_test"]


def run_async_test(
    function: Callable[..., Coroutine[Any, Any, None]],
    arguments: dict[str, Any],
    *,
    virtual: bool,
) -> None:
    """Run the test; fail it also for tasks it leaves running and errors that nobody looked at.

    Args:
        function: the ``async def`` test.
        arguments: its fixtures.
        virtual: on virtual time.
    """
    loop: asyncio.AbstractEventLoop = VirtualLoop() if virtual else asyncio.SelectorEventLoop()
    try:
        run_alone(function(**arguments), loop, guard=interruptible)
    except LeftBehind as problem:
        pytest.fail(str(problem))
