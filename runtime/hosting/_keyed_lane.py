"""The lanes of a keyed actor, each of which works for one key after another."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar, copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..._environment import Environment
from ..._limited_log import LimitedLog
from ..._logs import ActorLog
from ..._texts import quoted, reason_of
from ...actors import Actor, Mailbox, refuse_unrun, run_apart
from ...transports import Delivery, DeliveryState, Envelope
from ..handling._argument_values import ProducerScope
from ..handling._failures_and_retries import Pauses, as_failure
from ..injection._handler_context import ContextOwner
from ..messaging._socket import Socket
from ..messaging._turn import current_turn
from ..options._retry_policy import Reject
from ..routing._routed_deliveries import Route, RoutedDelivery, tenure_of
from ..routing._router import Router
from ._keyed_mailbox import UNSET, KeyCell
from ._lane import Lane
from ._message_source import WorkSource, processor_of
from ._timers import ScheduledCall

if TYPE_CHECKING:
    from ._actor_observer import Observer
    from ._actor_runner import ActorRunner
    from ._keyed_host import KeyedHost

__all__ = ["LEAVE", "STATE", "WAKE", "WORK", "KeyedLane", "KeyedSocket", "KeyedSource"]

T = TypeVar("T")
_MOST_ROUTES = 1_000
# Characters. Strangers may invent keys, and `hot=` counts them without looking at their lengths.
_LONGEST_KEY = 1_024
# Members of an Enum are slow to look up.
_SETTLED = DeliveryState.SETTLED


class _Work:
    """There is something to do in a cell."""


class _Leave:
    """The state of a cell is to be forgotten."""


class _Wake:
    """It is time to do something in a cell."""


class _Inactive:
    """Stands for the instance of a key whose state is not there yet."""


WORK = _Work()
LEAVE = _Leave()
WAKE = _Wake()
STATE = "state"
"""The attribute of an instance that has the state of its key."""
_INACTIVE = _Inactive()
_at_work_on: ContextVar[tuple[KeyedLane, object] | None] = ContextVar(
    "spa_dat_beside_messages", default=None
)
"""In a scheduled call or an `on_passivate` of a key: its lane, and an object that stands for it."""


class KeyedSource:
    """What waits in the cells of a keyed actor, for one of its lanes.

    Attributes:
        current: the delivery that the lane is handling.

    Args:
        lane: the lane.
        host: the actor's.
    """

    task = None

    def __init__(self, lane: KeyedLane, host: KeyedHost) -> None:
        self._lane = lane
        self._host = host
        self.local = Mailbox(lane.options.mailbox)
        self.mailbox = host.mailbox
        self.processor = processor_of(lane)
        self.current: tuple[RoutedDelivery, ...] = ()

    async def receive(self, instance: Any, item: Any) -> None:
        """Handle the next message of a cell; if the lane is to end, as long as there are some."""
        if item is not WORK:
            raise TypeError(f"actor {self._lane.actor_name!r} got {item!r}")
        host, lane = self._host, self._lane
        goes_on = True
        while goes_on:
            if host.burst <= 0:
                try:
                    await asyncio.sleep(0)
                except BaseException:
                    host.take_back(lane)
                    raise
            taken = host.take()
            if taken is None:
                goes_on = host.next_work(lane)
                continue
            cell, work = taken
            lane.cell, lane.item = cell, work
            try:
                # In here, because every further coroutine costs each message something.
                if isinstance(work, Delivery):
                    self.current = (work,)
                    tenure = tenure_of(work)
                    if tenure is not cell.tenure and host.note_tenure(cell, tenure):
                        await lane.passivate(cell)
                        lane.item = work
                    work.route = lane.route_of(work.route)
                    if lane.observer is not None:
                        lane.observer.collected(lane, self.current)
                    await lane.processor.handle(lane.instance_for(cell, instance), work)
                    if work.state is not _SETTLED:
                        host.note_unsettled(cell, work)
                elif work is LEAVE:
                    await lane.passivate(cell)
                elif work is WAKE:
                    await lane.wake(cell)
                else:
                    await lane.make_call(cell, work)
            except BaseException:
                self._put_down(cell)
                host.leave_work(lane)
                raise
            # `_put_down`, without the cost of a call.
            lane.cell = lane.item = None
            self.current = ()
            host.done(cell)
            goes_on = host.next_work(lane)

    def _put_down(self, cell: KeyCell) -> None:
        self._lane.cell = self._lane.item = None
        self.current = ()
        self._host.done(cell)

    def flush(self) -> None:
        """Do nothing: it holds nothing back."""


class KeyedLane(Lane):
    """A lane of a keyed actor: it handles one message at a time, each with the state of its key.

    Attributes:
        cell: the cell that it works for; None while it has nothing to do.
        item: what it handles of that.
        has_place: whether it counts among those at work.

    Args:
        runner: the runner of its actor.
        host: the actor's.
        number: which lane it is.
    """

    def __init__(self, runner: ActorRunner, host: KeyedHost, number: int) -> None:
        self.host = host
        self.cell: KeyCell | None = None
        self.item: Any = None
        self.has_place = False
        self._problem: BaseException | None = None
        self._without_key: Any = None
        self._routes: dict[Route, Route] = {}
        super().__init__(runner, number)
        # Which lane it is says nothing: the next message of a key goes to another one.
        self.address: str = self.source
        self.observer: Observer | None = runner.run.observer

    def _make_work_source(self) -> WorkSource:
        return KeyedSource(self, self.host)

    def _make_pauses(self) -> Pauses:
        return _Pauses(self)

    def _make_log(self) -> LimitedLog:
        lanes = self.host.lanes
        return lanes[0].log if lanes else super()._make_log()

    def _make_socket(self) -> Socket:
        options, runtime = self.options, self.runner.runtime
        return KeyedSocket(
            self.connection, self.source, runtime, options.codec, options.wire, lane=self
        )

    def _make_instance(self) -> Actor:
        self.generation: object = object()
        self.timers.renew()
        return Actor()

    # The state of the key that it works for.

    @property
    def state(self) -> Any:
        """The state of the key that it works for."""
        cell = self.cell
        return None if cell is None else self.host.state_of(cell)

    @state.setter
    def state(self, value: Any) -> None:
        if self.cell is not None:
            self.host.set_state(self.cell, value)

    @property
    def context_owner(self) -> ContextOwner:
        """See `HandlingLane.context_owner`: the key, to which a context belongs for good."""
        assert self.cell is not None
        return _KeyContext(self, self.cell)

    def alias(self) -> str:
        """Return the name of the key that it works for, in chains of waiting actors."""
        cell = self.cell
        return self.name if cell is None else self.host.name_of(cell.key)

    def instance_for(self, cell: KeyCell, shared: Any) -> Any:
        """Return what the handlers of a key are called on.

        Args:
            cell: the cell of the key.
            shared: what the handlers of all keys are called on, if they are functions.
        """
        self._without_key = shared
        self._problem = None
        self.host.has_come_back(cell)
        if not cell.active:
            if len(cell.key) > _LONGEST_KEY:
                self._problem = Reject(
                    f"the key {quoted(cell.key, 80)} has {len(cell.key)} characters, and"
                    f" {_LONGEST_KEY} are allowed"
                )
                return _INACTIVE
            if not self._makes_at_once(cell):
                return _INACTIVE
            # Most states are made by calling a class: nothing has to be awaited for that.
            try:
                copy_context().run(self._make, cell)
            except Exception as error:  # noqa: BLE001 (the user's code)
                # The attempt at the message is to fail with it.
                self._problem = error
                return _INACTIVE
        return cell.instance if self.host.is_class else shared

    def _makes_at_once(self, cell: KeyCell) -> bool:
        """Return whether nothing has to be awaited to make the state of a key."""
        return not self.host.activates

    def _make(self, cell: KeyCell) -> None:
        state = self.spec.make_state()
        if not self.host.is_class:
            cell.keep(state)
            return
        instance = self._new_instance()
        if self.options.state is not None:
            setattr(instance, STATE, state)
        cell.keep(UNSET, instance)

    async def _activate(self, cell: KeyCell) -> None:
        """Make the state of a key, within an attempt at a message; raise what prevents it."""
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        copy_context().run(self._make, cell)
        if not self.host.activates:
            return
        try:
            await self._within_deadline(self._call_hook(cell, "on_activate"), "on_activate")
        except BaseException:
            cell.reset()
            raise

    async def passivate(self, cell: KeyCell) -> None:
        """Forget the state of a key, after its ``on_passivate``."""
        if self.host.passivates and cell.active:
            self._begin_beside_messages(object())
            try:
                call = run_apart(self._call_hook, cell, "on_passivate")
                await self._within_deadline(call, "on_passivate")
            except GeneratorExit:
                raise
            except BaseException as raised:
                error = as_failure(raised)
                self.stats["keys.passivation_failed"] += 1
                self.log.error(
                    "on_passivate of key %s failed: %s",
                    quoted(cell.key, 200),
                    reason_of(error),
                    exc_info=error,
                )
                self.failed("on_passivate", error)
        self.host.has_left(cell)

    async def wake(self, cell: KeyCell) -> None:
        """Do what it is time for in a key; only durable keys have anything of the kind."""
        raise NotImplementedError

    async def _call_hook(self, cell: KeyCell, name: str) -> None:
        hook = self.spec.hooks[name]
        arguments = hook.injection.bind(_KeyScope(self, hook, cell))
        result = hook.bind(cell.instance)(**arguments)
        if hook.injection.is_async:
            result = await result
        refuse_unrun(result, "it")

    def _within_deadline(self, call: Awaitable[None], what: str) -> Awaitable[None]:
        return self._caller.cut_off_at_deadline(call, what)

    def _begin_beside_messages(self, work: object) -> None:
        """Note that the lane is at something that belongs to no message, and what."""
        current_turn.set(None)
        self.item = work
        _at_work_on.set((self, work))

    @property
    def trouble(self) -> str | None:
        """As in `Lane`; the first lane says what is wrong with the keys."""
        about_keys = self.host.trouble if self is self.host.lanes[0] else None
        return super().trouble or about_keys

    # Start and stop.

    def pause(self) -> None:
        """As in `Lane`."""
        self.host.pause()
        super().pause()

    def resume(self) -> None:
        """As in `Lane`."""
        super().resume()
        self.host.resume()

    def begin_afresh(self) -> bool:
        """As in `Lane`, of all keys; the lanes stay."""
        if self._ref is None or self.local.closed:
            return False
        if self is self.host.lanes[0]:
            self.host.begin_afresh()
        return True

    def crash(self, unfinished: Any) -> bool:
        """As in `Lane`: the state of its key is lost; with the first lane, also of idle keys."""
        cell = self.cell
        if not super().crash(unfinished):
            return False
        if cell is not None:
            cell.reset()
        if self is self.host.lanes[0]:
            self.host.lose_idle()
        return True

    # Messages.

    def _receive(self) -> Callable[[Any, Any], Awaitable[None]]:
        """As in `Lane`: there are no other items than those of its source."""
        return self.work_source.receive

    async def make_call(self, cell: KeyCell, call: ScheduledCall) -> None:
        """Make a call that a key has scheduled, unless its state was forgotten since."""
        if cell.timers is None:
            return
        self._begin_beside_messages(call)
        self.report_call(await cell.timers.run(call, self._thread.run))

    def route_of(self, route: Route) -> Route:
        """Return a message's route with a tally of this lane's."""
        own = self._routes.get(route)
        if own is None:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            own = replace(route, tally=self.tallies.of(route.filter))
            self._routes[route] = self._routes[own] = own
        return own

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """As in `Lane`; none while the state of the key is not there."""
        return [None] * len(self.handlers) if instance is _INACTIVE else super().direct(instance)

    def invoke(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """As in `Lane`; makes the state of the key first, if it is not there."""
        if instance is not _INACTIVE:
            return super().invoke(instance, index, arguments, scope)
        return self._activate_and_invoke(index, arguments, scope)

    async def _activate_and_invoke(
        self, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Any:
        cell = self.cell
        assert cell is not None
        await self._activate(cell)
        state = self.host.state_of(cell)
        complete = {name: state if value is UNSET else value for name, value in arguments.items()}
        instance = cell.instance if self.host.is_class else self._without_key
        return await super().invoke(instance, index, complete, scope)

    async def current(self, instance: Any) -> Any:
        """As in `Lane`: the key's instance, which may have to be made."""
        cell = self.cell
        if cell is None or not cell.active:
            return _INACTIVE
        return cell.instance if self.host.is_class else self._without_key

    def _thread_lost(self) -> None:
        self._run.thread_lost(self)
        self._give_up_socket()
        # The abandoned code may go on, and must not share anything with what comes after it.
        if self.cell is not None:
            self.cell.reset()

    def chain_part(self, envelope: Envelope, key: str) -> str:
        """Return what stands for a message of the actor in chains of waiting actors: its key."""
        return self.host.part_of(key)

    def refuses_as(self, name: str, envelope: Envelope, handler: int) -> bool:
        """Do as `refuses` for a key whose address this is."""
        return self._refuses(name, envelope, handler)

    def schedule(
        self, cell: KeyCell, delay: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> ScheduledCall:
        """Schedule a call in a key, as `Context.later` does."""
        self.refuse_after_end()
        # Code in the thread, and what it has left behind on the loop, may come at the same time.
        with self.host.making_timers:
            timers = cell.timers
            if timers is None:
                timers = cell.timers = self.timers.beside(_Box(self.host, cell))
        return timers.schedule(delay, function, args)

    def rest(self) -> None:
        """End its thread until there is something to do in it."""
        self._thread.rest()

    def delete_key(self, cell: KeyCell) -> None:
        """Delete the state of a key, as `Context.delete` does; see `Lane.delete`."""
        self.delete()

    def remind_key(self, cell: KeyCell, name: str, payload: object, due: float) -> None:
        """Set a reminder of a key, as `Context.remind` does; see `Lane.remind`."""
        self.remind(name, payload, due)

    def forget_reminder_of(self, cell: KeyCell, name: str) -> None:
        """Remove a reminder of a key, as `Context.forget_reminder` does."""
        self.forget_reminder(name)

    # Places.

    async def away(self, waiting: Coroutine[Any, Any, T], item: Any) -> T:
        """Await something without a place among those at work.

        Args:
            waiting: what to await.
            item: what the lane handles meanwhile; if that is something else, the place is not ours.
        """
        if not self.has_place or item is not self.item:
            return await waiting
        self.leave()
        try:
            result = await waiting
        except Exception:
            await self.come_back(item)
            raise
        await self.come_back(item)
        return result

    def leave(self) -> Any:
        """Give the lane's place back while its message waits; return what `come_back` needs."""
        if self.has_place:
            self.host.give_place(self)
        return self.item

    async def come_back(self, item: Any) -> None:
        """Wait for a place again."""
        # What a handler has left behind may come back when the lane is at something else.
        if item is self.item and not self.has_place:
            await self.host.get_place(self, item)


class _Pauses(Pauses):
    """The waits between attempts of one lane, during which it has no place."""

    def __init__(self, lane: KeyedLane) -> None:
        super().__init__()
        self._lane = lane

    async def wait(self, seconds: float, router: Router | None = None) -> bool:
        """As in `Pauses`."""
        lane = self._lane
        item = lane.leave()
        lane.rest()
        goes_on = await super().wait(seconds, router)
        if goes_on:
            await lane.come_back(item)
        # A message that was interrupted has to be given back at once: soon it may come again.
        return goes_on


class KeyedSocket(Socket):
    """The socket of one lane, which has no place while a handler waits for replies."""

    def __init__(self, *args: Any, lane: KeyedLane) -> None:
        super().__init__(*args)
        self._lane = lane

    def _request(self, *args: Any, **options: Any) -> Coroutine[Any, Any, list[Envelope]]:
        request = super()._request(*args, **options)
        turn = current_turn.get()
        if turn is None:
            # A call may have the socket of another lane, whose handler has scheduled it.
            lane, item = _at_work_on.get() or (None, None)
        else:
            lane, item = self._lane, turn.delivery if turn.active else None
        return request if lane is None or item is None else lane.away(request, item)


class _KeyScope(ProducerScope):
    """What the arguments of a hook are taken from."""

    def __init__(self, lane: KeyedLane, handler: Any, cell: KeyCell) -> None:
        super().__init__(lane, handler)
        self._captures = {str(lane.options.per): cell.key}

    @property
    def captures(self) -> Mapping[str, str]:
        """The key, by the name of its capture."""
        return self._captures


class _Box:
    """Where the calls that a key has scheduled go when they are due."""

    def __init__(self, host: KeyedHost, cell: KeyCell) -> None:
        self._host = host
        self._cell = cell

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._host.mailbox.closed

    def force(self, item: Any) -> None:
        """Have a call made after everything that waits in its key."""
        self._host.mailbox.put_last(self._cell, item)


class _KeyContext:
    """Whom the contexts of a key's handlers belong to: the key, for as long as it has its state."""

    __slots__ = ("_cell", "_lane")

    def __init__(self, lane: KeyedLane, cell: KeyCell) -> None:
        self._lane = lane
        self._cell = cell
        if cell.life is None:
            cell.life = object()

    @property
    def application(self) -> str:
        return self._lane.application

    @property
    def actor_name(self) -> str:
        return self._lane.actor_name

    @property
    def instance(self) -> str:
        return self._lane.instance

    @property
    def environment(self) -> Environment:
        return self._lane.environment

    @property
    def random(self) -> random.Random:
        return self._lane.environment.random

    @property
    def stats(self) -> Counter[str]:
        return self._lane.stats

    @property
    def users_log(self) -> logging.LoggerAdapter[logging.Logger]:
        return ActorLog(self._lane.users_log.logger, self._lane.source)

    @property
    def generation(self) -> object:
        return self._cell.life

    @property
    def state(self) -> Any:
        return self._lane.host.state_of(self._cell)

    @state.setter
    def state(self, value: Any) -> None:
        self._lane.host.set_state(self._cell, value)

    def later(
        self, delay: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> ScheduledCall:
        return self._lane.schedule(self._cell, delay, function, args)

    def delete(self) -> None:
        self._lane.delete_key(self._cell)

    def remind(self, name: str, payload: object, due: float) -> None:
        self._lane.remind_key(self._cell, name, payload, due)

    def forget_reminder(self, name: str) -> None:
        self._lane.forget_reminder_of(self._cell, name)

    def request_stop(self) -> None:
        self._lane.request_stop()
