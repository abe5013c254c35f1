"""Reminders of durable keys, which reach the actor as messages of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from ...transports import Delivery, DeliveryState, Envelope
from ..registration._reminder_handlers import ANY_REMINDER, reminder_filter, reminder_topic
from ..routing._routed_deliveries import Route
from ..routing._router import Router
from ._key_records import Reminder
from ._keyed_mailbox import KeyCell

if TYPE_CHECKING:
    from ._actor_runner import ActorRunner
    from ._keyed_host import KeyedHost

__all__ = ["ReminderDelivery", "Reminders"]


class ReminderDelivery(Delivery):
    """The delivery of a reminder, which is stored until its effects are committed.

    Attributes:
        name: the name of the reminder.
        due: for when it was set, in seconds since 1970.
        removed: whether it is not stored any more.
        ended: called when it is settled or withdrawn.
    """

    is_stored: ClassVar[bool] = True

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
        wake: called with a key to have the next one looked for, or one forgotten.

    Attributes:
        routes: to its handlers, by the names of the reminders.
        failed: reminders that became dead letters and are still stored, by key.
    """

    def __init__(self, runner: ActorRunner, host: KeyedHost, wake: Callable[[str], None]) -> None:
        self._address = runner.address
        self._host = host
        self._wake = wake
        self._router = Router(f"reminders of {runner.name}", runner.connection.surroundings.stats)
        filter_ = reminder_filter(str(runner.options.per))
        self.routes: dict[str, Route] = {}
        for index, handler in enumerate(runner.handlers):
            for name in handler.reminders:
                route = runner.route(self._router, index, filter_)
                self.routes[name] = route
                self._router.add(route)
        self._under_way: dict[str, int] = {}
        self._stopped = False
        self.failed: dict[str, list[ReminderDelivery]] = {}

    def deliver(self, cell: KeyCell, due: list[tuple[str, Reminder]]) -> None:
        """Put reminders behind everything that waits in a cell."""
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
                source=self._address,
                time=reminder.due,
                key=cell.key,
            )
            delivery = ReminderDelivery(envelope, name=name, due=reminder.due)
            delivery.route = self.routes.get(name) or self.routes[ANY_REMINDER]
            delivery.ended = partial(self._ended, key, delivery)
            self._host.mailbox.put_last(cell, delivery)

    def _ended(self, key: str, delivery: ReminderDelivery) -> None:
        if delivery.state is DeliveryState.SETTLED and not delivery.removed:
            self.failed.setdefault(key, []).append(delivery)
        self._under_way[key] -= 1
        if not self._under_way[key]:
            # The cell may have been forgotten, and there may be another one.
            del self._under_way[key]
            if not self._stopped:
                self._wake(key)

    def stop(self) -> None:
        """Take back what was not started: it is stored, and comes again."""
        self._stopped = True
        self._router.stop_intake()

    def routes_by_topic(self) -> list[Route]:
        """Return the routes, for reminders that became dead letters."""
        return [route for name, route in self.routes.items() if name != ANY_REMINDER]
