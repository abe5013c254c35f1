"""Resources of the thread of an actor's ``def`` handlers: opened, used and closed in it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any

from ...errors import ConfigurationError
from ..options._resources import LeftAlone, Resource, failed_to_open, manager_of

__all__ = ["ThreadResources"]


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
        self._failures: list[BaseException] = []
        self._entered: list[LeftAlone] = []
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

    @property
    def open(self) -> list[LeftAlone]:
        """Those that are open, in order. They are left from the last one to the first."""
        return [each for each in self._entered if not each.is_left]

    def leave(self) -> BaseException | None:
        """Close all, in reverse order; return the first error, if any. Each is logged.

        A SystemExit, which says how the program is to end, comes before all others.
        """
        try:
            self._context.run(self._stack.close)
        except BaseException as error:  # noqa: BLE001 (it goes to the one who asked)
            return error
        exits = (error for error in self._failures if isinstance(error, SystemExit))
        return next(exits, self._failures[0] if self._failures else None)

    def _enter(self) -> None:
        values = {}
        failure: ConfigurationError | None = None
        with ExitStack() as stack:
            for name, resource in self._resources.items():
                try:
                    left = LeftAlone(
                        _synchronous(resource), self._owner, name, self._failures.append
                    )
                    values[name] = stack.enter_context(left)
                    self._entered.append(left)
                except BaseException as error:  # noqa: BLE001 (raised below)
                    failure = failed_to_open(self._owner, name, error)
                    failure.__cause__ = error
                    break
            else:
                self._stack = stack.pop_all()
        # Not in the block: those that were open would get it, and might suppress it.
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame
        self.values = values


def _synchronous(resource: Resource) -> Any:
    manager = manager_of(resource)
    if hasattr(type(manager), "__aenter__"):
        raise TypeError(
            f"the callable returned {type(manager).__name__}, which is asynchronous, in the thread"
            " of the actor's def handlers; register it with app.resource, which opens it on the"
            " event loop"
        )
    return manager
