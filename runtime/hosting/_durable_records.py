"""What a durable keyed actor keeps of its keys: how it is read, and what messages make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..._limited_log import LimitedLog
from ..._texts import quoted
from ...errors import DecodeError, EncodeError, StateUnreadable
from ...transports._state_store import StoredKey
from ..messaging._turn import Effects
from ..options._retry_policy import Reject
from ..payloads._codec import JSON, encode_as
from ..payloads._type_readers import type_name
from ._key_records import NO_REMINDERS, KeyRecord, Reminder
from ._keyed_mailbox import KeyCell
from ._reminder_deliveries import ReminderDelivery
from ._state_reader import StateReader

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner
    from ._keyed_host import KeyedHost

__all__ = ["DurableRecords"]

_MOST_STATE = 900_000
_LARGE_STATE = 100_000
_MOST_REMINDERS = 1_000


class DurableRecords:
    """Reads what is kept of the keys of one actor, and makes what is to be kept next.

    Args:
        runner: the runner of the actor.
        host: the actor's.
        log: where large states are told.

    Attributes:
        ttl: seconds for which a state is kept that does not change; None for ever.
        dedupe: how many messages are known again; None for none, or where it is not done here.
    """

    def __init__(self, runner: ActorRunner, host: KeyedHost, log: LimitedLog) -> None:
        self._runner = runner
        self._host = host
        self._log = log
        self._now = runner.connection.surroundings.environment.now
        self._reader = StateReader(runner.options, self._now)
        self._type = runner.options.state
        self._version = runner.options.kept.version
        self.ttl = runner.options.kept.ttl
        # Elsewhere the store knows them.
        moves = runner.options.are_kept_by(runner.connection.provider)
        self.dedupe = runner.options.kept.dedupe if moves else None

    def read(self, stored: StoredKey, key: str) -> KeyRecord:
        """Return what is stored of a key; stop the actor, and raise, if it cannot be read."""
        try:
            return self._reader.record(stored, key)
        except StateUnreadable as error:
            self._give_up(error)
            raise

    def state_in(self, record: KeyRecord, key: str) -> Any:
        """Return the state of a key that is to be changed; as `read` if it cannot be read."""
        try:
            return self._reader.state(record, key)
        except StateUnreadable as error:
            self._give_up(error)
            raise

    def _give_up(self, error: StateUnreadable) -> None:
        # What it cannot read must neither be overwritten nor be skipped.
        self._runner.fail(error)

    def copy_of(self, stored: StoredKey, key: str) -> Any:
        """Return a state to look at; None if there is none.

        Raises:
            StateUnreadable: it cannot be read.
        """
        record = self._reader.record(stored, key)
        return None if record.state is None else self._reader.state(record, key)

    def forget_expired(self, cell: KeyCell) -> None:
        """Forget a state that has expired: it is not there any more."""
        if self._reader.has_expired(cell.saved):
            cell.reset()

    def changed(
        self,
        cell: KeyCell,
        effects: Effects,
        fired: ReminderDelivery | None,
        message: bytes | None = None,
    ) -> tuple[KeyRecord | None, bytes | None]:
        """Return what is to be kept of a key, and that as bytes; None for what is kept already.

        Args:
            cell: the key.
            effects: of its message.
            fired: the message, if it is a reminder.
            message: what the message is known by; None if it is not to be known again.
        """
        saved = cell.saved
        reminders: Mapping[str, Reminder] = NO_REMINDERS
        if effects.reminders or (saved is not None and saved.reminders):
            reminders = _reminders(saved, effects, fired)
        state = None if effects.deletes else self._encoded(cell)
        handled = self._handled(saved, message) if self.dedupe is not None else ()
        if state is None and not reminders and not handled:
            return None, None if saved is None else b""
        changed, version = self._now(), self._version
        if saved is not None and state == saved.state:
            changed = saved.changed
            same = version == saved.version and reminders == saved.reminders
            if same and handled == saved.handled:
                return None, None
        if reminders:
            _check_number(cell, reminders)
        record = KeyRecord(state, version, changed, reminders=reminders, handled=handled)
        return record, record.as_bytes()

    def _handled(self, saved: KeyRecord | None, message: bytes | None) -> tuple[bytes, ...]:
        """Return what the last messages of a key are known by, with one more."""
        assert self.dedupe is not None
        known = () if saved is None else saved.handled
        return (known if message is None else (*known, message))[-self.dedupe :]

    def _encoded(self, cell: KeyCell) -> bytes:
        """Return the state of a key as it is to be kept; raise if it cannot be."""
        try:
            state = encode_as(self._host.state_of(cell), JSON)
        except EncodeError as error:
            raise EncodeError(f"{_named(cell)} is not kept: {error}") from error
        if cell.saved is not None and state == cell.saved.state:
            return state
        size = len(state)
        if size > _MOST_STATE:
            raise Reject(
                f"the state of key {quoted(cell.key, 200)} has {size} bytes, and {_MOST_STATE} are"
                " allowed: keep less in it, or use more keys"
            )
        try:
            # What cannot be read again would stop the actor for good.
            self._reader.check(state)
        except DecodeError as error:
            wanted, why = type_name(self._type), error.__cause__ or error
            raise EncodeError(
                f"{_named(cell)} is not kept, because it is no {wanted}: {why}"
            ) from error
        if size > _LARGE_STATE:
            self._log.warning(
                "the state of key %s has %d bytes, which are written for each message",
                quoted(cell.key, 200),
                size,
            )
        return state


def _reminders(
    saved: KeyRecord | None, effects: Effects, fired: ReminderDelivery | None
) -> Mapping[str, Reminder]:
    """Return the reminders of a key after a message; the arguments are those of `changed`."""
    reminders = {} if saved is None or effects.deletes else dict(saved.reminders)
    if fired is not None:
        reminders.pop(fired.name, None)
    for name, reminder in effects.reminders.items():
        if reminder is None:
            reminders.pop(name, None)
        elif fired is not None and (name, reminder[0]) == (fired.name, fired.due):
            # Another time, so that it is another message.
            due, payload, content_type = reminder
            later = math.nextafter(due, math.inf)
            reminders[name] = Reminder(later, payload, content_type)
        else:
            reminders[name] = Reminder(*reminder)
    return reminders


def _named(cell: KeyCell) -> str:
    return f"the state that was made of key {quoted(cell.key, 200)}"


def _check_number(cell: KeyCell, reminders: Mapping[str, Reminder]) -> None:
    """Raise Reject for more reminders of a key than are allowed, or larger ones."""
    size = sum(len(one.payload) for one in reminders.values())
    if size > _LARGE_STATE or len(reminders) > _MOST_REMINDERS:
        raise Reject(
            f"key {quoted(cell.key, 200)} has {len(reminders)} reminders with {size} bytes of"
            f" payload, and {_MOST_REMINDERS} with {_LARGE_STATE} bytes are allowed: keep in the"
            " state what they are about"
        )
