"""The lanes of a durable keyed actor: what a message has changed is committed as a whole."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..._texts import describe, quoted
from ...errors import ConfigurationError
from ...transports import Delivery
from ..handling._argument_values import ProducerScope
from ..messaging._turn import Effects, Turn, current_turn
from ..options._option_checks import check_name
from ..payloads._codec import encode
from ..registration._reminder_handlers import ANY_REMINDER
from ._durable_records import DurableRecords
from ._keyed_lane import STATE, KeyedLane
from ._keyed_mailbox import UNSET, KeyCell
from ._timers import ScheduledCall

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner
    from ._keyed_host import KeyedHost

__all__ = ["ALREADY_HANDLED", "DurableLane"]

ALREADY_HANDLED = "AlreadyHandled", "the request was handled before, and its reply is not kept"
"""The code and the text with which a request is answered that comes again."""

# Seconds before a key is woken again.
_AFTER_FAILURE = 1.0


class DurableLane(KeyedLane, abc.ABC):
    """A lane of a durable keyed actor.

    The new state of the key is committed together with what else a message has come to, in a way
    that depends on the bus. If the handler fails, or the commit does, the state is forgotten and
    loaded again.

    Args:
        runner: the runner of its actor.
        host: the actor's.
        number: which lane it is.

    Attributes:
        kept: what is kept of the actor's keys.
    """

    def __init__(self, runner: ActorRunner, host: KeyedHost, number: int) -> None:
        super().__init__(runner, host, number)
        self.kept = DurableRecords(runner, host, self.log)

    def _makes_at_once(self, cell: KeyCell) -> bool:
        # The state has to be loaded, in an attempt at the message.
        return False

    def _make(self, cell: KeyCell) -> None:
        if cell.saved is None or cell.saved.state is None:
            super()._make(cell)
            return
        state = self.kept.state_in(cell.saved, cell.key)
        if not self.host.is_class:
            cell.keep(state)
            return
        instance = self._new_instance()
        setattr(instance, STATE, state)
        cell.keep(UNSET, instance)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """As in `Lane`; none, because every call is followed by a commit."""
        return [None] * len(self.handlers)

    def invoke(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """As in `Lane`; has what it has changed committed."""
        return self._invoke_and_commit(instance, index, arguments, scope)

    @abc.abstractmethod
    async def _invoke_and_commit(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Any:
        """Do as `invoke`, with what comes of it committed or noted for the next commit."""

    @abc.abstractmethod
    async def peek(self, key: str) -> Any:
        """Return a copy of the state of a key as it was committed last; None if there is none."""

    async def wake(self, cell: KeyCell) -> None:
        """As in `KeyedLane`: hand out reminders, delete a state that has expired."""
        wakeups = self.host.wakeups
        assert wakeups is not None
        wait: float | None = _AFTER_FAILURE
        try:
            wait = await self.away(self._do_what_is_due(cell), self.item)
        except Exception as error:  # noqa: BLE001 (it is tried again, whatever it is)
            self.log.warning(
                "what it is time for in key %s is done later: %s",
                quoted(cell.key, 200),
                describe(error),
            )
        finally:
            if wait is not None:
                wakeups.has_rested(cell.key, wait)

    @abc.abstractmethod
    async def _do_what_is_due(self, cell: KeyCell) -> float | None:
        """Return when there may be more to do, in seconds; None if that is told otherwise."""

    def _at_work(self) -> tuple[KeyCell, Turn, Delivery]:
        """Return the key, the turn and the message that the lane is handling."""
        cell, turn = self.cell, current_turn.get()
        assert cell is not None
        assert turn is not None
        return cell, turn, self.item

    def _undo(self, cell: KeyCell) -> None:
        """Forget what a failed attempt has made of the state of a key; it is loaded again."""
        cell.reset()

    def delete_key(self, cell: KeyCell) -> None:
        """See `Context.delete`."""
        effects = self._effects(cell, "context.delete()")
        effects.deletes = True
        effects.reminders.clear()

    def remind_key(self, cell: KeyCell, name: str, payload: object, due: float) -> None:
        """See `Context.remind`."""
        known = [one for handler in self.handlers for one in handler.reminders]
        known.remove(ANY_REMINDER)
        if name not in known:
            there_are = ", ".join(map(repr, known)) or "none"
            raise ConfigurationError(
                f"context.remind({quoted(name)}): no handler of actor {self.actor_name!r} has this"
                f" name; there are: {there_are}. @on_reminder({quoted(name)}) makes one of a"
                f" method, and @app.on_reminder({self.actor_name!r}, {quoted(name)}) of a function"
            )
        effects = self._effects(cell, "context.remind()")
        effects.reminders[name] = (due, *encode(payload))

    def forget_reminder_of(self, cell: KeyCell, name: str) -> None:
        """See `Context.forget_reminder`."""
        check_name("context.forget_reminder(): reminder", name)
        self._effects(cell, "context.forget_reminder()").reminders[name] = None

    def _effects(self, cell: KeyCell, what: str) -> Effects:
        """Return the effects of the message that is being handled, for a method of a context.

        Args:
            cell: whose context it is.
            what: the method.
        """
        turn = current_turn.get()
        effects = None
        # Code that a handler has left running belongs to no message, or to an earlier one.
        if turn is not None and turn.active and turn.delivery is self.item and cell is self.cell:
            effects = turn.effects
        if effects is None:
            raise ConfigurationError(
                f"{what} is a part of a message that is being handled: call it before the handler"
                " returns, and not in on_passivate"
            )
        return effects

    def schedule(
        self, cell: KeyCell, delay: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> ScheduledCall:
        """Raise ConfigurationError: what a scheduled call changes is not committed."""
        raise ConfigurationError(
            f"actor {self.actor_name!r} is durable, and context.later() is not: what it changes"
            " would not be kept; use context.remind() instead"
        )
