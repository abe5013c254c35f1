"""The context of a handler: the actor's state, timers and more, until the handler is given up."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from ..._environment import Environment
from ..._texts import quoted
from ...errors import ActorStopped, ConfigurationError
from ..options._option_checks import is_number

__all__ = ["Context", "ContextOwner", "Timer"]

# Seconds: some 30,000 years.
_FOREVER = 1e12


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

    def remind(self, name: str, payload: object, due: float) -> None: ...

    def forget_reminder(self, name: str) -> None: ...

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
        self.attempt: int = attempt
        self.deadline: float | None = deadline

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
            ActorStopped: as for `state`; also when the actor has ended.
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

    def remind(
        self,
        name: str,
        payload: object = None,
        *,
        at: float | datetime | None = None,
        after: float | None = None,
    ) -> None:
        """Have this durable key reminded at a time: a handler marked with `on_reminder` is called.

        It is set when the message has been handled, with the same commit, and survives the program.
        One of the same name is replaced. It comes as a message with an id of its own, in turn with
        the key's other messages, never early, and once if it is overdue; retries and dead letters
        are those of any message.

        Args:
            name: which handler, and which reminder of the key.
            payload: for the handler, sent as by `Socket.publish`.
            at: when: seconds since 1970, or a datetime with its zone. One in the past is due at
                once.
            after: seconds from now, 0 or more, in place of ``at``.

        Raises:
            ConfigurationError: not exactly one of ``at`` and ``after`` is given, or one that cannot
                be; no handler has that name; or as for `delete`.
            EncodeError: the payload cannot be encoded.
            ActorStopped: as for `state`.
        """
        self._check_generation()
        self._owner.remind(name, payload, _due(name, at, after, self.now))

    def forget_reminder(self, name: str) -> None:
        """Remove a reminder of this durable key, if there is one, as `remind` sets it.

        Raises:
            ConfigurationError, ActorStopped: as for `remind`.
        """
        self._check_generation()
        self._owner.forget_reminder(name)

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


def _due(
    name: object, at: float | datetime | None, after: float | None, now: Callable[[], float]
) -> float:
    """Return when a reminder is due, in seconds since 1970."""
    call = f"context.remind({quoted(name)})"
    if (at is None) is (after is None):
        raise ConfigurationError(f"{call}: give either at= or after=")
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ConfigurationError(
                f"{call}: at={at} has no zone: give one, as in datetime.now(UTC), or seconds since"
                " 1970"
            )
        return at.timestamp()
    if after is not None:
        if not is_number(after) or not 0 <= after < _FOREVER:
            raise ConfigurationError(f"{call}: after={quoted(after)}: give seconds, 0 or more")
        return now() + after
    assert at is not None
    if not is_number(at) or not abs(at) < _FOREVER:
        raise ConfigurationError(
            f"{call}: at={quoted(at)}: give seconds since 1970, or a datetime with its zone"
        )
    return float(at)
