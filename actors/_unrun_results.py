"""Unrun results: a handler that returns a coroutine or a generator which nobody runs."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from types import AsyncGeneratorType, CodeType, CoroutineType, GeneratorType
from typing import Any

from ..errors import ConfigurationError

__all__ = ["UNRUN", "looked_at", "refuse_unrun", "returns_nothing"]

UNRUN = {
    CoroutineType: ("a coroutine", "an `await` is missing"),
    GeneratorType: ("a generator", "go through it with `for`"),
    AsyncGeneratorType: ("an async generator", "go through it with `async for`"),
}
"""The types of code that has not begun, in words, and how it is run."""


def refuse_unrun(result: Any, name: str) -> None:
    """Raise ConfigurationError when a result is code of the user's that never runs.

    ``return self.save(reading)`` without `await` in a coroutine function looks like success.

    Args:
        result: what was returned, and is looked at by nobody else.
        name: what has returned it.
    """
    known = UNRUN.get(type(result))
    if known is None:
        return
    if type(result) is CoroutineType:
        if inspect.getcoroutinestate(result) != inspect.CORO_CREATED:
            return
        # Python would warn of it a second time.
        result.close()
    kind, remedy = known
    raise ConfigurationError(
        f"{name} returned {kind} ({result.__qualname__}), which nobody runs: {remedy}"
    )


def returns_nothing(function: Callable[..., Any]) -> bool:
    """Return whether a coroutine function is known to return None, so that nobody has to look.

    It may be a `partial` of one. False where it cannot be known, as for a decorator that returns
    what it wraps gives.
    """
    if isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    # Methods are bound anew for each key of an actor, and their code is the same.
    return isinstance(code, CodeType) and _ends_with_none(code)


@lru_cache(1_024)
def _ends_with_none(code: CodeType) -> bool:
    """Return whether all of a code's ways out return None; finding that out takes long."""
    before = None
    for instruction in dis.get_instructions(code):
        returned = instruction
        if instruction.opname == "RETURN_VALUE":
            if before is None or instruction.is_jump_target:
                return False
            returned = before
        if instruction.opname in ("RETURN_VALUE", "RETURN_CONST") and (
            returned.opname not in ("LOAD_CONST", "RETURN_CONST") or returned.argval is not None
        ):
            return False
        before = instruction
    return True


async def looked_at(awaitable: Awaitable[Any], name: str) -> None:
    """Await what would return to nobody; raises as `refuse_unrun`."""
    result = await awaitable
    if result is not None:
        refuse_unrun(result, name)
