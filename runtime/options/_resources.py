"""Resources: context managers that live as long as what they are registered with; their check."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
)
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..._logs import get_logger
from ..._texts import reason_of
from ...actors import is_closing
from ...errors import ConfigurationError

__all__ = [
    "LEAST_FOR_RESOURCES",
    "LeftAlone",
    "Opener",
    "RequiredResources",
    "Resource",
    "SupportedContextManagers",
    "check_resources",
    "failed_to_open",
    "manager_of",
    "opens_in_thread",
]

log = get_logger("spa_dat")

LEAST_FOR_RESOURCES = 5.0
"""Seconds that closing resources may take, even if the time to stop is up."""

_ONCE = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)

SupportedContextManagers: TypeAlias = AbstractAsyncContextManager[Any] | AbstractContextManager[Any]
"""What can be entered: a context manager, synchronous or asynchronous."""

Resource: TypeAlias = SupportedContextManagers | Callable[[], SupportedContextManagers]
"""A context manager, or a callable that makes one."""


def is_enterable(value: object) -> bool:
    """Return whether a value is a context manager, synchronous or asynchronous."""
    # Looked up on the type: a class with __enter__ is a factory, not a context manager.
    kind = type(value)
    return hasattr(kind, "__aenter__") or hasattr(kind, "__enter__")


def check_resources(owner: str, resources: Mapping[str, Resource]) -> None:
    """Raise ConfigurationError for a resource that can neither be entered nor called."""
    if not isinstance(resources, Mapping):
        raise ConfigurationError(
            f"{owner}: ressources={resources!r:.200}: give a dict, from the name of a parameter to"
            " a context manager, or to a callable that returns one"
        )
    for name, resource in resources.items():
        check_name_of_resource(owner, name)
        if not is_enterable(resource) and not callable(resource):
            raise ConfigurationError(
                f"{owner}: resource {name!r} is {type(resource).__name__}; give a context manager,"
                " or a callable that returns one"
            )
        made_by = inspect.isgeneratorfunction(resource), inspect.isasyncgenfunction(resource)
        if any(made_by):
            decorator = "contextmanager" if made_by[0] else "asynccontextmanager"
            raise ConfigurationError(
                f"{owner}: resource {name!r} is a function with `yield`, and no context manager:"
                f" decorate it with @contextlib.{decorator}"
            )


def check_name_of_resource(owner: str, name: object) -> None:
    """Raise ConfigurationError for a name that no parameter can have."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigurationError(
            f"{owner}: resource name {name!r} cannot be a parameter name; use an identifier"
        )


def opens_in_thread(resource: Resource) -> bool:
    """Return whether a thread can enter a resource: unless it is known to be asynchronous."""
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
    if isinstance(resource, _ONCE) and not hasattr(resource, "args"):
        raise TypeError(
            "it was entered before, and what @contextmanager makes can be entered only once: give"
            " the function itself, without calling it"
        )
    manager: Any = resource if is_enterable(resource) else resource()  # type: ignore[operator]
    if not is_enterable(manager):
        if inspect.iscoroutine(manager):
            manager.close()
        what = type(manager).__name__
        raise TypeError(
            f"the callable returned {what}, not a context manager: give a function that yields it,"
            " decorated with @contextlib.contextmanager or @contextlib.asynccontextmanager"
        )
    return manager


class LeftAlone:
    """A resource that, when all are left because all is over, is left by itself.

    What its ``__exit__`` raises is then logged and goes no further: resources know nothing of each
    other, and those that are left after it have not failed. What ends resources while they are in
    use passes through all of them as with nested ``with`` statements, which task groups rely on.

    Args:
        manager: synchronous.
        owner: who needs it, in words.
        name: of the resource.
        failed: called with what leaving it raised.

    Attributes:
        is_left: whether leaving it has come to an end.
    """

    def __init__(
        self, manager: Any, owner: str, name: str, failed: Callable[[BaseException], object]
    ) -> None:
        self._manager = manager
        self._owner = owner
        self._name = name
        self._failed = failed
        self._stack = ExitStack()
        self.is_left = False

    def __enter__(self) -> Any:
        return self._stack.enter_context(self._manager)

    def __exit__(self, *exception: Any) -> bool | None:
        try:
            return self._stack.__exit__(*exception)
        except BaseException as error:
            if not self._contains(exception[1], error):
                raise
            return None
        finally:
            self.is_left = True

    def __str__(self) -> str:
        return f"resource {self._name!r} of {self._owner}"

    def _contains(self, before: BaseException | None, error: BaseException) -> bool:
        """Log an error on leaving the resource if it goes no further; return whether it does not.

        Args:
            before: what the resource was left with.
            error: what leaving it has raised.
        """
        if before is not None or isinstance(error, KeyboardInterrupt):
            return False
        if isinstance(error, GeneratorExit) and is_closing(error):
            return False
        log.error("%s failed to close", self, exc_info=error)
        self._failed(error)
        return True
