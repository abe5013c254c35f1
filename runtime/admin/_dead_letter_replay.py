"""Replaying a dead letter: its message goes back into the mailbox of the actor that failed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from ..._logs import get_logger
from ..._texts import describe, escaped, quoted
from ...errors import SpaDatError
from ...transports import DeliveryState, Replayed
from ...transports._units import Outcome, OwnDelivery, Unit
from ..dead_letters._stored_letter import StoredLetter
from ..hosting._actor_runner import ActorRunner
from ..messaging._bus_connection import BusConnection
from ..routing._routed_deliveries import Route
from ._dead_letter_search import DeadLetterSearch

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun

__all__ = ["DeadLetterReplay", "LetterOutcome", "LetterResult"]

log = get_logger("spa_dat")

_TIMEOUT = 30.0
# Seconds. Readers see what a transaction has removed a moment after it was committed.
_LOOK_AGAIN = 0.05
_LONGEST_WHY = 500
# How long a failed transaction is tried again, and states that are read are waited for.
_PATIENCE = 15.0
# Likewise for partitions. An instance may have none for good, if there are more of them.
_PATIENCE_FOR_PARTITIONS = 5.0
_TRY_AGAIN = 0.25
# Of one actor: their messages are in memory until it is done with them, which may take any time.
_MOST_REPLAYED = 4

LetterResult: TypeAlias = Literal["handled", "failed", "refused", "missing", "discarded"]


@dataclass(frozen=True, slots=True)
class LetterOutcome:
    """What became of a dead letter.

    Attributes:
        letter: its name.
        outcome: ``handled`` by its actor, and gone; ``failed`` again, and stored in its old place;
            ``refused``, and still there; ``missing``, if there is none of that name;
            ``discarded``, and gone.
        why: in words; empty if there is nothing to say.
        elsewhere: whether another instance may be able to.
    """

    letter: str
    outcome: LetterResult
    why: str = ""
    elsewhere: bool = False


class _ReplayedDelivery(OwnDelivery):
    """The receipt of a message from its dead letter, which is still on the bus.

    If it is handled as a part of a unit, the letter is removed with what it has come to.

    Attributes:
        remove: makes that a part of an outcome.
        ended: whether it is settled, and committed if it belongs to a unit, once that is known.
    """

    remove: Callable[[Outcome], None] | None = None
    ended: asyncio.Future[bool] | None = None

    def settle(self) -> None:
        if self.outcome is not None and self.state is not DeliveryState.SETTLED:
            self.outcome.committed += (partial(self._end, settled=True),)
        super().settle()
        if self.outcome is None:
            # As a part of a unit nothing has come of it.
            self._end(settled=self.tracker is None)

    def complete(self, outcome: Outcome) -> None:
        super().complete(outcome)
        if self.remove is not None:
            self.remove(outcome)

    def lost(self) -> None:
        self._end(settled=False)

    def withdraw(self) -> None:
        super().withdraw()
        self._end(settled=False)

    def _end(self, *, settled: bool) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(settled)


class _NotNow(Exception):
    """A letter cannot be replayed at the moment.

    Attributes:
        handed: whether its message was handed to the actor, so that it may have been handled.
        elsewhere: as in `LetterOutcome`.
    """

    def __init__(self, why: str, *, handed: bool = False, elsewhere: bool = False) -> None:
        super().__init__(why)
        self.handed = handed
        self.elsewhere = elsewhere


class DeadLetterReplay:
    """Replays dead letters of a running application.

    Args:
        run: the run of the application.
        search: finds its dead letters.
    """

    def __init__(self, run: AdministeredRun, search: DeadLetterSearch) -> None:
        self._run = run
        self._search = search
        # By actor, those under way.
        self._replayed: Counter[str] = Counter()

    async def replay(
        self, name: str, *, bus: str | None, since: float | None, anyway: bool
    ) -> LetterOutcome:
        """See `DeadLetters.replay`."""
        loop, handed = asyncio.get_running_loop(), False
        began = loop.time()
        while True:
            try:
                done = await self._replay(name, bus, since, anyway=anyway)
            except _NotNow as passing:
                handed |= passing.handed
                patience = _PATIENCE_FOR_PARTITIONS if passing.elsewhere else _PATIENCE
                if loop.time() - began >= patience:
                    return LetterOutcome(name, "refused", str(passing), passing.elsewhere)
            else:
                if handed and done.outcome == "missing":
                    # It was committed after all, which could not be known before.
                    return LetterOutcome(name, "handled")
                return done
            await asyncio.sleep(_TRY_AGAIN)

    async def _replay(
        self, name: str, bus: str | None, since: float | None, *, anyway: bool
    ) -> LetterOutcome:
        """Replay it once; raise _NotNow if it has to be tried again."""
        found = await self._search.show(name, bus=bus, since=since)
        if found is None:
            return LetterOutcome(name, "missing")
        address, letter = found
        (connection,) = self._search.connections(address)
        place = self._place(connection, letter, anyway=anyway)
        if isinstance(place, str):
            return LetterOutcome(name, "refused", place)
        runner, route = place
        units = None if runner.keyed is None else runner.keyed.units
        unit = None
        if units is not None:
            assert letter.message is not None
            number = letter.message.partition
            if number is None:
                return LetterOutcome(name, "refused", _without_partition(letter))
            unit = units.numbered(number)
            if unit is None:
                why = (
                    f"its message comes from partition {number}, which this instance does not have:"
                    " the one that has it can handle the message"
                )
                if units.stay:
                    return LetterOutcome(name, "refused", why, elsewhere=True)
                raise _NotNow(why, elsewhere=True)
            if not unit.ready:
                raise _NotNow(
                    f"the states of partition {number} are still being read: try again when"
                    " /readyz says that the application is ready"
                )
            # Who had the partition before may have handled it: only now that can be seen.
            if await self._search.show(name, bus=bus, since=since) is None:
                return LetterOutcome(name, "missing")
        self._replayed[runner.name] += 1
        try:
            return await self._hand_to(connection, letter, runner, route, unit)
        finally:
            self._replayed[runner.name] -= 1

    def _place(
        self, connection: BusConnection, letter: StoredLetter, *, anyway: bool
    ) -> tuple[ActorRunner, Route] | str:
        """Return where a letter's message goes, or why it goes nowhere."""
        identity = self._run.settings.identity
        if letter.message is None or letter.obstacle is not None:
            return letter.obstacle or "it cannot be read"
        if letter.application != identity.application:
            return f"it belongs to application {letter.application!r}"
        runner = self._run.working(letter.actor)
        if runner is None or runner.connection is not connection:
            return f"no actor {letter.actor!r} is running on this bus"
        if (why := self._cannot_take(runner)) is not None:
            return why
        shared = runner.options.deliver or connection.provider.default_deliver
        if letter.instance != identity.instance and shared != "share" and not anyway:
            return (
                f"actor {letter.actor!r} of instance {letter.instance!r} has failed, and each"
                " instance gets the messages itself"
            )
        for route in self._run.routes_to(runner):
            if route.filter.matches(letter.topic):
                return runner, route
        return f"actor {letter.actor!r} has no filter for topic {quoted(letter.topic, 200)}"

    def _cannot_take(self, runner: ActorRunner) -> str | None:
        """Return why nothing is replayed to an actor now; None if it can be."""
        name = runner.name
        if all(mailbox.closed for mailbox in runner.mailboxes):
            return f"actor {name!r} could not start again, and stays stopped"
        if name in self._run.controls.paused:
            return f"actor {name!r} is paused: resume it first"
        if self._replayed[name] >= _MOST_REPLAYED:
            return (
                f"actor {name!r} is still busy with {_MOST_REPLAYED} others being replayed: try"
                " again when it is"
            )
        return None

    async def _hand_to(
        self,
        connection: BusConnection,
        letter: StoredLetter,
        runner: ActorRunner,
        route: Route,
        unit: Unit | None,
    ) -> LetterOutcome:
        assert letter.message is not None
        message = connection.bus.opened(letter.message, runner.options.wire)
        identifier = letter.envelope.id or ""
        message = msgspec.structs.replace(
            message, replayed=Replayed(identifier, letter.replays + 1)
        )
        # Its epoch is before all others: the bus does not have it, and does not send it again.
        delivery = _ReplayedDelivery(message, epoch=-1, token=0)
        if unit is not None:
            # It is taken back with what its unit has handed out.
            delivery.tracker, delivery.epoch = unit, unit.epoch
            delivery.remove = partial(connection.bus.add_removal, letter=letter.envelope)
        delivery.ended = asyncio.get_running_loop().create_future()
        # If it fails again, it takes the same place.
        had_place = self._run.letter_gone(letter.actor)
        connection.replaying[identifier] = None
        try:
            route.router.put_in(delivery, route)
            settled = await delivery.ended
        finally:
            error = connection.replaying.pop(identifier)
        if not settled:
            if had_place:
                self._run.letter_kept(letter.actor)
            if unit is not None:
                raise _NotNow(
                    "the actor has stopped, its partition was taken away, or the transaction has"
                    " failed, in which it was to be handled: try again if the letter is still"
                    " there",
                    handed=True,
                )
            why = "the actor has stopped, or its mailbox was full"
            return LetterOutcome(letter.name, "refused", why)
        if error is not None:
            return LetterOutcome(letter.name, "failed", escaped(error, _LONGEST_WHY))
        log.info(
            "%s: the message of dead letter %s was handled by actor %r",
            self._run.system.name,
            letter.name,
            letter.actor,
        )
        if unit is not None:
            await self._gone(connection, letter)
            return LetterOutcome(letter.name, "handled")
        try:
            await connection.bus.unpark(letter.envelope, timeout=_TIMEOUT)
        except Exception as refused:  # noqa: BLE001 (whatever it is, the message was handled)
            why = f"its dead letter is still there, and has to be discarded: {describe(refused)}"
            return LetterOutcome(letter.name, "handled", escaped(why, _LONGEST_WHY))
        return LetterOutcome(letter.name, "handled")

    async def _gone(self, connection: BusConnection, letter: StoredLetter) -> None:
        """Wait until everybody sees that a letter is removed, so that nobody replays it again."""
        with contextlib.suppress(TimeoutError, SpaDatError):
            async with asyncio.timeout(_TIMEOUT):
                while True:
                    found = await self._search.find_on(connection, letter.name, letter.stored)
                    if found is None:
                        return
                    await asyncio.sleep(_LOOK_AGAIN)


def _without_partition(letter: StoredLetter) -> str:
    return (
        "it does not say which partition its message comes from, as other programs and early"
        " versions leave that out, so nobody knows whose state it belongs to: publish the message"
        f" again on {quoted(letter.topic, 200)} with its key, and discard this dead letter"
    )
