"""Storing what could not be handled as dead letters, within limits."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

from ..._texts import describe
from ...errors import ConfigurationError, MessageError, MessageTooLarge, PublishRefused
from ...transports import Envelope
from ..messaging._connection import BusConnection
from ..messaging._dead_letter import dead_letter, simpler
from ..routing._router import Router
from ..routing._routes import RoutedDelivery
from ._lane import HandlingLane

__all__ = ["LONGEST_PAUSE", "SHORTEST_PAUSE", "DeadLetterLimit", "DeadLetterStore", "Pauses"]

SHORTEST_PAUSE = 0.1
"""Seconds between two attempts at what has to succeed some time, where the policy names none."""
LONGEST_PAUSE = 10.0


class Pauses:
    """The waits of one actor."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Future[bool], Router | None] = {}
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether no wait begins any more."""
        return self._stopped

    async def wait(self, seconds: float, router: Router | None = None) -> bool:
        """Wait; False when the wait was cut short, by `stop` or on behalf of the router.

        Args:
            seconds: for how long at the most.
            router: whose message it is about; None for a wait that only `stop` ends.
        """
        if self._stopped:
            return False
        loop = asyncio.get_running_loop()
        pause: asyncio.Future[bool] = loop.create_future()
        self._open[pause] = router
        timer = loop.call_later(seconds, _wake, pause, True)
        try:
            return await pause
        finally:
            timer.cancel()
            del self._open[pause]

    def interrupt(self, router: Router) -> None:
        """End the waits that are about messages of this router."""
        for pause, waited_for in tuple(self._open.items()):
            if waited_for is router:
                _wake(pause, False)

    def stop(self) -> None:
        """End all waits, now and from now on."""
        self._stopped = True
        for pause in tuple(self._open):
            _wake(pause, False)


def _wake(pause: asyncio.Future[bool], result: bool) -> None:
    if not pause.done():
        pause.set_result(result)


_TIMEOUT = 30.0
# What may be the fault of what the letter says, and not of the bus.
_OVER_ITS_CONTENT = (ConfigurationError, MessageError, MessageTooLarge, PublishRefused)


class DeadLetterStore:
    """Stores the dead letters of one actor.

    Args:
        lane: where the messages are handled.
        connection: the actor's bus.
        pauses: the actor's waits.
        first: seconds before a letter that was refused is tried again; the wait then grows.
    """

    def __init__(
        self, lane: HandlingLane, connection: BusConnection, pauses: Pauses, first: float
    ) -> None:
        self._lane = lane
        self._connection = connection
        self._pauses = pauses
        self._first = first or SHORTEST_PAUSE

    async def park(self, delivery: RoutedDelivery, error: BaseException) -> None:
        """Store a dead letter, then settle; keeps trying until it is stored or the actor stops.

        A letter that the bus refuses over what it says is tried in simpler forms, the last of
        which has nothing of the sender's in it.
        """
        letter = complete = self._letter(delivery, error)
        full: Envelope | None = None
        seconds = self._first
        has_place = is_last = False
        while True:
            has_place = has_place or self._lane.take_letter()
            if has_place:
                try:
                    await self._connection.bus.park(letter, timeout=_TIMEOUT)
                except Exception as refused:  # noqa: BLE001 (tried again, whatever it is)
                    if isinstance(refused, _OVER_ITS_CONTENT):
                        simple = simpler(letter, refused)
                        if simple is not None and letter.payload and not simple.payload:
                            full = None if isinstance(refused, MessageTooLarge) else letter
                        # If not even the last form is taken, it was not over what the letter says.
                        letter = simple or complete
                        if simple is not None:
                            continue
                    why = describe(refused)
                    self._lane.unhealthy(f"a dead letter cannot be stored: {why}")
                else:
                    if full is not None and not letter.payload:
                        await self._restore(full)
                    self._lane.parked()
                    delivery.settle()
                    return
            else:
                self._lane.troubled("the limit of dead letters is reached")
            self._connection.surroundings.stats["dead_letters.refused"] += 1
            seconds = min(seconds * 2, LONGEST_PAUSE)
            if is_last:
                break
            if not await self._pauses.wait(seconds):
                if delivery.route.router.give_back(delivery):
                    break
                is_last = True
        if has_place:
            self._lane.return_letter()

    async def _restore(self, full: Envelope) -> None:
        """Store a letter once more, with its payload, after one without was taken.

        A bus that has refused everything for a while, and stopped in the middle of the forms, takes
        it now, in the place of the other (on Kafka, behind it): no payload must be lost over that.
        """
        try:
            await self._connection.bus.park(full, timeout=_TIMEOUT)
        except Exception:  # noqa: BLE001 (so it was the payload, and what is stored is the best)
            return

    def _letter(self, delivery: RoutedDelivery, error: BaseException) -> Envelope:
        make = partial(
            dead_letter,
            actor=self._lane.source,
            attempts=delivery.attempts,
            environment=self._connection.surroundings.environment,
        )
        try:
            return make(delivery.envelope, error=error)
        except Exception as problem:  # noqa: BLE001 (no message is so strange as to block others)
            envelope = delivery.envelope
            known = Envelope(topic=envelope.topic, payload=envelope.payload, id=envelope.id)
            return make(known, error=problem)


class DeadLetterLimit:
    """Counts the dead letters of one run, for each actor by itself.

    So nobody who may only write to one actor can use up those of another.

    Args:
        limit: dead letters that one actor may store.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()
        self._stored: Counter[str] = Counter()

    @property
    def problem(self) -> str:
        """What is wrong with an actor at its limit."""
        return (
            f"it has stored {self._limit} dead letters, as many as one run may"
            " (dead_letter_limit), and stops at the next message that fails: see to them, then"
            " start the application again"
        )

    def take(self, actor: str) -> bool:
        """Claim a place for one more; False when there is none."""
        if self._taken[actor] >= self._limit:
            return False
        self._taken[actor] += 1
        return True

    def give_back(self, actor: str) -> None:
        """A place that was claimed is not needed."""
        self._taken[actor] -= 1

    def stored(self, actor: str) -> bool:
        """One was stored in its place; True when it was the last that may be."""
        self._stored[actor] += 1
        return self._stored[actor] == self._limit
