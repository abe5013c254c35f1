"""Pausing, resuming and restarting single actors while an application is running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

from ..._logs import get_logger
from ..._texts import describe, quoted
from ...errors import ConfigurationError
from ..hosting._actor_runner import ActorRunner

__all__ = ["Action", "ActorControls", "UnknownActor"]

log = get_logger("spa_dat")

Action: TypeAlias = Literal["pause", "resume", "restart"]

_MOST_NAMED = 20


class UnknownActor(ConfigurationError):
    """There is no actor of that name."""


class ActorControls:
    """What can be done to single actors of one run, by name.

    Args:
        application: its name.
        actors: returns its actors.
        not_now: returns why nothing can be done now, in words; None if it can.

    Attributes:
        paused: the names of those that were paused.
    """

    def __init__(
        self,
        application: str,
        actors: Callable[[], Sequence[ActorRunner]],
        not_now: Callable[[], str | None],
    ) -> None:
        self._application = application
        self._actors = actors
        self._not_now = not_now
        self._loop = asyncio.get_running_loop()
        self.paused: dict[str, None] = {}

    def do(self, action: Action, name: str) -> None:
        """Do it; works from any thread, and then happens as soon as the event loop gets to it.

        Raises:
            UnknownActor: there is no such actor.
            ConfigurationError: it cannot be done now, or not with this actor.
        """
        actor = self._found(action, name)
        if asyncio._get_running_loop() is self._loop:
            self._do(action, actor)
        else:
            self._loop.call_soon_threadsafe(partial(self._do_later, action, actor))

    def _found(self, action: Action, name: str) -> ActorRunner:
        actors = self._actors()
        actor = next((one for one in actors if one.name == name), None)
        if actor is None:
            names = [repr(one.name) for one in actors[:_MOST_NAMED]]
            more = len(actors) - len(names)
            raise UnknownActor(
                f"cannot {action} {quoted(name)}: application {self._application!r} has no such"
                f" actor; there are: {', '.join(names) or 'none'}"
                + (f" and {more} more" if more else "")
            )
        why = self._not_now() or _why_not(action, actor)
        if why is not None:
            raise ConfigurationError(f"cannot {action} actor {name!r}: {why}")
        return actor

    def _do_later(self, action: Action, actor: ActorRunner) -> None:
        try:
            self._do(action, actor)
        except ConfigurationError as error:
            log.warning("%s: %s", self._application, describe(error))

    def _do(self, action: Action, actor: ActorRunner) -> None:
        name = actor.name
        if action == "pause":
            self.paused[name] = None
            for lane in actor.lanes:
                lane.pause()
            text = "is paused: it takes nothing more out of its mailbox"
        elif action == "resume":
            self.paused.pop(name, None)
            for lane in actor.lanes:
                lane.resume()
            text = "goes on"
        else:
            begun = [lane.begin_afresh() for lane in actor.lanes]
            if not any(begun):
                raise ConfigurationError(
                    f"cannot restart actor {name!r}: it is starting, stopping, or was given up"
                )
            text = "restarts after its current message"
        log.warning("%s: actor %r %s", self._application, name, text)


def _why_not(action: Action, actor: ActorRunner) -> str | None:
    if actor.ended:
        return "it has ended"
    if actor.options.placement != "process":
        return None
    if action == "restart":
        return "it runs in child processes, which only a restart of the application replaces"
    if actor.spec.kind == "producer":
        return "a producer in a child process cannot be paused"
    return None
