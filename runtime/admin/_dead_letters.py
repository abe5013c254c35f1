"""The dead letters of a running application: looked at, replayed and discarded through it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

from ..._logs import get_logger
from ..._texts import describe, escaped, quoted
from ...errors import ConfigurationError, SpaDatError
from ...transports import DeliveryState, KafkaConfig, Replayed, named_topic
from ...transports._units import Outcome, OwnDelivery, Unit
from ..hosting._actor_runner import ActorRunner
from ..messaging._bus_connection import BusConnection
from ..messaging._letter_index import LetterIndex
from ..messaging._letter_reader import stored_letters
from ..messaging._stored_letter import LetterFilter, StoredLetter
from ..routing._routed_deliveries import Route

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun

__all__ = ["DeadLetters", "LetterOutcome", "LetterResult", "TooManyReaders"]

log = get_logger("spa_dat")

T = TypeVar("T")

_TIMEOUT = 30.0
# Seconds. Readers see what a transaction has removed a moment after it was committed.
_LOOK_AGAIN = 0.05
_ALL = LetterFilter()
_LONGEST_WHY = 500
# Reading letters may take a connection of its own.
_MOST_READERS = 4
# Of one actor: their messages are in memory until it is done with them, which may take any time.
_MOST_REPLAYED = 4
_BUSY = "it is being replayed or discarded already"

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


class TooManyReaders(SpaDatError):
    """Dead letters are being looked for too often at a time."""


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


class DeadLetters:
    """The dead letters of a running application, on all of its buses.

    Everything is to be called in the application's event loop. What was begun goes on if the caller
    no longer waits for it.

    Args:
        run: the run of the application.
    """

    def __init__(self, run: AdministeredRun) -> None:
        self._run = run
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._readers = 0
        # By their topics, which may have several names: from before a letter is read, because what
        # was read of it may be out of date when somebody else is done with it.
        self._claimed: dict[str, None] = {}
        self._replayed: Counter[str] = Counter()
        # Of clusters, by their addresses.
        self._indexes: dict[str, LetterIndex] = {}

    async def stored(
        self, wanted: LetterFilter = _ALL, *, bus: str | None = None
    ) -> AsyncGenerator[tuple[str, StoredLetter], None]:
        """Yield dead letters, each with the address of its bus; few are in memory at a time.

        Args:
            wanted: which of them.
            bus: the address of the only bus to look at; None for all.

        Raises:
            ConfigurationError: the application does not use this bus.
            TransportError: a bus cannot be used.
            TooManyReaders: ask again later.
        """
        with self._reading():
            for connection in self._connections(bus):
                found = stored_letters(connection.provider, self._owner)
                async with contextlib.aclosing(found):
                    async for letter in found:
                        if wanted.wants(letter):
                            yield connection.provider.address, letter

    async def show(
        self, name: str, *, bus: str | None = None, since: float | None = None
    ) -> tuple[str, StoredLetter] | None:
        """Return the dead letter of this name and the address of its bus; None without one.

        Args:
            name: of the letter.
            bus: as for `stored`.
            since: when it was stored, if that is known: nothing older is read.

        Raises:
            ConfigurationError, TransportError, TooManyReaders: as for `stored`.
        """
        with self._reading():
            for connection in self._connections(bus):
                found = await self._found(connection, name, since)
                if found is not None:
                    return connection.provider.address, found
        return None

    async def _found(
        self, connection: BusConnection, name: str, since: float | None
    ) -> StoredLetter | None:
        config, address = connection.provider.config, connection.provider.address
        if isinstance(config, KafkaConfig):
            if address not in self._indexes:
                self._indexes[address] = LetterIndex(config, self._owner)
            return await self._indexes[address].find(name, since)
        letters = stored_letters(connection.provider, self._owner, name)
        async with contextlib.aclosing(letters):
            async for letter in letters:
                return letter
        return None

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
            bus: as for `show`, like ``since``.
            since: as for `show`.
            anyway: also if the actor of another instance failed, and each instance gets the
                messages.

        Raises:
            ConfigurationError, TransportError, TooManyReaders: as for `stored`.
        """
        return await self._alone(name, self._replay(name, bus, since, anyway=anyway))

    async def discard(self, name: str, *, bus: str | None = None) -> LetterOutcome:
        """Remove a dead letter, or what a stranger has put in its place.

        Args:
            name: of the letter.
            bus: as for `stored`.

        Raises:
            ConfigurationError, TransportError, TooManyReaders: as for `stored`, or the bus refuses
                it.
        """
        return await self._alone(name, self._discard(name, bus))

    async def close(self) -> None:
        """Give up what is under way; the letters stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for index in self._indexes.values():
            index.forget()

    @property
    def _owner(self) -> str:
        return self._run.settings.identity.application

    def _connections(self, bus: str | None) -> list[BusConnection]:
        found = [
            connection
            for connection in self._run.connections
            if bus in (None, connection.provider.address)
        ]
        if bus is not None and not found:
            raise ConfigurationError(f"the application uses no bus {quoted(bus, 200)}")
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        if self._readers >= _MOST_READERS:
            raise TooManyReaders(
                f"{self._readers} clients are looking for dead letters already: try again later"
            )
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    async def _alone(self, name: str, work: Coroutine[Any, Any, LetterOutcome]) -> LetterOutcome:
        """Do what goes on if the caller no longer waits, unless the letter is being dealt with."""
        topic = named_topic(self._owner, name)
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
        found = await self.show(name, bus=bus)
        if found is None:
            return LetterOutcome(name, "missing")
        address, letter = found
        (connection,) = self._connections(address)
        await connection.bus.unpark(letter.envelope, timeout=_TIMEOUT)
        if letter.actor:
            self._run.letter_gone(letter.actor)
        return LetterOutcome(name, "discarded")

    async def _replay(
        self, name: str, bus: str | None, since: float | None, *, anyway: bool
    ) -> LetterOutcome:
        found = await self.show(name, bus=bus, since=since)
        if found is None:
            return LetterOutcome(name, "missing")
        address, letter = found
        (connection,) = self._connections(address)
        place = self._place(connection, letter, anyway=anyway)
        if isinstance(place, str):
            return LetterOutcome(name, "refused", place)
        runner, route = place
        units = None if runner.keyed is None else runner.keyed.units
        unit = None
        if units is not None:
            assert letter.message is not None
            number = letter.message.partition
            unit = units.numbered(number)
            if unit is None:
                why = (
                    f"its message comes from partition {number}, which this instance does not have:"
                    " the one that has it can handle the message"
                )
                return LetterOutcome(name, "refused", why, elsewhere=True)
            if not unit.ready:
                why = f"the states of partition {number} are not there yet: try again"
                return LetterOutcome(name, "refused", why)
            # Who had the partition before may have handled it: only now that can be seen.
            if await self.show(name, bus=bus, since=since) is None:
                return LetterOutcome(name, "missing")
        self._replayed[runner.name] += 1
        try:
            return await self._replay_to(connection, letter, runner, route, unit)
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

    async def _replay_to(
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
        self._run.letter_gone(letter.actor)
        connection.replaying[identifier] = None
        try:
            route.router.put_in(delivery, route)
            settled = await delivery.ended
        finally:
            error = connection.replaying.pop(identifier)
        if not settled:
            why = "the actor has stopped, or its mailbox was full"
            if unit is not None:
                why = (
                    "the actor has stopped, its partition was taken away, or the transaction has"
                    " failed, in which it was to be handled: try again if the letter is still there"
                )
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
                    found = await self._found(connection, letter.name, letter.stored)
                    if found is None:
                        return
                    await asyncio.sleep(_LOOK_AGAIN)
