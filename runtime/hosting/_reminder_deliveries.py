"""Deliveries of reminders that are due, which reach the actor as messages of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...transports import DeliveryState, Envelope
from ...transports._units import OwnDelivery, Unit
from ..registration._reminder_handlers import ANY_REMINDER, reminder_filter, reminder_topic
from ..routing._routed_deliveries import Route
from ..routing._router import Router
from ._key_records import KeyRecord, Reminder
from ._keyed_mailbox import KeyCell

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner
    from ._keyed_host import KeyedHost

__all__ = ["ReminderDelivery", "Reminders", "is_still_set"]


class ReminderDelivery(OwnDelivery):
    """The delivery of a reminder, which is stored until its effects are committed.

    Attributes:
        name: the name of the reminder.
        due: for when it was set, in seconds since 1970.
        removed: whether it is not stored any more.
        ended: called when it is settled or withdrawn.
    """

    name: str = ""
    due: float = 0.0
    removed: bool = False
    ended: Callable[[], None] | None = None

    def settle(self) -> None:
        before = self.state
        super().settle()
        self._tell(before)

    def withdraw(self) -> None:
        before = self.state
        super().withdraw()
        self._tell(before)

    def _tell(self, before: DeliveryState) -> None:
        if self.state is not before and self.ended is not None:
            self.ended()


class Reminders:
    """Puts the reminders of one actor that are due into the cells of their keys.

    Args:
        runner: the runner of the actor.
        host: the actor's keys.
        ended: called with a key when all that were due in it are handled, dead letters or taken
            back, to have the next ones looked for.
        router: takes them back if the units of their keys are taken away; None if there are no
            units.

    Attributes:
        routes: to its handlers, by the names of the reminders.
        failed: reminders that became dead letters and are still stored, by key; of units there are
            none.
    """

    def __init__(
        self,
        runner: ActorRunner,
        host: KeyedHost,
        ended: Callable[[str], None],
        router: Router | None = None,
    ) -> None:
        self._source = runner.address
        if router is not None:
            # Any instance may be the next that has it.
            self._source = f"{runner.connection.surroundings.identity.application}/{runner.name}"
        self._host = host
        self._all_ended = ended
        self._own_router: Router | None = None
        if router is None:
            stats = runner.connection.surroundings.stats
            router = self._own_router = Router(f"reminders of {runner.name}", stats)
        filter_ = reminder_filter(str(runner.options.per))
        self.routes: dict[str, Route] = {}
        for index, handler in enumerate(runner.handlers):
            for name in handler.reminders:
                self.routes[name] = runner.route(router, index, filter_)
                if self._own_router is not None:
                    self._own_router.add(self.routes[name])
        self._under_way: dict[str, int] = {}
        self._stopped = False
        self.failed: dict[str, list[ReminderDelivery]] = {}

    def deliver(
        self, cell: KeyCell, due: list[tuple[str, Reminder]], unit: Unit | None = None
    ) -> None:
        """Put reminders behind everything that waits in a cell.

        Args:
            cell: the cell.
            due: the reminders with their names.
            unit: that of the key; None if it has none.
        """
        if self._stopped:
            return
        key = cell.key
        self._under_way[key] = len(due)
        for name, reminder in due:
            envelope = Envelope(
                topic=reminder_topic(name, cell.key),
                payload=reminder.payload,
                content_type=reminder.content_type,
                id=f"{cell.key}/{name}/{reminder.due!r}",
                source=self._source,
                time=reminder.due,
                key=cell.key,
                partition=None if unit is None else unit.number,
            )
            delivery = ReminderDelivery(envelope, name=name, due=reminder.due)
            if unit is not None:
                # It is taken back with what its unit has handed out.
                delivery.tracker, delivery.epoch, delivery.token = unit, unit.epoch, 0
            delivery.route = self.routes.get(name) or self.routes[ANY_REMINDER]
            delivery.ended = partial(self._ended, key, delivery)
            self._host.mailbox.put_last(cell, delivery)

    def _ended(self, key: str, delivery: ReminderDelivery) -> None:
        is_left = delivery.tracker is None and not delivery.removed
        if delivery.state is DeliveryState.SETTLED and is_left:
            self.failed.setdefault(key, []).append(delivery)
        self._under_way[key] -= 1
        if not self._under_way[key]:
            # The cell may have been forgotten, and there may be another one.
            del self._under_way[key]
            if not self._stopped:
                self._all_ended(key)

    def stop(self) -> None:
        """Take back what was not started: it is stored, and comes again."""
        self._stopped = True
        if self._own_router is not None:
            self._own_router.stop_intake()

    def routes_by_topic(self) -> list[Route]:
        """Return the routes, for reminders that became dead letters."""
        return [route for name, route in self.routes.items() if name != ANY_REMINDER]


def is_still_set(record: KeyRecord | None, delivery: ReminderDelivery) -> bool:
    """Return whether a reminder is still what it was when it was handed out."""
    return record is not None and record.is_set(delivery.name, delivery.due)
