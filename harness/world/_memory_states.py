"""The states of keys in memory, for tests on virtual time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...transports._state_store import (
    MOST_HANDLED,
    SECONDS_HANDLED,
    Change,
    Handled,
    MessageIdentity,
    StateStore,
    StoredKey,
)

__all__ = ["MemoryStates"]


class MemoryStates(StateStore):
    """Keeps states for as long as the object is there: longer than the application that uses it."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], StoredKey] = {}
        self._wakes: dict[tuple[str, str], float] = {}
        self._handled: dict[int, tuple[MessageIdentity | None, float]] = {}
        self._numbers: dict[bytes, dict[bytes, int]] = {}
        self._unsent: dict[int, Handled] = {}
        self._unacknowledged: dict[int, None] = {}
        self._last = 0

    def load(self, actor: str, keys: Iterable[str]) -> Mapping[str, StoredKey]:
        """See `StateStore.load`."""
        states = self._states
        return {key: states[actor, key] for key in keys if (actor, key) in states}

    def find(self, message: MessageIdentity) -> Handled | bool:
        """See `StateStore.find`."""
        known = self._numbers.get(message.name)
        if not known:
            return False
        number = known.get(message.digest)
        if number is None:
            return True
        return self._unsent.get(number) or Handled(number, "", self._handled[number][1], ())

    def commit(
        self, changes: Sequence[Change], sent: Sequence[int], acknowledged: Sequence[int] = ()
    ) -> Sequence[int | None]:
        """See `StateStore.commit`."""
        numbers: list[int | None] = []
        for change in changes:
            where = change.actor, change.key
            stored = self._states.get(where)
            if change.value is not None and change.revision != (stored.revision if stored else 0):
                numbers.append(None)
                continue
            message = change.message
            if message is not None and isinstance(self.find(message), Handled):
                numbers.append(None)
                continue
            self._last += 1
            if change.value:
                self._states[where] = StoredKey(change.value, self._last)
                self._wakes.pop(where, None)
                if change.wake is not None:
                    self._wakes[where] = change.wake
            elif change.value is not None:
                self._states.pop(where, None)
                self._wakes.pop(where, None)
            self._handled[self._last] = (message, change.at)
            if message is not None:
                self._numbers.setdefault(message.name, {})[message.digest] = self._last
            self._unacknowledged[self._last] = None
            if change.outputs:
                self._unsent[self._last] = Handled(
                    self._last, change.actor, change.at, change.outputs
                )
            numbers.append(self._last)
        for number in (*sent, *acknowledged):
            self._unsent.pop(number, None)
        for number in acknowledged:
            self._unacknowledged.pop(number, None)
        return numbers

    def first_due(self, actor: str, most: int) -> Sequence[tuple[str, float]]:
        """See `StateStore.first_due`."""
        due = [(when, key) for (name, key), when in self._wakes.items() if name == actor]
        return [(key, when) for when, key in sorted(due)[:most]]

    def unsent(self) -> Sequence[Handled]:
        """See `StateStore.unsent`."""
        return list(self._unsent.values())

    def trim(self, now: float) -> None:
        """See `StateStore.trim`."""
        newest = next((at for _, at in reversed(self._handled.values())), now)
        for number, (message, at) in tuple(self._handled.items()):
            old = at < min(now, newest) - SECONDS_HANDLED or number <= self._last - MOST_HANDLED
            if old and number not in self._unacknowledged:
                del self._handled[number]
                if message is not None:
                    del self._numbers[message.name][message.digest]

    def close(self) -> None:
        """See `StateStore.close`."""
