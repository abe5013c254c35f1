"""How the states of durable keys are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..._texts import quoted
from ..._unknown_names import suggests_keywords
from ...errors import ConfigurationError
from ._option_checks import LARGEST_WINDOW, MOST_HOT, check_count, check_seconds

if TYPE_CHECKING:
    from ...transports._state_store import StateStore

__all__ = ["Durable"]

_MOST_VERSIONS = LARGEST_WINDOW
# They are written again with each message of their key.
_MOST_KNOWN = 1_000


@suggests_keywords
@dataclass(frozen=True, kw_only=True)
class Durable:
    """How the states of durable keys are kept: what ``durable=`` gets instead of True.

    Attributes:
        version: of the class of the state, from 1. It is stored with each state. A state of a
            higher version stops the actor, and is left as it is.
        upgrade: functions by version: each gets a state of that version as it is in JSON (a dict,
            if the class has fields) and returns it as the next version has it. A version without
            one needs no change: fields that were added have defaults.
        ttl: seconds after its last change after which a state is deleted; None for never. From then
            on it is not seen any more.
        store: opens what keeps the states, in place of a file: a callable that gets the name of the
            application and its instance (``fleet.0``), by which it knows whose they are, and
            returns a `spa_dat.states.StateStore`. It is called at each start, in the thread that
            uses the store. All durable actors of an application give the same one. On Kafka states
            are in it instead of a topic, so that there can be only one instance, and it does not go
            with ``exactly_once``.
        dedupe: of how many messages that were handled last each key knows the ids on Kafka, from 1
            to 1,000: one of them that its sender publishes once more is not handled. None for none.
            It has no effect on MQTT and memory, where they are known anyway.
        hot: as the option of the actor: the most keys whose states are in memory.
        idle: as the option of the actor: seconds without a message after which a state is in memory
            no longer.

    Raises:
        ConfigurationError: when the actor is registered, for a value that cannot be.
    """

    version: int = 1
    upgrade: Mapping[int, Callable[[Any], Any]] = field(default_factory=dict)
    ttl: float | None = None
    store: Callable[[str], StateStore] | None = None
    dedupe: int | None = None
    hot: int | None = None
    idle: float | None = None

    def check(self, owner: str) -> None:
        """Raise ConfigurationError for an impossible value."""
        check_count(owner, "Durable(version)", self.version, _MOST_VERSIONS)
        if not isinstance(self.upgrade, Mapping):
            raise ConfigurationError(
                f"{owner}: Durable(upgrade={quoted(self.upgrade)}): give functions by the versions"
                " that they take, for example {1: to_2}"
            )
        for version, function in self.upgrade.items():
            name = f"{owner}: Durable(upgrade={{{quoted(version)}: ...}})"
            if not isinstance(version, int) or not 1 <= version < self.version:
                raise ConfigurationError(
                    f"{name}: the function would never be called, as version={self.version}: give"
                    " lower versions than that"
                )
            if not callable(function):
                raise ConfigurationError(
                    f"{name}: {quoted(function)} cannot be called: give a function that takes a"
                    f" state of version {version} and returns one of version {version + 1}"
                )
        if self.store is not None and not callable(self.store):
            raise ConfigurationError(
                f"{owner}: Durable(store={quoted(self.store)}): give a callable that gets a name"
                " and returns a StateStore, which it opens: a class, a function or a partial"
            )
        if self.ttl is not None:
            check_seconds(owner, "Durable(ttl)", self.ttl)
        if self.dedupe is not None:
            check_count(owner, "Durable(dedupe)", self.dedupe, _MOST_KNOWN)
        if self.hot is not None:
            check_count(owner, "Durable(hot)", self.hot, MOST_HOT)
        if self.idle is not None:
            check_seconds(owner, "Durable(idle)", self.idle)

    def upgraded(self, state: Any, version: int) -> Any:
        """Return a state of an earlier version as this version has it.

        Raises:
            Exception: whatever a function raises.
        """
        for step in range(version, self.version):
            function = self.upgrade.get(step)
            if function is None:
                continue
            before, state = state, function(state)
            if state is None and before is not None:
                raise TypeError(
                    f"the function in upgrade= for version {step} returned None instead of the"
                    " state: add a return"
                )
        return state
