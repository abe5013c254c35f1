"""The host of a keyed actor: its cells, the lanes that handle what waits in them, its places."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ...actors import BURST, RestartPolicy
from ...transports import Delivery, DeliveryState, Envelope
from ..messaging._request_deadlocks import CHAIN_HEADER
from ..routing._router import Router
from ._key_eviction import KeyEviction
from ._keyed_lane import LEAVE, STATE, WAKE, WORK, KeyedLane
from ._keyed_mailbox import UNSET, KeyCell, KeyedMailbox, KeyStage

if TYPE_CHECKING:
    from ...transports._tenures import Tenure
    from ..options._actor_options import ActorOptions
    from ._actor_runner import ActorRunner
    from ._key_units import KeyUnits
    from ._key_wakeups import KeyWakeups
    from ._reminder_deliveries import Reminders

__all__ = ["HostState", "KeyedHost"]

_LONGEST_NAME = 48
_MANY_KEYS = 1_000_000
_MANY_UNSETTLED = 1_000
_IDLE = KeyStage.IDLE
_NO_MORE = (DeliveryState.SETTLED, DeliveryState.WITHDRAWN)


class HostState(enum.Enum):
    """The stages of a keyed actor.

    Attributes:
        RUNNING: its lanes take what waits.
        PAUSED: they begin with nothing.
        STOPPING: they take what is left, and keys say goodbye.
    """

    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"


# Members of an Enum are slow to look up, and each message needs them.
_RUNNING = HostState.RUNNING
_PAUSED = HostState.PAUSED
_STOPPING = HostState.STOPPING


class KeyedHost:
    """What routers deliver to if an actor has a state for each key.

    A message waits in the cell of its key for one of the lanes, which handle one message at a time
    each. Only as many lanes are at work as the actor has places: ``concurrency`` of them. A
    lane whose message waits, for its next attempt or the reply to a request, gives its place back
    meanwhile, and another lane may take it, so there are as many lanes as messages that wait, and
    places, at the most.

    Attributes:
        actor_name: the actor's.
        options: the actor's.
        mailbox: its cells, and what waits in them.
        lanes: its lanes, one at first.
        state: its stage.
        is_class: whether a class was registered, of which each key has an instance.
        activates: whether it has an ``on_activate``.
        passivates: whether it has an ``on_passivate``.
        wakeups: wake the keys of a durable actor; None for any other.
        reminders: those of a durable actor that are due; None for any other.
        units: those that a durable actor's keys belong to, on a bus with transactions; else None.
        burst: how many messages all lanes together may take before the event loop gets a turn.
        making_timers: held while a key gets timers.

    Args:
        runner: the runner of the actor.
    """

    def __init__(self, runner: ActorRunner) -> None:
        spec = runner.spec
        self._runner = runner
        self.spec = spec
        self.actor_name: str = runner.name
        options = spec.options
        self.options: ActorOptions = options
        self.address: str = runner.address
        self.mailbox: KeyedMailbox = KeyedMailbox(options.mailbox, self._key_of, self.dispatch)
        self.mailbox.name = runner.address
        self.is_class: bool = isinstance(spec.source, type)
        self.activates: bool = "on_activate" in spec.hooks
        self.passivates: bool = "on_passivate" in spec.hooks
        self._free = self._places = options.places
        # Lanes that were told of work and have not taken it yet; each has a place.
        self._assigned = 0
        self.burst: int = BURST
        self._idle: list[KeyedLane] = []
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.state: HostState = HostState.RUNNING
        self._loop = asyncio.get_running_loop()
        self.making_timers: threading.Lock = threading.Lock()
        self._spawned_with: tuple[RestartPolicy, Mapping[str, Any]] | None = None
        # Only if some may go.
        self._eviction: KeyEviction | None = None
        if options.most_hot is not None or options.longest_idle is not None:
            self._eviction = KeyEviction(self)
        # Those whose states are about to go.
        self._leaving: dict[KeyCell, None] = {}
        self._look_at_tenures: asyncio.Handle | None = None
        # In the order in which they were handled: a cell at rest keeps no message alive.
        self._unsettled: deque[tuple[KeyCell, Delivery]] = deque()
        self._many_unsettled = _MANY_UNSETTLED
        # At the end, those whose `on_passivate` was called.
        self._left: dict[KeyCell, None] = {}
        self.lanes: tuple[KeyedLane, ...] = ()
        self.wakeups: KeyWakeups | None = None
        self.reminders: Reminders | None = None
        self.units: KeyUnits | None = None
        if options.durable:
            self._make_wakeups()
        self._idle.append(self._add_lane())

    def _make_wakeups(self) -> None:
        # Only who needs them pays for the modules.
        from ._key_wakeups import KeyWakeups, checked

        runner, states = self._runner, self._runner.run.durable_states
        name, environment = runner.name, runner.connection.surroundings.environment
        if runner.options.are_kept_by(runner.connection.provider):
            from ._key_units import KeyUnits

            self.units = units = KeyUnits(lambda: runner.run.routes_to(runner))
            self.wakeups = KeyWakeups(name, units.look, environment, self._wake, units.log)
        elif states is not None:

            def look(most: int) -> asyncio.Future[Sequence[tuple[str, float]]]:
                # What a store returns is found wrong where it is tried again.
                return states.ask(
                    lambda store: [checked(*due) for due in store.first_due(name, most)]
                )

            self.wakeups = KeyWakeups(name, look, environment, self._wake, states.log)

    def _add_lane(self) -> KeyedLane:
        number, states = len(self.lanes), self._runner.run.durable_states
        if self.units is not None:
            from ._durable_unit_lane import DurableUnitLane

            lane: KeyedLane = DurableUnitLane(self._runner, self, number, self.units)
        elif states is not None and self.options.durable:
            # Only who needs them pays for the modules.
            from ._durable_store_lane import DurableStoreLane

            lane = DurableStoreLane(self._runner, self, number, states)
        else:
            lane = KeyedLane(self._runner, self, number)
        self.lanes = (*self.lanes, lane)
        return lane

    # Keys.

    def _key_of(self, delivery: Any) -> str:
        return self.spec.message_key.of(delivery.envelope, delivery.route.filter)

    def name_of(self, key: str) -> str:
        """Return the actor's name in chains of waiting actors while it works for a key."""
        return f"{self.actor_name}/{self.part_of(key)}"

    def part_of(self, key: str) -> str:
        """Return what stands for a key there: short, and another text for each key."""
        return _printable(key)

    def state_of(self, cell: KeyCell) -> Any:
        """Return the state of a key; `UNSET` while it is not there."""
        if not self.is_class:
            return cell.state
        return UNSET if cell.instance is None else getattr(cell.instance, STATE, None)

    def set_state(self, cell: KeyCell, value: Any) -> None:
        """Replace the state of a key."""
        if not self.is_class:
            cell.keep(value)
        elif cell.instance is not None:
            setattr(cell.instance, STATE, value)

    @property
    def keys(self) -> int:
        """How many keys have a cell."""
        return len(self.mailbox.cells)

    @property
    def hot_keys(self) -> int:
        """How many of them have a state that is not about to go."""
        return self.keys - len(self._leaving)

    @property
    def trouble(self) -> str | None:
        """That there are so many keys that somebody may be inventing them; None if there are not.

        Whoever has said how many are to be kept is not told.
        """
        keys = self.keys
        if keys <= _MANY_KEYS or self.options.most_hot is not None:
            return None
        return (
            f"it has {keys:,} keys, each of which takes memory: give hot=, the most"
            " that are to be kept"
        )

    # For routers.

    def interrupt(self, router: Router) -> None:
        """See `Target.interrupt`."""
        for lane in self.lanes:
            lane.interrupt(router)

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """See `Target.refuses`."""
        if CHAIN_HEADER not in envelope.headers:
            return False
        for filter_ in self.spec.handlers[handler].filters:
            if filter_.matches(envelope.topic):
                key = self.spec.message_key.of(envelope, filter_)
                lane = self.lanes[0]
                name = f"{self.address}/{lane.chain_part(envelope, key)}"
                return lane.refuses_as(name, envelope, handler)
        return False

    def dropped(self, item: Any) -> None:
        """See `Target.dropped`."""
        self.lanes[0].dropped(item)

    # Work.

    def spawned(self, restart: RestartPolicy, resources: Mapping[str, Any]) -> None:
        """Note how lanes are started, now that the first one is, so that others may be."""
        self._spawned_with = restart, resources
        if self.wakeups is not None:
            # Only who needs them pays for the modules.
            from ._reminder_deliveries import Reminders

            if self.units is None:
                self.reminders = Reminders(self._runner, self, self._wake)
            else:
                rest, router = self.wakeups.has_rested, self.units.router
                self.reminders = Reminders(self._runner, self, rest, router)
                router.on_restored = self.wakeups.look
            self.wakeups.start()
        self.dispatch()

    def _wake(self, key: str) -> None:
        if not self.mailbox.closed and self.state is not _STOPPING:
            self.mailbox.put_last(self.mailbox.cell_of_key(key), WAKE)

    def dispatch(self) -> None:
        """Give work to lanes, as long as something waits and there are places."""
        ready = self.mailbox.ready
        while self._free > 0 and len(ready) > self._assigned and self.state is not _PAUSED:
            lane = self._idle_lane()
            if lane is None:
                return
            self._free -= 1
            self._assign(lane)

    def _idle_lane(self) -> KeyedLane | None:
        while self._idle:
            lane = self._idle.pop()
            if not lane.local.closed:
                return lane
        if self._spawned_with is None or self.state is _STOPPING:
            return None
        lane = self._add_lane()
        self._runner.lanes = self.lanes
        lane.spawn(*self._spawned_with)
        return lane

    def _assign(self, lane: KeyedLane) -> None:
        self._assigned += 1
        lane.has_place = True
        lane.local.force(WORK)

    def take(self) -> tuple[KeyCell, Any] | None:
        """Return what a lane that was told of work is to handle; None if it was taken back."""
        self._assigned -= 1
        self.burst -= 1
        if not self.burst:
            self._loop.call_soon(self._begin_turn)
        return self.mailbox.take()

    def _begin_turn(self) -> None:
        self.burst = BURST

    def take_back(self, lane: KeyedLane) -> None:
        """Note that a lane that was told of work ends without taking it."""
        self._assigned -= 1
        self.leave_work(lane)

    def done(self, cell: KeyCell) -> None:
        """Note that a lane is done with what it took of a cell."""
        self.mailbox.done(cell)
        if cell.stage is not _IDLE:
            return
        if not cell.active:
            # What is not settled yet keeps a state, and there is none.
            self.mailbox.forget(cell)
        elif self.state is _STOPPING:
            self._say_goodbye(cell)
        elif self._eviction is not None:
            self._eviction.rests(cell)

    def note_unsettled(self, cell: KeyCell, delivery: Delivery) -> None:
        """Note a message that was handled, and is settled later."""
        self._note_settled()
        cell.unsettled += 1
        self._unsettled.append((cell, delivery))
        if len(self._unsettled) > self._many_unsettled:
            # One that is late must not keep all those after it in memory.
            left: deque[tuple[KeyCell, Delivery]] = deque()
            for entry in self._unsettled:
                if entry[1].state in _NO_MORE:
                    entry[0].unsettled -= 1
                else:
                    left.append(entry)
            self._unsettled = left
            self._many_unsettled = max(_MANY_UNSETTLED, 2 * len(left))

    def _note_settled(self) -> None:
        unsettled = self._unsettled
        while unsettled and unsettled[0][1].state in _NO_MORE:
            unsettled.popleft()[0].unsettled -= 1

    def is_at_rest(self, cell: KeyCell) -> bool:
        """Return whether nothing waits, runs or is unsettled in a cell."""
        self._note_settled()
        return cell.at_rest

    def next_work(self, lane: KeyedLane) -> bool:
        """Let a lane that has finished go on with the next cell; return whether it is to at once.

        It is if it was asked to stop, because it is told of no more work.
        """
        if lane.has_place and not self._waiters and self.state is not _PAUSED:
            if len(self.mailbox.ready) > self._assigned:
                self._assigned += 1
                if lane.local.closed:
                    return True
                # As in `_assign`; the lane is running, so nobody has to wake it.
                lane.local.items.append(WORK)
                return False
        elif not lane.has_place and lane.local.closed and len(self.mailbox.ready) > self._assigned:
            # Nobody else may be left for it.
            self._assigned += 1
            return True
        self.leave_work(lane)
        return False

    def leave_work(self, lane: KeyedLane) -> None:
        """Note that a lane goes on with nothing: it has finished, or is ended in the middle."""
        if len(self._idle) >= self._places:
            # They were more because some waited, and will not be soon again.
            lane.rest()
        self._idle.append(lane)
        if lane.has_place:
            self.give_place(lane)
        else:
            # What is left in its cell could be given to nobody while the lane was at it.
            self.dispatch()

    # Places.

    def give_place(self, lane: KeyedLane) -> None:
        """Take a lane's place, for another one."""
        lane.has_place = False
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
        self.dispatch()

    async def get_place(self, lane: KeyedLane, item: Any) -> None:
        """Wait until there is a place for a lane whose message, the item, goes on."""
        if self._free > 0:
            self._free -= 1
            lane.has_place = True
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._pass_on()
            raise
        if lane.has_place or lane.item is not item:
            # One of several requests of a handler, which has gone on or ended without it.
            self._pass_on()
        else:
            lane.has_place = True

    # Control.

    def _become(self, state: HostState) -> None:
        self.state = state

    def pause(self) -> None:
        """Begin with nothing more until `resume`, unless it is stopping."""
        if self.state is _RUNNING:
            self._become(_PAUSED)

    def resume(self) -> None:
        """Undo `pause`."""
        if self.state is _PAUSED:
            self._become(_RUNNING)
            self.dispatch()

    def begin_afresh(self) -> None:
        """Forget the states of all keys, each after its current message."""
        for cell in tuple(self.mailbox.cells.values()):
            self.let_go(cell)

    def lose_idle(self) -> None:
        """Lose the states of all keys in which nothing waits or runs, as in a crash."""
        for cell in tuple(self.mailbox.cells.values()):
            if cell.stage is _IDLE:
                self.forget(cell)

    def stop(self) -> None:
        """Make no more lanes, and let go of each key once nothing waits in it."""
        if self.state is _STOPPING:
            return
        if self._eviction is not None:
            self._eviction.stop()
        self.resume()
        # While lanes can be made: otherwise one lane might have to call `on_passivate` of all.
        for cell in tuple(self.mailbox.cells.values()):
            if cell.stage is _IDLE:
                self._say_goodbye(cell)
        self._become(_STOPPING)

    def _say_goodbye(self, cell: KeyCell) -> None:
        """Call ``on_passivate`` of a key at the end, once; its state can still be looked at."""
        if self.passivates and cell not in self._left:
            self.let_go(cell)

    def stop_timers(self) -> None:
        """Make no more calls that were scheduled, and wake no more keys."""
        if self.wakeups is not None:
            self.wakeups.stop()
        if self.reminders is not None:
            self.reminders.stop()
        for cell in self.mailbox.cells.values():
            if cell.timers is not None:
                cell.timers.stop()

    def close(self) -> list[Delivery]:
        """Accept nothing more; return what nobody has handled."""
        self.mailbox.close()
        if self._leaving:
            count = len(self._leaving)
            keys = "a key" if count == 1 else f"{count:,} keys"
            reason = f"on_passivate of actor {self.actor_name!r} was not called for {keys}"
            self._runner.run.given_up.add(f"{reason}, or cut off")
        return self.mailbox.extract(lambda item: isinstance(item, Delivery))

    # States that go.

    def let_go(self, cell: KeyCell) -> None:
        """Forget the state of a key after its current message, before its next one."""
        if not cell.active or cell in self._leaving:
            return
        if cell.stage is _IDLE and not self.passivates:
            self.forget(cell)
            return
        self._leaving[cell] = None
        self.mailbox.put_first(cell, LEAVE)
        self.dispatch()

    def note_tenure(self, cell: KeyCell, tenure: Tenure | None) -> bool:
        """Note that a message of a key has another tenure than the one before.

        Returns:
            whether others may have handled messages of the key that its state lacks: it comes from
            another source than before, which has been ours for a shorter time.
        """
        before = cell.tenure
        if before is not None and tenure is not None and tenure.began < before.began:
            return False
        cell.tenure = tenure
        if tenure is not None:
            tenure.tell(self._tenure_over)
        if before is None or tenure is None:
            return False
        return cell.active and tenure.began > before.began

    def _tenure_over(self) -> None:
        if self._look_at_tenures is None:
            # Once for all that end together: there may be many keys.
            self._look_at_tenures = self._loop.call_soon(self._let_go_of_what_others_have)

    def _let_go_of_what_others_have(self) -> None:
        self._look_at_tenures = None
        if self.state is _STOPPING:
            return
        for cell in tuple(self.mailbox.cells.values()):
            if cell.tenure is not None and cell.tenure.over:
                self.let_go(cell)

    def forget(self, cell: KeyCell) -> None:
        """Forget the state of a key, and the key unless something waits in it."""
        cell.reset()
        if self._eviction is not None:
            self._eviction.forget(cell)
        if cell.stage is _IDLE:
            self.mailbox.forget(cell)
        self.lanes[0].stats["keys.forgotten"] += 1

    def has_left(self, cell: KeyCell) -> None:
        """Note that ``on_passivate`` of a key was called."""
        self._leaving.pop(cell, None)
        if self.state is _STOPPING:
            self._left[cell] = None
        else:
            self.forget(cell)

    def has_come_back(self, cell: KeyCell) -> None:
        """Make the state of a key anew if a message comes after it has left."""
        if self._left and cell in self._left:
            del self._left[cell]
            cell.reset()


def _printable(key: str) -> str:
    """Return a key as it stands in chains of waiting actors: short, and different for each key."""
    text = quote(key, safe="") if len(key) <= _LONGEST_NAME else ""
    if 0 < len(text) <= _LONGEST_NAME:
        return text
    # A quoted key has no such sign.
    return f"#{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
