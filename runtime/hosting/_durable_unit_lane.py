"""The lanes of a durable keyed actor whose states move with the partitions of its topic."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from ..._texts import quoted
from ...actors import refuse_unrun
from ...errors import NotHere, StateNotWritten
from ...transports import Delivery, Envelope
from ...transports._state_store import StoredKey, identity_of
from ...transports._units import Outcome, OwnDelivery, Unit
from ..handling._argument_values import ProducerScope
from ..messaging._recording_socket import RecordingSocket
from ..messaging._socket import Socket
from ..messaging._turn import Effects, Turn
from ..options._retry_policy import Reject
from ..registration._specs import Handler
from ._durable_lane import ALREADY_HANDLED, DurableLane
from ._key_records import KeyRecord
from ._keyed_lane import KeyedLane, KeyedSocket
from ._keyed_mailbox import KeyCell
from ._outcome_lane import OutcomeLane, note, recorded, refuse_again
from ._reminder_deliveries import ReminderDelivery, is_still_set

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner
    from ._key_units import KeyUnits
    from ._keyed_host import KeyedHost

__all__ = ["DurableUnitLane", "WrongKey"]


class WrongKey(Reject):
    """A record has another key than its address, so that its partition may be another one, too."""


class DurableUnitLane(OutcomeLane, DurableLane):
    """A lane of a durable keyed actor on a bus with transactions.

    The new state of a key is committed with the acknowledgement of the message that has changed
    it, and with what was published if the actor has ``exactly_once``. If the handler fails, or the
    commit does, the state is forgotten and loaded again.

    Args:
        runner: the runner of its actor.
        host: the actor's.
        number: which lane it is.
        units: those that the actor's keys belong to.
    """

    def __init__(self, runner: ActorRunner, host: KeyedHost, number: int, units: KeyUnits) -> None:
        super().__init__(runner, host, number)
        self._units = units
        self._expires = self.kept.ttl is not None

    def _make_socket(self) -> Socket:
        options, runtime = self.options, self.runner.runtime
        return _KeyedOutcomeSocket(
            self.connection, self.source, runtime, options.codec, options.wire, lane=self
        )

    def alias(self) -> str:
        """As in `KeyedLane`: the partition, all of whose replies wait for the same commits."""
        item = self.item
        if not isinstance(item, Delivery):
            return super().alias()
        return f"{self.actor_name}/{self.chain_part(item.envelope, '')}"

    def chain_part(self, envelope: Envelope, key: str) -> str:
        """As in `KeyedLane`."""
        return f"p{envelope.partition}"

    def instance_for(self, cell: KeyCell, shared: Any) -> Any:
        """As in `KeyedLane`; forgets a state first that has expired, or is of another unit."""
        if cell.active and cell.unit is not self.item.unit:
            cell.reset()
        elif self._expires:
            self.kept.forget_expired(cell)
        return super().instance_for(cell, shared)

    def _unit_of(self, cell: KeyCell, delivery: Delivery) -> Unit:
        """Return the unit of a message; raise Reject if it cannot be handled as a part of one."""
        unit = delivery.unit
        if unit is None:
            raise Reject(
                "a message of a durable key has to come from its partition, with which its state is"
                " committed: publish it on its topic"
            )
        refuse_again(unit, delivery)
        if delivery.envelope.key != cell.key:
            self._refuse_key(cell, delivery.envelope)
        return unit

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """As in `Lane`, with what has to be done around every call; none that may answer."""
        return self._noting(KeyedLane.direct(self, instance))

    async def _invoke_and_commit(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Any:
        cell, _, delivery = self._at_work()
        if not cell.active:
            unit = self._unit_of(cell, delivery)
            try:
                stored = await unit.load(cell.key)
            except StateNotWritten:
                if unit.over and isinstance(delivery, OwnDelivery):
                    # Whoever has the unit next finds it again.
                    return None
                raise
            cell.saved = None
            if stored is not None:
                cell.saved = self.kept.read(StoredKey(stored, 0), cell.key)
            cell.unit = unit
        invoke = partial(KeyedLane.invoke, self, instance, index, arguments, scope)
        return await self._invoke_and_note(index, invoke)

    async def _note(
        self, handler: Handler, call: Callable[..., Awaitable[Any]], /, **arguments: Any
    ) -> None:
        """As in `OutcomeLane`."""
        cell, turn, delivery = self._at_work()
        unit = self._unit_of(cell, delivery)
        fired = message = None
        if handler.reminders and isinstance(delivery, ReminderDelivery):
            fired = delivery
            if not is_still_set(cell.saved, fired):
                # It was replaced or removed while it waited for its turn.
                return
        elif self.kept.dedupe is not None:
            message = self._known_by(cell, delivery.envelope)
            if message is not None and cell.saved is not None and message in cell.saved.handled:
                self._pass_over(unit, delivery, turn)
                return
        effects, outcome = turn.effects, turn.outcome = Effects(), Outcome()
        outcome.dropped = (partial(self._undo, cell),)
        try:
            result = await call(**arguments)
            if result is not None:
                refuse_unrun(result, handler.injection.name)
            turn.refuse_failure()
            record, value = self.kept.changed(cell, effects, fired, message)
            # What is not in the transaction has to be there before the message counts as handled.
            if turn.posts:
                await self.away(_all(turn.posts), delivery)
        except BaseException:
            turn.effects = None
            self._undo(cell)
            raise
        turn.effects = None
        if value is not None:
            self._keep(outcome, cell.key, record, value)
        if effects.deletes:
            cell.reset()
        elif record is not None:
            cell.saved = record
        note(unit, delivery, outcome, hurry=turn.request is not None)

    def _known_by(self, cell: KeyCell, envelope: Envelope) -> bytes | None:
        """Return what a message is known by that its sender may publish once more."""
        identity = identity_of(self.actor_name, cell.key, envelope)
        if identity is None:
            self.stats["messages.without_id"] += 1
            return None
        # Half of each, as there may be many: it is known by both together.
        return identity.name[:8] + identity.digest[:8]

    def _pass_over(self, unit: Unit, delivery: Delivery, turn: Turn) -> None:
        """Do nothing for a message that was handled before; answer it if it is a request."""
        self.stats["messages.known"] += 1
        if turn.request is not None:
            # The reply that it had may wait for the same commit, and has to go first.
            turn.outcome = Outcome()
            self.make_replies().send_error(turn, self.source, *ALREADY_HANDLED)
            unit.note(delivery, turn.outcome, hurry=True)
        elif isinstance(delivery, OwnDelivery):
            delivery.complete(Outcome())

    async def park(self, delivery: Delivery, letter: Envelope, timeout: float) -> bool:
        """As in `OutcomeLane`; a reminder that becomes a dead letter is set no more."""
        is_stored = await super().park(delivery, letter, timeout)
        if isinstance(delivery, ReminderDelivery):
            unit = delivery.unit
            assert unit is not None
            outcome = delivery.outcome or Outcome()
            delivery.outcome = await self._without(delivery, unit, outcome)
            if delivery.outcome is None:
                outcome.lose()
        return is_stored

    async def _without(
        self, reminder: ReminderDelivery, unit: Unit, outcome: Outcome
    ) -> Outcome | None:
        """Add to an outcome that a reminder is not set any more."""
        if unit.over:
            # Whoever has the unit next finds it again.
            return None
        key = str(reminder.envelope.key)
        stored = await unit.load(key)
        record = None if stored is None else self.kept.read(StoredKey(stored, 0), key)
        if record is not None and is_still_set(record, reminder):
            left = {name: one for name, one in record.reminders.items() if name != reminder.name}
            record = msgspec.structs.replace(record, reminders=left)
            self._keep(outcome, key, record, record.as_bytes())
            cell = self.host.mailbox.cells.get(key)
            if cell is not None:
                self._undo(cell)
        return outcome

    def _keep(self, outcome: Outcome, key: str, record: KeyRecord | None, value: bytes) -> None:
        """Make what is to be kept of a key part of an outcome."""
        # Nothing at all stands for a key that is deleted.
        outcome.key, outcome.value = key, value or None
        if record is not None and (self._expires or record.reminders):
            outcome.wake = record.wake(self.kept.ttl)
            assert self.host.wakeups is not None
            outcome.committed += (partial(self.host.wakeups.note, outcome.wake),)

    async def _do_what_is_due(self, cell: KeyCell) -> float | None:
        """As in `DurableLane`."""
        unit = self._units.of_due(cell.key)
        stored = None if unit is None else await unit.load(cell.key)
        if unit is not None and stored is not None:
            record = self.kept.read(StoredKey(stored, 0), cell.key)
            due = record.due(self.environment.now())
            if due and not unit.over:
                assert self.host.reminders is not None
                self.host.reminders.deliver(cell, due, unit)
                return None
            # It is deleted if it has expired. If not, it is not time yet, as with another ttl than
            # the one that it was written with.
            self._write_again(cell, unit, record)
        return 0.0

    def _write_again(self, cell: KeyCell, unit: Unit, record: KeyRecord) -> None:
        outcome = Outcome()
        self._keep(outcome, cell.key, record, record.as_bytes())
        unit.add(outcome, cell.key)
        if cell.unit is not unit or record.state is None or not cell.active:
            cell.reset()
        else:
            cell.saved = record

    async def peek(self, key: str) -> Any:
        """As in `DurableLane`, of the partitions that this instance has."""
        for unit in tuple(self._units):
            stored = await unit.peek(key)
            if stored is not None:
                return self.kept.copy_of(StoredKey(stored, 0), key)
        raise NotHere(
            f"key {quoted(key, 200)} of actor {self.actor_name!r} has no state in the partitions"
            " that this instance has: send a request to the key, which goes to whoever has it"
        )

    def _refuse_key(self, cell: KeyCell, envelope: Envelope) -> NoReturn:
        raise WrongKey(
            f"the key of the record is {quoted(envelope.key)}, and that of its address is"
            f" {quoted(cell.key, 200)}: the key decides on the partition, so whoever publishes"
            " it has to give it, as KafkaTopic(key=...) does"
        )


async def _all(posts: list[asyncio.Future[None]]) -> None:
    await asyncio.gather(*posts)


class _KeyedOutcomeSocket(RecordingSocket, KeyedSocket):
    """The socket of a lane, which records what a handler publishes until it is committed."""

    def _recorder(self) -> Callable[[Envelope], bool]:
        return partial(recorded, self._connection, outputs=self._lane.options.exactly_once)
