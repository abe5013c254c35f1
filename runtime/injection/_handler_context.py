"""The context of a handler: the actor's state, timers and more, until the handler is given up."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from ..._environment import Environment
from ...errors import ActorStopped, ConfigurationError
from ..options._option_checks import is_number

__all__ = ["Context", "ContextOwner", "Timer"]


class Timer(Protocol):
    """A call scheduled with `Context.later`."""

    def cancel(self) -> None:
        """Cancel the call; does nothing if it has been made already."""


class ContextOwner(Protocol):
    """What a context uses of the actor that it belongs to."""

    state: Any

    @property
    def application(self) -> str: ...

    @property
    def actor_name(self) -> str: ...

    @property
    def instance(self) -> str: ...

    @property
    def environment(self) -> Environment: ...

    @property
    def users_log(self) -> logging.LoggerAdapter[logging.Logger]: ...

    @property
    def stats(self) -> Counter[str]: ...

    @property
    def generation(self) -> object: ...

    def later(self, delay: float, function: Callable[..., Any], args: tuple[Any, ...]) -> Timer: ...

    def delete(self) -> None: ...

    def request_stop(self) -> None: ...


class Context:
    """Everything that a handler can find out and do besides using the bus; it is injected.

    Attributes:
        attempt: the number of this attempt at the message, from 1.
        deadline: loop time at which the attempt is cut off; None for never.
    """

    __slots__ = ("_generation", "_owner", "attempt", "deadline")

    def __init__(
        self, owner: ContextOwner, *, attempt: int = 1, deadline: float | None = None
    ) -> None:
        self._owner = owner
        self._generation = owner.generation
        self.attempt = attempt
        self.deadline = deadline

    @property
    def app(self) -> str:
        """Name of the application."""
        return self._owner.application

    @property
    def actor(self) -> str:
        """Name of the actor."""
        return self._owner.actor_name

    @property
    def instance(self) -> str:
        """Which instance of the application this is."""
        return self._owner.instance

    @property
    def state(self) -> Any:
        """The actor's state. Assign to replace it; it is not rolled back when a handler fails.

        Raises:
            ActorStopped: the handler was given up at its deadline, or the actor has restarted
                since, so the state belongs to a newer instance.
        """
        self._check_generation()
        return self._owner.state

    @state.setter
    def state(self, value: Any) -> None:
        self._check_generation()
        self._owner.state = value

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records name the application and the actor."""
        return self._owner.users_log

    @property
    def stats(self) -> Counter[str]:
        """The application's counters by dotted name; add your own."""
        return self._owner.stats

    @property
    def random(self) -> random.Random:
        """The application's source of randomness; reproducible in tests."""
        return self._owner.environment.random

    def now(self) -> float:
        """Return the wall time in seconds since 1970 (UTC)."""
        return self._owner.environment.now()

    def later(self, delay: float, function: Callable[..., Any], *args: Any) -> Timer:
        """Run ``function(*args)`` in this actor, between two messages, after ``delay`` seconds.

        The function may be ``async``. A plain one scheduled by a ``def`` handler runs in the
        actor's thread; any other runs on the event loop and must not block. If it raises, that is
        logged and counted, not retried. Calls still scheduled when the actor stops, or when a new
        instance of its class takes over, are dropped.

        Raises:
            ConfigurationError: the delay is not a number of seconds, 0 or more, or the function
                cannot be called.
            ActorStopped: as for `state`.
        """
        self._check_generation()
        if not is_number(delay) or not 0 <= delay < float("inf"):
            raise ConfigurationError(f"context.later({delay!r}, ...): give seconds, 0 or more")
        return self._owner.later(delay, function, args)

    def delete(self) -> None:
        """Delete the state of this durable key when the message has been handled.

        What the handler changes in the state is dropped then; if it fails, nothing is deleted. The
        next message of the key begins with a new state. Messages that were handled stay known.

        Raises:
            ConfigurationError: the actor is not durable, or no message of the key is being handled.
            ActorStopped: as for `state`.
        """
        self._check_generation()
        self._owner.delete()

    def stop(self) -> None:
        """Stop this actor after the current message. The rest of the application keeps running."""
        self._check_generation()
        self._owner.request_stop()

    def _check_generation(self) -> None:
        if self._generation is not self._owner.generation:
            raise ActorStopped(
                f"actor {self._owner.actor_name!r} has restarted, and this context is from before:"
                " its handler was given up at its deadline, or the actor had to be restarted"
            )
