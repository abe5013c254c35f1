"""The ``state=`` given at registration: a factory, or one value; making the first state of it."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterable
from functools import partial
from types import GenericAlias
from typing import Any

from ..._texts import reason_of
from ...errors import ConfigurationError

__all__ = ["check_state", "is_factory", "make_state", "refuse_shared_state"]

_IMMUTABLE = (int, float, complex, str, bytes, bool, tuple, frozenset, type(None), enum.Enum)


def check_state(owner: str, state: Any) -> None:
    """Raise ConfigurationError for a factory that would have to be awaited."""
    if inspect.iscoroutinefunction(state):
        raise ConfigurationError(
            f"{owner}: state={state!r} is async, but nothing can be awaited while state is made;"
            " register what has to be awaited as a resource"
        )


def make_state(owner: str, state: Any) -> Any:
    """Return an actor's initial state; raises ConfigurationError if the factory fails."""
    if not is_factory(state):
        return state
    try:
        return state()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigurationError(
            f"{owner}: its state could not be made by {state!r}: {reason_of(error)}"
        ) from error


def refuse_shared_state(name: str, state: Any, others: Iterable[tuple[str, Any]]) -> None:
    """Raise ConfigurationError if another actor has the same mutable object as state.

    Args:
        name: the actor's.
        state: what was given for it.
        others: the names and states of the other actors.
    """
    if is_factory(state) or isinstance(state, _IMMUTABLE) or _is_frozen(state):
        return
    for other, theirs in others:
        if theirs is state:
            raise ConfigurationError(
                f"actors {other!r} and {name!r} have the same object as state; give a factory, or"
                " an object to each"
            )


def is_factory(state: Any) -> bool:
    """Return whether what was given as state is called to make the state."""
    # Not everything callable: a model that is called to predict something is a value.
    return inspect.isroutine(state) or isinstance(state, type | partial | GenericAlias)


def _is_frozen(state: Any) -> bool:
    parameters = getattr(type(state), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)
