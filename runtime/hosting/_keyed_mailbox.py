"""The cells of a keyed actor, one for each key, and the mailbox in which their messages wait."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ...actors import Mailbox

if TYPE_CHECKING:
    from ...transports._tenures import Tenure
    from ...transports._units import Unit
    from ._key_records import KeyRecord
    from ._timers import Timers

__all__ = ["UNSET", "KeyCell", "KeyStage", "KeyedMailbox"]


class _Unset:
    """Stands for the state of a cell that has none yet."""


UNSET: Any = _Unset()


class KeyStage(enum.Enum):
    """The stages of a cell.

    Attributes:
        IDLE: nothing waits in it.
        WAITING: something waits in it, and it waits for a lane.
        AT_WORK: a lane handles something of it; more may wait.
    """

    IDLE = "idle"
    WAITING = "waiting"
    AT_WORK = "at work"


# Members of an Enum are slow to look up, and each message needs some.
_IDLE = KeyStage.IDLE
_WAITING = KeyStage.WAITING
_AT_WORK = KeyStage.AT_WORK


class KeyCell:
    """What a keyed actor keeps of one key: a small object, not an actor.

    Attributes:
        key: the key.
        stage: its stage, changed by the mailbox.
        state: the state of the key; `UNSET` until it is made, and always for a class.
        instance: the instance of the actor's class; None for a function, and until it is made.
        queue: what waits in it, in order; None if nothing does. Most have one item, and a deque for
            that costs more than all that is done with it.
        unsettled: how many messages were handled and are not known to be settled.
        timers: the calls that its code has scheduled; None if there were none.
        saved: what a durable actor keeps of it; None if that is nothing.
        tenure: that of the last message that was handled; None if nobody else gets any.
        unit: what the state of a durable actor was loaded from, on a bus with transactions.
        life: a new object whenever the state is made anew; None until somebody asks.
    """

    __slots__ = (
        "instance",
        "key",
        "life",
        "queue",
        "saved",
        "stage",
        "state",
        "tenure",
        "timers",
        "unit",
        "unsettled",
    )

    def __init__(self, key: str) -> None:
        self.key: str = key
        self.stage: KeyStage = KeyStage.IDLE
        self.state: Any = UNSET
        self.instance: Any = None
        self.queue: list[Any] | None = None
        self.unsettled: int = 0
        self.timers: Timers | None = None
        self.saved: KeyRecord | None = None
        self.tenure: Tenure | None = None
        self.unit: Unit | None = None
        self.life: object = None

    def become(self, stage: KeyStage) -> None:
        """Change its stage."""
        self.stage = stage

    def keep(self, state: Any, instance: Any = None) -> None:
        """Have a state from now on.

        Args:
            state: of a function; `UNSET` for a class.
            instance: of a class.
        """
        self.state, self.instance = state, instance

    @property
    def active(self) -> bool:
        """Whether its state is there."""
        return self.state is not UNSET or self.instance is not None

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits, runs or is unsettled in it."""
        if self.stage is not _IDLE or (self.timers is not None and len(self.timers)):
            return False
        return not self.unsettled

    def reset(self) -> None:
        """Forget the state, and the calls that were scheduled with it."""
        self.keep(UNSET)
        self.saved = None
        self.life = None
        timers, self.timers = self.timers, None
        if timers is not None:
            timers.stop()


class KeyedMailbox(Mailbox):
    """The mailbox that routers fill for a keyed actor: what waits is sorted by its key.

    Nothing is started here: routers may take back what is waiting, as from any mailbox.

    Args:
        capacity: as in `Mailbox`.
        key_of: returns the key of a delivery.
        filled: called when there is something to `take`.

    Attributes:
        cells: the cells by their keys.
        ready: the cells that wait for a lane, in order.
    """

    __slots__ = ("_at_work", "_count", "_filled", "_key_of", "cells", "ready")

    def __init__(
        self, capacity: int, key_of: Callable[[Any], str], filled: Callable[[], None]
    ) -> None:
        super().__init__(capacity)
        # Nothing goes past `offer`.
        self.limit = 0
        self.cells: dict[str, KeyCell] = {}
        self.ready: deque[KeyCell] = deque()
        self._at_work: dict[KeyCell, None] = {}
        self._key_of = key_of
        self._filled = filled
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """As in `Mailbox`."""
        return self._count >= self.capacity

    def empty(self) -> bool:
        """As in `Mailbox`."""
        return not self._count

    def waiting(self) -> list[Any]:
        """As in `Mailbox`, first to last of each key."""
        cells = [*list(self._at_work), *list(self.ready)]
        queues = [cell.queue for cell in cells]
        return [item for queue in queues if queue is not None for item in list(queue)]

    def offer(self, item: Any) -> bool:
        """As in `Mailbox`."""
        self._check_open()
        if self.full:
            raise self._full()
        self._put(item)
        self._filled()
        return True

    def force(self, item: Any) -> None:
        """As in `Mailbox`."""
        self._check_open()
        self._put(item)
        self._filled()

    def force_all(self, items: Iterable[Any]) -> None:
        """As in `Mailbox`."""
        self._check_open()
        for item in items:
            self._put(item)
        self._filled()

    def push_front(self, items: Iterable[Any]) -> None:
        """As in `Mailbox`: each item comes before all others of its key."""
        for item in reversed(list(items)):
            self.put_first(self._cell_of(item), item)
        self._filled()

    def put_last(self, cell: KeyCell, item: Any) -> None:
        """Put something that is no delivery behind everything else in a cell."""
        self._append(cell, item)
        self._filled()

    def put_first(self, cell: KeyCell, item: Any) -> None:
        """Put something in front of everything else in a cell, without having it taken yet."""
        if cell.queue is None:
            cell.queue = [item]
        else:
            cell.queue.insert(0, item)
        self._added(cell)

    def extract(self, predicate: Callable[[Any], bool]) -> list[Any]:
        """As in `Mailbox`; those of each key stay in order."""
        taken: list[Any] = []
        for cell in (*self._at_work, *self.ready):
            if cell.queue is None:
                continue
            left: list[Any] = []
            for item in cell.queue:
                (taken if predicate(item) else left).append(item)
            cell.queue = left or None
        if taken:
            self._count -= len(taken)
            emptied = [cell for cell in self.ready if cell.queue is None]
            self.ready = deque(cell for cell in self.ready if cell.queue is not None)
            for cell in emptied:
                cell.become(_IDLE)
        return taken

    def take(self) -> tuple[KeyCell, Any] | None:
        """Return the next cell and what is to be handled of it; None if nothing waits.

        Nothing more of it is taken before `done`.
        """
        if not self.ready:
            return None
        cell = self.ready.popleft()
        queue = cell.queue
        assert queue is not None
        item = queue.pop(0)
        if not queue:
            cell.queue = None
        cell.become(_AT_WORK)
        self._at_work[cell] = None
        self._count -= 1
        return cell, item

    def done(self, cell: KeyCell) -> None:
        """Note that what was taken last of a cell has been dealt with."""
        del self._at_work[cell]
        if cell.queue is None:
            cell.become(_IDLE)
        else:
            cell.become(_WAITING)
            self.ready.append(cell)

    def forget(self, cell: KeyCell) -> None:
        """Forget a cell in which nothing waits; the next message of its key makes another one."""
        if self.cells.get(cell.key) is cell:
            del self.cells[cell.key]

    def wake(self) -> None:
        """As in `Mailbox`: nobody waits here for single items."""

    def _put(self, item: Any) -> None:
        # As `_append` of the item's cell, without the cost of two calls: every message comes here.
        key = self._key_of(item)
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = KeyCell(key)
        if cell.queue is None:
            cell.queue = [item]
            if cell.stage is _IDLE:
                cell.become(_WAITING)
                self.ready.append(cell)
        else:
            cell.queue.append(item)
        self._count += 1

    def _append(self, cell: KeyCell, item: Any) -> None:
        if cell.queue is None:
            cell.queue = [item]
        else:
            cell.queue.append(item)
        self._added(cell)

    def _added(self, cell: KeyCell) -> None:
        self._count += 1
        if cell.stage is _IDLE:
            cell.become(_WAITING)
            self.ready.append(cell)

    def _cell_of(self, item: Any) -> KeyCell:
        return self.cell_of_key(self._key_of(item))

    def cell_of_key(self, key: str) -> KeyCell:
        """Return the cell of a key, which is made if there is none."""
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = KeyCell(key)
        return cell
