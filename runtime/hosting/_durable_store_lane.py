"""The lanes of a durable keyed actor whose states are in a store beside the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...actors import refuse_unrun
from ...errors import OutboxFull, RemoteError
from ...transports import Delivery, Envelope, payload_too_large
from ...transports._commit_steps import STEPS_IN_STORES, Reached
from ...transports._state_store import Change, Handled, MessageIdentity, identity_of
from ..handling._argument_values import ProducerScope
from ..messaging._recording_socket import RecordingSocket, size_with
from ..messaging._socket import Socket
from ..messaging._turn import Effects, Turn, current_turn
from ._committed_messages import SentOutputs
from ._durable_lane import ALREADY_HANDLED, DurableLane
from ._durable_states import DurableStates, post_with_room
from ._key_records import KeyRecord
from ._keyed_lane import KeyedLane, KeyedSocket
from ._keyed_mailbox import KeyCell
from ._reminder_deliveries import ReminderDelivery, is_still_set

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner
    from ._keyed_host import KeyedHost

__all__ = ["DurableStoreLane"]


class DurableStoreLane(DurableLane):
    """A lane of a durable keyed actor whose bus does not keep the states.

    What a handler publishes is recorded. After it, the new state of the key, what was published,
    and that the message was handled are committed together; only then anything is sent. If the
    handler fails, or the commit does, the state is forgotten and loaded again.

    Args:
        runner: the runner of its actor.
        host: the actor's.
        number: which lane it is.
        states: loads and commits them.
    """

    commit_steps = STEPS_IN_STORES

    def __init__(
        self, runner: ActorRunner, host: KeyedHost, number: int, states: DurableStates
    ) -> None:
        super().__init__(runner, host, number)
        self._states = states
        self._reached = states.reached

    def _make_socket(self) -> Socket:
        options, runtime = self.options, self.runner.runtime
        return _StoringSocket(
            self.connection, self.source, runtime, options.codec, options.wire, lane=self
        )

    def instance_for(self, cell: KeyCell, shared: Any) -> Any:
        """As in `KeyedLane`; a state that has expired is not there any more."""
        self.kept.forget_expired(cell)
        return super().instance_for(cell, shared)

    @property
    def trouble(self) -> str | None:
        """As in `KeyedLane`; also what its states cannot be read or written for."""
        return super().trouble or self._states.trouble

    async def peek(self, key: str) -> Any:
        """As in `DurableLane`."""
        actor = self.actor_name
        found = await self._states.ask(lambda store: store.load(actor, (key,)))
        return self.kept.copy_of(found[key], key) if key in found else None

    async def _invoke_and_commit(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Any:
        cell, turn, delivery = self._at_work()
        reminder = delivery if isinstance(delivery, ReminderDelivery) else None
        message = identity_of(self.actor_name, cell.key, delivery.envelope, by_place=True)
        if message is None:
            self.stats["messages.without_id"] += 1
        key = None if cell.active else cell.key
        known = await self._states.look_up(self.actor_name, key, message)
        if key is not None:
            stored = known.stored
            cell.saved = None if stored is None else self.kept.read(stored, key)
        is_set = reminder is not None and is_still_set(cell.saved, reminder)
        if known.handled is not None and is_set:
            # It was set again, for the same time, after it had been handled.
            message = None
        elif known.handled is not None:
            await self._send_again(known.handled, turn, delivery)
            return None
        if known.reused:
            self.stats["messages.id_reused"] += 1
        if reminder is not None and not is_set:
            # It was replaced or removed while it waited for its turn.
            return None
        effects = turn.effects = Effects()
        try:
            result = await KeyedLane.invoke(self, instance, index, arguments, scope)
            if result is not None:
                refuse_unrun(result, self.handlers[index].injection.name)
            turn.refuse_failure()
            record, value = self.kept.changed(cell, effects, reminder)
            # What was posted to other buses has to be there before the message counts as handled.
            if turn.posts:
                await asyncio.gather(*turn.posts)
            number = await self.away(
                self._committed(cell, record, value, message, effects.outputs), delivery
            )
        except BaseException:
            turn.effects = None
            self._undo(cell)
            raise
        turn.effects = None
        if reminder is not None:
            reminder.removed = True
        if effects.deletes:
            cell.reset()
        elif record is not None:
            cell.saved = msgspec.structs.replace(record, revision=number)
        outputs = None
        if effects.outputs:
            outputs = self._states.new_outputs(number, effects.outputs)
        await self._send(number, delivery, turn, outputs)
        return result

    async def _send(
        self, number: int, delivery: Delivery, turn: Turn, outputs: SentOutputs | None
    ) -> None:
        """Post what was committed, if it is anything, and note when that is done with."""
        # First: if a post is refused nobody comes back to it.
        self._states.watch(number, delivery)
        if outputs is not None:
            await self._post(outputs, delivery)
        if self._reached is not None:
            turn.add(asyncio.ensure_future(self._published(outputs, self._reached)))

    async def _post(self, outputs: SentOutputs, delivery: Delivery) -> None:
        """Post what was committed; it may be more than the bus has room for at a time."""
        connection = self.connection
        try:
            outputs.post(connection.post)
        except OutboxFull:
            await self.away(post_with_room(outputs, connection.bus, connection.post), delivery)

    async def _published(self, outputs: SentOutputs | None, reached: Reached) -> None:
        """Wait until all is confirmed; only then the message may be acknowledged."""
        if outputs is not None and outputs.pending:
            await asyncio.wait(outputs.pending)
        if outputs is None or outputs.confirmed:
            await reached("published")

    async def _send_again(self, handled: Handled, turn: Turn, delivery: Delivery) -> None:
        """Send what a message has published that was handled before, as far as it is not sent."""
        self.stats["messages.known"] += 1
        outputs = None
        if handled.outputs:
            outputs = self._states.outputs_of(handled, self.connection)
            # Some of it may be on its way since the message came first, or since the start.
            for posted in outputs.pending:
                # Only one may be told of an outcome itself, which is whoever posted it.
                turn.add(asyncio.shield(posted))
        await self._send(handled.number, delivery, turn, outputs)
        if turn.request is not None:
            raise RemoteError(*ALREADY_HANDLED)

    async def _do_what_is_due(self, cell: KeyCell) -> float | None:
        """As in `DurableLane`."""
        reminders = self.host.reminders
        assert reminders is not None
        known = await self._states.look_up(self.actor_name, cell.key, None)
        failed = reminders.failed.get(cell.key, ())
        if known.stored is not None:
            record = self.kept.read(known.stored, cell.key)
            left = {
                name: reminder
                for name, reminder in record.reminders.items()
                if not any(is_still_set(record, one) and one.name == name for one in failed)
            }
            rest = msgspec.structs.replace(record, reminders=left)
            due = rest.due(self.environment.now())
            if len(left) < len(record.reminders) or not due:
                # What became a dead letter goes, and what has expired. If there is nothing of the
                # kind it is not time yet, as with another ttl than the one it was written with.
                await self._write_again(cell, rest)
            if due:
                reminders.failed.pop(cell.key, None)
                reminders.deliver(cell, due)
                return None
        reminders.failed.pop(cell.key, None)
        return 0.0

    async def _write_again(self, cell: KeyCell, record: KeyRecord) -> None:
        before = cell.saved
        # What was loaded now is what is there.
        cell.saved = record
        try:
            number = await self._committed(cell, record, record.as_bytes(), None, ())
        except BaseException:
            cell.saved = before
            raise
        self._states.done_with(number)
        if record.state is None or not cell.active:
            cell.reset()
        else:
            cell.saved = msgspec.structs.replace(record, revision=number)

    async def _committed(
        self,
        cell: KeyCell,
        record: KeyRecord | None,
        value: bytes | None,
        message: MessageIdentity | None,
        outputs: Sequence[Envelope],
    ) -> int:
        """Commit what has become of a key, and return the number of that."""
        wake = None if record is None else record.wake(self.kept.ttl)
        if self._reached is not None:
            await self._reached("handled")
        number = await self._states.commit(
            Change(
                self.actor_name,
                cell.key,
                0 if cell.saved is None else cell.saved.revision,
                value,
                message,
                tuple(outputs),
                self.environment.now(),
                wake,
            )
        )
        if self._reached is not None:
            await self._reached("committed")
        if self.host.wakeups is not None:
            self.host.wakeups.note(wake)
        return number


class _StoringSocket(RecordingSocket, KeyedSocket):
    """The socket of one lane, which records what a handler publishes until it has succeeded."""

    def _recorder(self) -> Callable[[Envelope], bool]:
        return self._record

    def _record(self, envelope: Envelope) -> bool:
        turn: Turn | None = current_turn.get()
        if turn is None or not turn.active or turn.effects is None:
            return False
        most = self._connection.bus.max_payload
        if len(envelope.payload) > most:
            raise payload_too_large(envelope, most)
        self._connection.provider.check_message(envelope)
        self._connection.recorded(envelope)
        effects = turn.effects
        effects.size = size_with(effects.size, envelope)
        effects.outputs.append(envelope)
        return True
