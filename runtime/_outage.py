"""What a router keeps while its connection is gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..actors import Mailbox
from ..transports import Delivery
from ._shared_delivery import Part, Whole

__all__ = ["Outage"]


class Outage:
    """Deliveries that were taken out of their mailboxes, with the places where they stood.

    What one of several actors has started on stays: the bus may be waiting for it to be settled
    by the others.

    Attributes:
        taken: in the order in which they are to be handed out again, those of each mailbox.
    """

    def __init__(self) -> None:
        self.taken: deque[tuple[Mailbox, Delivery]] = deque()
        self._before: dict[int, list[Delivery]] = {}

    def take(self, mailbox: Mailbox, is_mine: Callable[[Any], bool]) -> None:
        """Take from a mailbox what has not been begun."""
        before = self._before[id(mailbox)] = []

        def is_to_take(item: Any) -> bool:
            if not is_mine(item):
                return False
            before.append(item)
            return not (isinstance(item, Part) and item.whole is not None and item.whole.begun)

        taken = mailbox.extract(is_to_take)
        for delivery in taken:
            if (whole := _whole_of(delivery)) is not None:
                # Nothing of it runs, so whoever waits for what runs has nothing to wait for.
                whole.delivery.requeue()
        self.taken.extend((mailbox, delivery) for delivery in taken)

    def give_back(self, mailbox: Mailbox, delivery: Delivery) -> None:
        """What was running is to be started again, before all else."""
        self.taken.appendleft((mailbox, delivery))

    def add(self, mailbox: Mailbox, delivery: Delivery) -> None:
        """Something new is to be started after all else."""
        self.taken.append((mailbox, delivery))
        self._before.setdefault(id(mailbox), []).append(delivery)

    def leave(self, mailbox: Mailbox) -> None:
        """Put back at once what was taken from a mailbox."""
        left = [delivery for held, delivery in self.taken if held is mailbox]
        self.taken = deque(held for held in self.taken if held[0] is not mailbox)
        self._put_back(mailbox, left)

    def end(self, comes_again: Callable[[Delivery], bool]) -> None:
        """Withdraw what the bus sends again, and put back all else."""
        shared = self._withdraw_shared(comes_again)
        kept: dict[int, tuple[Mailbox, list[Delivery]]] = {}
        for mailbox, delivery in self.taken:
            whole = _whole_of(delivery)
            if whole is None and comes_again(delivery):
                delivery.withdraw()
            elif whole is None or id(whole) not in shared:
                kept.setdefault(id(mailbox), (mailbox, []))[1].append(delivery)
        for mailbox, deliveries in kept.values():
            self._put_back(mailbox, deliveries)

    def _withdraw_shared(self, comes_again: Callable[[Delivery], bool]) -> set[int]:
        again: dict[int, Whole] = {}
        for _, delivery in self.taken:
            whole = _whole_of(delivery)
            if whole is not None and not whole.begun and comes_again(whole.delivery):
                again[id(whole)] = whole
        for whole in again.values():
            whole.withdraw()
        return set(again)

    def _put_back(self, mailbox: Mailbox, deliveries: Iterable[Delivery]) -> None:
        # What was given back had been started, and so stood before all others.
        places = {id(delivery): place for place, delivery in enumerate(self._places(mailbox))}
        stayed = mailbox.extract(lambda item: id(item) in places)
        ordered = sorted([*deliveries, *stayed], key=lambda item: places.get(id(item), -1))
        for delivery in ordered:
            if (whole := _whole_of(delivery)) is not None:
                whole.delivery.start()
        mailbox.push_front(ordered)

    def _places(self, mailbox: Mailbox) -> list[Delivery]:
        return self._before.get(id(mailbox), [])


def _whole_of(delivery: Delivery) -> Whole | None:
    return delivery.whole if isinstance(delivery, Part) else None
