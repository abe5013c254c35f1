"""Reading what a store keeps of durable keys, in all versions that there have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..._texts import describe, quoted
from ...errors import DecodeError, StateUnreadable
from ...transports._state_store import StoredKey
from ..options._actor_options import ActorOptions
from ..payloads._codec import JSON, Decoder
from ..payloads._type_readers import type_name
from ._key_records import KeyRecord, read_record

__all__ = ["StateReader"]


class StateReader:
    """Reads what is stored of the keys of one actor.

    Args:
        options: the actor's.
        now: the wall clock.
    """

    def __init__(self, options: ActorOptions, now: Callable[[], float]) -> None:
        self._kept = options.kept
        self._type = options.state
        self._decoder: Decoder[Any] = Decoder.of(options.state)
        self._now = now

    def record(self, stored: StoredKey, key: str) -> KeyRecord:
        """Return what is stored of a key, without a state that has expired.

        Raises:
            StateUnreadable: it is damaged, or of a newer version.
        """
        record = read_record(stored, key)
        if record.version > self._kept.version:
            raise StateUnreadable(
                f"what is kept of key {quoted(key, 200)} was written by version {record.version} of"
                f" its class, and this program has version {self._kept.version}: use the program"
                " that has written it, or a newer one"
            )
        if self.has_expired(record):
            return msgspec.structs.replace(record, state=None, handled=())
        return record

    def has_expired(self, record: KeyRecord | None) -> bool:
        """Return whether the state of a key has expired."""
        expires = None if record is None else record.expires(self._kept.ttl)
        return expires is not None and expires <= self._now()

    def state(self, record: KeyRecord, key: str) -> Any:
        """Return the state of a key in the present version.

        Raises:
            StateUnreadable: it does not fit its class, or could not be upgraded.
        """
        kept, state = self._kept, record.state
        assert state is not None
        try:
            if record.version < kept.version and kept.upgrade:
                plain = msgspec.json.decode(state)
                state = msgspec.json.encode(kept.upgraded(plain, record.version))
            return self._decoder.decode(state, JSON)
        except Exception as error:
            why = error.__cause__ if isinstance(error, DecodeError) and error.__cause__ else error
            raise StateUnreadable(
                f"what is kept of key {quoted(key, 200)}, written by version {record.version} of"
                f" its class, does not fit {type_name(self._type)}, version {kept.version},"
                f" and is left as it is: {describe(why)}; give new fields defaults, or"
                " Durable(version=, upgrade=) what turns one version into the next"
            ) from error

    def check(self, state: bytes) -> None:
        """Raise DecodeError if a state could not be read again."""
        self._decoder.decode(state, JSON)
