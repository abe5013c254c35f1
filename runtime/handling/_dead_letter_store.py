"""Storing messages that could not be handled as dead letters, within limits."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from ..._texts import describe, quoted
from ...errors import ConfigurationError, MessageError, MessageTooLarge, PublishRefused
from ...transports import Envelope
from ..dead_letters._writing import dead_letter, simpler
from ..messaging._bus_connection import BusConnection
from ..messaging._logged_fields import message_fields
from ..routing._routed_deliveries import RoutedDelivery
from ._failures_and_retries import LONGEST_PAUSE, SHORTEST_PAUSE, Pauses

if TYPE_CHECKING:
    from ._handling_lane import HandlingLane

__all__ = ["DeadLetterLimit", "DeadLetterStore"]

_TIMEOUT = 30.0
# Errors that may be due to the content of the letter, and not to the bus.
_OVER_ITS_CONTENT = (ConfigurationError, MessageError, MessageTooLarge, PublishRefused)


class DeadLetterStore:
    """Stores the dead letters of one actor.

    Args:
        lane: the lane that the messages are handled in.
        connection: the actor's bus.
        pauses: the actor's waits.
        first: seconds before a letter that was refused is tried again; the waits then grow.
    """

    def __init__(
        self, lane: HandlingLane, connection: BusConnection, pauses: Pauses, first: float
    ) -> None:
        self._lane = lane
        self._connection = connection
        self._pauses = pauses
        self._first = first or SHORTEST_PAUSE

    async def park(self, delivery: RoutedDelivery, error: BaseException) -> None:
        """Store a dead letter, then settle; keep trying until it is stored or the actor stops.

        A letter that the bus refuses because of its content is tried in simpler forms, the last
        of which contains nothing that the sender has attached.
        """
        letter = complete = self._letter(delivery, error)
        full: Envelope | None = None
        seconds = self._first
        has_place = is_last = False
        cause: BaseException | None = None
        while True:
            has_place = has_place or self._lane.take_letter()
            if has_place:
                try:
                    is_stored = await self._lane.park(delivery, letter, _TIMEOUT)
                except Exception as refused:  # noqa: BLE001 (tried again, whatever it is)
                    if isinstance(refused, _OVER_ITS_CONTENT):
                        simple = simpler(letter, refused, complete)
                        if simple is not None and letter.payload and not simple.payload:
                            full = None if isinstance(refused, MessageTooLarge) else letter
                            cause = refused
                        # If even the last form is refused, it was not because of the content.
                        letter = simple or complete
                        if simple is not None:
                            continue
                    why = describe(refused)
                    self._lane.unhealthy(f"a dead letter cannot be stored: {why}")
                else:
                    if full is not None and not letter.payload:
                        letter = await self._restore(delivery, full) or letter
                    if cause is not None and not letter.payload:
                        self._tell_of_payload(delivery, complete, cause)
                    if is_stored:
                        self._lane.parked()
                    self._connection.parked(letter)
                    delivery.settle()
                    return
            else:
                self._lane.troubled("it has reached its limit of dead letters")
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

    def _tell_of_payload(
        self, delivery: RoutedDelivery, complete: Envelope, cause: BaseException
    ) -> None:
        self._connection.surroundings.stats["dead_letters.without_payload"] += 1
        self._lane.log.warning(
            "the dead letter of a message on %s is stored without its payload of %d bytes, which"
            " the bus has refused: %s",
            quoted(complete.topic),
            len(complete.payload),
            describe(cause),
            about=message_fields(delivery),
        )

    async def _restore(self, delivery: RoutedDelivery, full: Envelope) -> Envelope | None:
        """Store a letter once more, with its payload, after one without it was accepted.

        If the bus refused everything for a while and recovered halfway through the simpler forms,
        it accepts the full letter now, in place of the other (on Kafka, after it): no payload must
        be lost because of that. Returns the letter if it is stored.
        """
        try:
            await self._lane.park(delivery, full, _TIMEOUT)
        except Exception:  # noqa: BLE001 (it was the payload, and the stored letter is the best)
            return None
        return full

    def _letter(self, delivery: RoutedDelivery, error: BaseException) -> Envelope:
        make = partial(
            dead_letter,
            actor=self._lane.source,
            attempts=delivery.attempts,
            environment=self._connection.surroundings.environment,
        )
        try:
            return make(delivery.envelope, error=error)
        except Exception as problem:  # noqa: BLE001 (no message, however strange, may block others)
            envelope = delivery.envelope
            known = Envelope(topic=envelope.topic, payload=envelope.payload, id=envelope.id)
            return make(known, error=problem)


class DeadLetterLimit:
    """Counts the dead letters of one run, separately for each actor.

    So a sender who may only write to one actor cannot use up the dead letters of another.

    Args:
        limit: dead letters that one actor may store.

    Attributes:
        limit: as given.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: Counter[str] = Counter()
        self._stored: Counter[str] = Counter()

    @property
    def problem(self) -> str:
        """Describe what is wrong with an actor at its limit."""
        return (
            f"it has stored {self.limit} dead letters, the most that it may in one run"
            " (dead_letter_limit), and stops at the next message that fails: replay them, or deal"
            " with them in another way and start the application again"
        )

    def take(self, actor: str) -> bool:
        """Claim a place for one more; return False if there is none."""
        if self._taken[actor] >= self.limit:
            return False
        self._taken[actor] += 1
        return True

    def give_back(self, actor: str) -> None:
        """Give back a place that was claimed and is not needed."""
        self._taken[actor] -= 1

    def stored(self, actor: str) -> bool:
        """Note that one was stored in its place; return whether it was the last one allowed."""
        self._stored[actor] += 1
        return self._stored[actor] == self.limit

    def warning(self, actor: str) -> str | None:
        """Return what to warn of when few places are left to the actor; None at other times."""
        count = self._stored[actor]
        if count >= self.limit or count != -(-self.limit * 4 // 5):
            return None
        return (
            f"it has stored {count} of the {self.limit} dead letters that it may"
            " (dead_letter_limit), and stops when it has stored all of them and one more fails:"
            " deal with them, for example with spa-dat dlq"
        )

    def gone(self, actor: str) -> bool:
        """Note that one of the actor's is not stored any more, of this run or of an earlier one.

        Returns:
            Whether it had a place, which is free now.
        """
        has_place = self._stored[actor] > 0
        if has_place:
            self._stored[actor] -= 1
            self._taken[actor] -= 1
        return has_place

    def kept(self, actor: str) -> bool:
        """Note that one that had a place is stored after all; return as `stored` does."""
        self._taken[actor] += 1
        return self.stored(actor)

    def stored_by(self, actor: str) -> int:
        """Return how many the actor has stored, without those that were handled since."""
        return self._stored[actor]
