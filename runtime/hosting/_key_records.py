"""What a store keeps of a durable key: its state, and what has to be known to read it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from ..._texts import quoted
from ...errors import StateUnreadable
from ...transports._state_store import StoredKey

__all__ = ["NO_REMINDERS", "KeyRecord", "Reminder", "read_record"]

_FORMAT = 1


class Reminder(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A reminder of a key.

    Attributes:
        due: when, in seconds since 1970.
        payload: for its handler.
        content_type: of the payload.
    """

    due: float
    payload: bytes
    content_type: str | None = None


NO_REMINDERS: Mapping[str, Reminder] = MappingProxyType({})
"""Those of most keys."""


class KeyRecord(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a key.

    Attributes:
        state: as JSON; None if it has none.
        version: of its class.
        changed: when it was changed last, in seconds since 1970.
        revision: of the store; 0 if it has nothing of the key.
        reminders: by name.
        handled: what the messages that were handled last are known by, the latest at the end.
    """

    state: bytes | None
    version: int
    changed: float
    revision: int = 0
    reminders: Mapping[str, Reminder] = NO_REMINDERS
    handled: tuple[bytes, ...] = ()

    def is_set(self, name: str, due: float) -> bool:
        """Return whether it has a reminder of this name that is due at this time."""
        reminder = self.reminders.get(name)
        return reminder is not None and reminder.due == due

    def due(self, now: float) -> list[tuple[str, Reminder]]:
        """Return the reminders whose time has come, with their names, the earliest first.

        Args:
            now: the wall time, in seconds since 1970.
        """
        due = [named for named in self.reminders.items() if named[1].due <= now]
        return sorted(due, key=lambda named: named[1].due)

    def as_bytes(self) -> bytes:
        """Return it as it is stored: a line of JSON about the state, and the state.

        It is empty if nothing is left to be kept.
        """
        if self.state is None and not self.reminders and not self.handled:
            return b""
        header = msgspec.json.encode(
            _Header(_FORMAT, self.version, self.changed, dict(self.reminders), self.handled)
        )
        return b"%b\n%b" % (header, self.state or b"")

    def expires(self, ttl: float | None) -> float | None:
        """Return when all but its reminders expires, in seconds since 1970; None if it never does.

        Args:
            ttl: seconds from its last change; None for ever.
        """
        if ttl is None or (self.state is None and not self.handled):
            return None
        return self.changed + ttl

    def wake(self, ttl: float | None) -> float | None:
        """Return when something is to be done with the key; as `expires`."""
        times = [reminder.due for reminder in self.reminders.values()]
        expires = self.expires(ttl)
        if expires is not None:
            times.append(expires)
        return min(times, default=None)


class _Header(msgspec.Struct, gc=False, omit_defaults=True):
    format: int
    version: int
    changed: float
    reminders: dict[str, Reminder] = {}
    handled: tuple[bytes, ...] = ()


_FORMAT_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_HEADER_DECODER = msgspec.json.Decoder(_Header)


def read_record(stored: StoredKey, key: str) -> KeyRecord:
    """Return what is stored of a key.

    Raises:
        StateUnreadable: it was written by a newer version of this package, or is damaged.
    """
    header, _, state = stored.value.partition(b"\n")
    try:
        written = msgspec.json.decode(_FORMAT_DECODER.decode(header)["format"], type=int)
        if written > _FORMAT:
            raise StateUnreadable(
                f"what is kept of key {quoted(key, 200)} was written by a newer version of this"
                f" package (format {written}, and {_FORMAT} is the newest that is known here): use"
                " that version"
            )
        read = _HEADER_DECODER.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        raise StateUnreadable(
            f"what is kept of key {quoted(key, 200)} is damaged ({error}), and is left as it is:"
            " restore it, or delete the key in the store"
        ) from error
    return KeyRecord(
        state or None,
        read.version,
        read.changed,
        stored.revision,
        read.reminders or NO_REMINDERS,
        read.handled,
    )
