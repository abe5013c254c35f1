"""Resources: context managers that live as long as what they are registered with; their check."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
)
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..._texts import reason_of
from ...errors import ConfigurationError

__all__ = [
    "LEAST_FOR_RESOURCES",
    "Opener",
    "RequiredResources",
    "Resource",
    "SupportedContextManagers",
    "check_resources",
    "failed_to_open",
    "manager_of",
    "opens_in_thread",
]

LEAST_FOR_RESOURCES = 5.0
"""Seconds that closing resources may take, even if the time to stop is up."""

SupportedContextManagers: TypeAlias = AbstractAsyncContextManager[Any] | AbstractContextManager[Any]
"""What can be entered: a context manager, synchronous or asynchronous."""

Resource: TypeAlias = SupportedContextManagers | Callable[[], SupportedContextManagers]
"""A context manager, or a callable that makes one."""


def is_enterable(value: object) -> bool:
    """Whether a value is a context manager, synchronous or asynchronous."""
    # Looked up on the type: a class with __enter__ is a factory, not a context manager.
    kind = type(value)
    return hasattr(kind, "__aenter__") or hasattr(kind, "__enter__")


def check_resources(owner: str, resources: Mapping[str, Resource]) -> None:
    """Raise ConfigurationError for a resource that can neither be entered nor called."""
    for name, resource in resources.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(
                f"{owner}: resource name {name!r} cannot be a parameter name; use an identifier"
            )
        if not is_enterable(resource) and not callable(resource):
            raise ConfigurationError(
                f"{owner}: resource {name!r} is {type(resource).__name__}; give a context manager,"
                " or a callable that returns one"
            )


def opens_in_thread(resource: Resource) -> bool:
    """Whether an actor's thread can enter a resource: unless it is known to be asynchronous."""
    if is_enterable(resource):
        return not hasattr(type(resource), "__aenter__")
    made_by: Any = resource
    while isinstance(made_by, functools.partial):
        made_by = made_by.func
    if isinstance(made_by, type):
        return not hasattr(made_by, "__aenter__")
    made_by = inspect.unwrap(made_by)
    return not (inspect.isasyncgenfunction(made_by) or inspect.iscoroutinefunction(made_by))


class Opener(Protocol):
    """Opens resources in an actor's thread."""

    @property
    def in_thread_at(self) -> str | None:
        """What the thread is running, and at which line; None if it is idle."""

    def open_resources(self) -> Awaitable[Mapping[str, Any]]:
        """Open them; raises ConfigurationError, or ActorStopped if the thread is given up."""


class RequiredResources(NamedTuple):
    """The resources that an actor or an application needs open.

    Attributes:
        owner: who needs them, in words.
        resources: those to be opened on the event loop.
        thread: opens the others after them; None if there are no others.
    """

    owner: str
    resources: Mapping[str, Resource]
    thread: Opener | None = None


def failed_to_open(owner: str, name: str, error: BaseException) -> ConfigurationError:
    """Return the error that says so."""
    return ConfigurationError(f"{owner}: resource {name!r} failed to open: {reason_of(error)}")


def manager_of(resource: Resource) -> Any:
    """Return the context manager to enter, which a callable makes."""
    manager: Any = resource if is_enterable(resource) else resource()  # type: ignore[operator]
    if not is_enterable(manager):
        raise TypeError(f"the callable returned {type(manager).__name__}, not a context manager")
    return manager
