"""The dead letters of a running application: looked at, replayed and discarded through it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ...transports import named_topic
from ._dead_letter_replay import DeadLetterReplay, LetterOutcome
from ._dead_letter_search import DeadLetterSearch

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun

__all__ = ["DeadLetters"]

_TIMEOUT = 30.0
_BUSY = "it is being replayed or discarded already"


class DeadLetters:
    """The dead letters of a running application, on all of its buses.

    Everything is to be called in the application's event loop. What was begun goes on if the caller
    no longer waits for it.

    Args:
        run: the run of the application.

    Attributes:
        search: looks at them.
    """

    def __init__(self, run: AdministeredRun) -> None:
        self.search = DeadLetterSearch(run)
        self._run = run
        self._replays = DeadLetterReplay(run, self.search)
        self._tasks: dict[asyncio.Task[Any], None] = {}
        # By their topics, which may have several names: from before a letter is read, because what
        # was read of it may be out of date when somebody else is done with it.
        self._claimed: dict[str, None] = {}

    async def replay(
        self,
        name: str,
        *,
        bus: str | None = None,
        since: float | None = None,
        anyway: bool = False,
    ) -> LetterOutcome:
        """Let the actor that failed handle the message once more; remove the letter if it succeeds.

        Nobody else gets the message. It takes its place behind those that wait for the actor, and
        is tried as often as any other. If it fails again, the letter is stored in its old place.

        Args:
            name: of the letter.
            bus: as for `DeadLetterSearch.show`, like ``since``.
            since: as for `DeadLetterSearch.show`.
            anyway: also if the actor of another instance failed, and each instance gets the
                messages.

        Raises:
            ConfigurationError, TransportError, TooManyReaders: as for `DeadLetterSearch.stored`.
        """
        return await self._alone(
            name, self._replays.replay(name, bus=bus, since=since, anyway=anyway)
        )

    async def discard(self, name: str, *, bus: str | None = None) -> LetterOutcome:
        """Remove a dead letter, or what a stranger has put in its place.

        Args:
            name: of the letter.
            bus: as for `DeadLetterSearch.stored`.

        Raises:
            ConfigurationError, TransportError, TooManyReaders: as for `DeadLetterSearch.stored`, or
                the bus refuses it.
        """
        return await self._alone(name, self._discard(name, bus))

    async def close(self) -> None:
        """Give up what is under way; the letters stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.search.close()

    async def _alone(self, name: str, work: Coroutine[Any, Any, LetterOutcome]) -> LetterOutcome:
        """Do what goes on if the caller no longer waits, unless the letter is being dealt with."""
        topic = named_topic(self._run.settings.identity.application, name)
        if topic in self._claimed:
            work.close()
            return LetterOutcome(name, "refused", _BUSY)
        self._claimed[topic] = None
        task = self._run.own_task(work)
        self._tasks[task] = None

        def done(task: asyncio.Task[Any]) -> None:
            del self._tasks[task]
            del self._claimed[topic]

        task.add_done_callback(done)
        return await asyncio.shield(task)

    async def _discard(self, name: str, bus: str | None) -> LetterOutcome:
        found = await self.search.show(name, bus=bus)
        if found is None:
            return LetterOutcome(name, "missing")
        address, letter = found
        (connection,) = self.search.connections(address)
        await connection.bus.unpark(letter.envelope, timeout=_TIMEOUT)
        if letter.actor:
            self._run.letter_gone(letter.actor)
        return LetterOutcome(name, "discarded")
