"""Resources: context managers that live as long as what they are registered with."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
)
from contextvars import copy_context
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..._logs import get_logger
from ..._texts import reason_of
from ...actors import is_closing
from ...errors import ActorStopped, ConfigurationError
from ..diagnostics._given_up import GivenUp
from ..diagnostics._stacks import frames_of, place

__all__ = [
    "LEAST_FOR_RESOURCES",
    "RequiredResources",
    "Resource",
    "ResourceManager",
    "SupportedContextManagers",
    "ThreadResources",
    "check_resources",
    "opens_in_thread",
]

log = get_logger("spa_dat")

LEAST_FOR_RESOURCES = 5.0
"""Seconds that closing resources may take, even if the time to stop is up."""

_GRACE = 1.0

SupportedContextManagers: TypeAlias = AbstractAsyncContextManager[Any] | AbstractContextManager[Any]
"""What can be entered: a context manager, synchronous or asynchronous."""

Resource: TypeAlias = SupportedContextManagers | Callable[[], SupportedContextManagers]
"""A context manager, or a callable that makes one."""


def _enterable(value: object) -> bool:
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
        if not _enterable(resource) and not callable(resource):
            raise ConfigurationError(
                f"{owner}: resource {name!r} is {type(resource).__name__}; give a context manager,"
                " or a callable that returns one"
            )


def opens_in_thread(resource: Resource) -> bool:
    """Whether an actor's thread can enter a resource: unless it is known to be asynchronous."""
    if _enterable(resource):
        return not hasattr(type(resource), "__aenter__")
    made_by: Any = resource
    while isinstance(made_by, functools.partial):
        made_by = made_by.func
    if isinstance(made_by, type):
        return not hasattr(made_by, "__aenter__")
    made_by = inspect.unwrap(made_by)
    return not (inspect.isasyncgenfunction(made_by) or inspect.iscoroutinefunction(made_by))


class ThreadResources:
    """Resources that one thread opens, uses and closes, such as connections bound to a thread.

    `enter` and `leave` are called in that thread.

    Args:
        owner: the actor, for errors.
        resources: the resources, by name.

    Attributes:
        values: the values entered, by name; None before all are open.
    """

    def __init__(self, owner: str, resources: Mapping[str, Resource]) -> None:
        self._owner = owner
        self._resources = resources
        self._stack = ExitStack()
        # One for both: context managers may set a context variable and reset it.
        self._context = copy_context()
        self.values: dict[str, Any] | None = None

    def enter(self) -> None:
        """Open all, in order, unless they are open.

        Raises:
            ConfigurationError: one failed to open; its error is the cause. Those that were open
                have been closed again.
        """
        if self.values is None:
            self._context.run(self._enter)

    def leave(self) -> BaseException | None:
        """Close all, in reverse order; return what that raised, which is logged."""
        try:
            self._context.run(self._stack.close)
        except BaseException as error:
            log.error("a resource of %s failed to close", self._owner, exc_info=error)
            return error
        return None

    def _enter(self) -> None:
        values = {}
        with ExitStack() as stack:
            for name, resource in self._resources.items():
                try:
                    values[name] = _enter(stack, resource)
                except BaseException as error:
                    raise _failed_to_open(self._owner, name, error) from error
            self._stack = stack.pop_all()
        self.values = values


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


class ResourceManager:
    """Opens resources and closes them again, in one task of its own.

    Context managers may be tied to the task that entered them (cancel scopes, task groups), so they
    have to be entered and left in the same one.

    Args:
        given_up: the account of what the run could not finish before its end.
        failed: called with what closing a resource raised.
        lost: called with the reason if a resource ends before `close`, which closes all of them.
    """

    def __init__(
        self,
        given_up: GivenUp,
        failed: Callable[[BaseException], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        self._given_up = given_up
        self._failed = failed
        self._lost = lost
        self._opening = "resources"
        self._thread: Opener | None = None
        self._release = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[list[dict[str, Any]]] | None = None

    @property
    def opening(self) -> str:
        """What is being opened, in words."""
        where = None if self._task is None else place(frames_of(self._task))
        if self._thread is not None:
            where = self._thread.in_thread_at
        return self._opening if where is None else f"{self._opening} ({where})"

    async def open(self, required: Sequence[RequiredResources]) -> list[dict[str, Any]]:
        """Open the resources of each owner, in order; return the values entered, by name.

        Raises:
            ConfigurationError: one failed to open; its error is the cause. Those that were open
                are being closed again, and `close` waits for that.
            ActorStopped: `close` was called in the meantime.
        """
        opened: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._opened = opened
        self._task = asyncio.create_task(self._hold(required, opened), name="spa_dat resources")
        await asyncio.wait((opened,))
        if opened.cancelled():
            raise ActorStopped("the application was stopped while its resources were opened")
        return opened.result()

    async def close(self, timeout: float) -> None:
        """Close everything, in reverse order; errors are logged.

        A resource that is still being opened is given up at once, and one that takes longer than
        ``timeout`` seconds to close is cut off. If it is still running a second later, it is
        abandoned.
        """
        task, opened = self._task, self._opened
        if task is None or opened is None:
            return
        self._release.set()
        if not opened.done():
            task.cancel()
        await asyncio.wait((task,), timeout=timeout)
        if not task.done():
            log.error("resources did not close within %g s and are cut off", timeout)
            self._given_up.add("resources did not close in time and were cut off")
            task.cancel()
            await asyncio.wait((task,), timeout=_GRACE)
        if not task.done():
            self._given_up.task("a resource", task)
        opened.cancel()

    async def _hold(
        self,
        required: Sequence[RequiredResources],
        opened: asyncio.Future[list[dict[str, Any]]],
    ) -> None:
        failure: BaseException | None = None
        is_open, is_early = False, True
        try:
            async with AsyncExitStack() as stack:
                try:
                    values = [await self._open_all(stack, *owner) for owner in required]
                except (ConfigurationError, ActorStopped) as error:
                    opened.set_exception(error)
                    opened.exception()  # the caller of `open` may have been cancelled meanwhile
                else:
                    opened.set_result(values)
                    is_open = any(owner.resources for owner in required)
                    await self._release.wait()
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            failure = error
            raise
        except BaseException as error:
            if isinstance(error, GeneratorExit) and is_closing(error):
                is_early = False
                raise
            failure = error
            log.error("a resource failed to close", exc_info=error)
            self._failed(error)
        finally:
            if is_early and not self._release.is_set():
                if is_open:
                    self._lost(_left_early("the application was using it", failure))
                elif not opened.done():
                    opened.set_exception(_left_early(f"{self._opening} was being opened", failure))
                    opened.exception()  # who wanted it may have been cancelled meanwhile
            opened.cancel()
            # Its traceback has this frame.
            del failure

    async def _open_all(
        self,
        stack: AsyncExitStack,
        owner: str,
        resources: Mapping[str, Resource],
        thread: Opener | None,
    ) -> dict[str, Any]:
        opened: dict[str, Any] = {}
        for name, resource in resources.items():
            self._opening = f"resource {name!r} of {owner}"
            try:
                opened[name] = await _open(stack, resource)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if isinstance(error, GeneratorExit) and is_closing(error):
                    raise
                task = asyncio.current_task()
                cancelled = isinstance(error, asyncio.CancelledError)
                if cancelled and task is not None and task.cancelling():
                    raise
                raise _failed_to_open(owner, name, error) from error
        if thread is not None:
            self._opening, self._thread = f"resources of {owner}", thread
            opened.update(await thread.open_resources())
            self._thread = None
        return opened


def _left_early(moment: str, error: BaseException | None) -> ConfigurationError:
    why = "it was closed" if error is None else reason_of(error)
    if isinstance(error, asyncio.CancelledError):
        why = "the task that holds it was cancelled, perhaps by a task group or timeout around it"
    result = ConfigurationError(
        f"a resource ended while {moment}, which closed the others too: {why}"
    )
    result.__cause__ = error
    return result


def _failed_to_open(owner: str, name: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"{owner}: resource {name!r} failed to open: {reason_of(error)}")


async def _open(stack: AsyncExitStack, resource: Resource) -> Any:
    manager = _manager(resource)
    if hasattr(type(manager), "__aenter__"):
        return await stack.enter_async_context(manager)
    return stack.enter_context(manager)


def _enter(stack: ExitStack, resource: Resource) -> Any:
    manager = _manager(resource)
    if hasattr(type(manager), "__aenter__"):
        raise TypeError(
            f"the callable returned {type(manager).__name__}, which is asynchronous, in the thread"
            " of the actor's def handlers; register it with app.resource, which opens it on the"
            " event loop"
        )
    return stack.enter_context(manager)


def _manager(resource: Resource) -> Any:
    manager: Any = resource if _enterable(resource) else resource()  # type: ignore[operator]
    if not _enterable(manager):
        raise TypeError(f"the callable returned {type(manager).__name__}, not a context manager")
    return manager
