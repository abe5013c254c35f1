"""One actor at work: its task, its loop over the mailbox, its supervision and its end."""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from sys import getrefcount
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._logs import get_logger
from .._texts import error_name, forget_earlier, inspectable, quoted, reason_of
from ..errors import ActorError, ActorStopped, ConfigurationError, RestartLimitReached
from ._actor import Actor
from ._deadlocks import CURRENT, Frame, current_frame, deadlock, find_cycle, variables_of
from ._isolation import (
    DONE,
    End,
    FirstSteps,
    Isolated,
    TaskGuard,
    end_attempt,
    give_back_steps,
    go_on_apart,
    raised_by_hand,
    run_apart,
    take_steps,
)
from ._local_message import LocalMessage
from ._mailbox import Mailbox
from ._pykka_adapter import ActorFuture, PykkaRef, is_handed_on
from ._reference import ActorRef
from ._restart import RestartCounter, RestartPolicy
from ._unrun_results import refuse_unrun

if TYPE_CHECKING:
    from ._system import ActorSystem

__all__ = ["ActorCell", "call_hook", "receive_message", "work"]

A = TypeVar("A", bound=Actor)

_log = get_logger("spa_dat.actors")
# Until the first message.
_NO_FRAME = Frame("", active=False)
# How many messages may be handled before the event loop gets a turn: few enough that what they
# have sent goes out while the next ones are handled.
BURST = 64


class ActorCellState(enum.Enum):
    """The stages of an actor's life.

    Attributes:
        STARTING: it has no instance yet, or its on_start has not succeeded.
        WAITING: on_start has failed and will be retried after a pause.
        RUNNING: it handles messages.
        RENEWING: as RUNNING, but the instance is replaced after the current message.
        RENEWED: a new instance was started in the middle of a message, and gets the next one.
        STOPPED: it ended after it had started.
        FAILED: it ended before it had started: given up, stopped or killed.
    """

    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    RENEWING = "renewing"
    RENEWED = "renewed"
    STOPPED = "stopped"
    FAILED = "failed"


# Members of an Enum are slow to look up, and each message needs one.
_STARTING = ActorCellState.STARTING
_WAITING = ActorCellState.WAITING
_RUNNING = ActorCellState.RUNNING
_RENEWING = ActorCellState.RENEWING
_RENEWED = ActorCellState.RENEWED
_STOPPED = ActorCellState.STOPPED
_FAILED = ActorCellState.FAILED

# The diagram in docs/design.md.
_NEXT = {
    _STARTING: (_RUNNING, _RENEWED, _WAITING, _FAILED),
    _WAITING: (_STARTING,),
    _RUNNING: (_RENEWING, _STARTING, _STOPPED),
    _RENEWING: (_STARTING, _STOPPED),
    _RENEWED: (_RUNNING, _RENEWING, _STARTING, _STOPPED),
    _STOPPED: (),
    _FAILED: (),
}


class ActorCell(Generic[A]):
    """The part of an actor that persists while instances of the user's class come and go.

    Attributes:
        state: the stage of its life.
        receive: handles whatever is not a local message.
        discard: end after the current message, whatever the mailbox holds. (A closed mailbox
            means: end once it is empty.)
        leaves: whether `work` is to return after the current message: to end, to wait until
            `resume`, or for a fresh instance.
        ended_with: why it was given up; None unless it was.
        owner: its actor system.
        guard: decides who may cancel its task.
        failures: how many messages have failed with nobody waiting for the answer.
        alias: returns the name that it goes by while it handles the current message; None for its
            own.
    """

    __slots__ = (
        "_afresh",
        "_factory",
        "_gate",
        "_leftover",
        "_pause",
        "_pykka_ref",
        "_pykka_stops",
        "_restart",
        "_started",
        "_stopped",
        "_urn",
        "actor_class",
        "alias",
        "discard",
        "ended_with",
        "failures",
        "guard",
        "instance",
        "leaves",
        "mailbox",
        "name",
        "owner",
        "receive",
        "ref",
        "state",
        "task",
    )

    def __init__(
        self,
        owner: ActorSystem,
        name: str,
        mailbox: Mailbox,
        factory: Callable[[], A],
        restart: RestartPolicy,
        receive: Callable[[A, Any], Awaitable[None]] | None,
        leftover: Callable[[list[Any]], None] | None,
        stopped: Callable[[], None] | None,
        alias: Callable[[], str] | None = None,
    ) -> None:
        self.owner: ActorSystem = owner
        self._factory: Callable[[], A] | None = factory
        self._restart = restart
        self.receive: Callable[[A, Any], Awaitable[None]] = receive or receive_message
        self._leftover = leftover
        self._stopped = stopped
        self.state: ActorCellState = _STARTING
        self.discard: bool = False
        self.leaves: bool = False
        self._afresh = False
        # What a paused actor waits for.
        self._gate: asyncio.Future[None] | None = None
        self.ended_with: RestartLimitReached | None = None
        self._pause: asyncio.Future[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._pykka_ref: PykkaRef | None = None
        self._pykka_stops: list[ActorFuture] | None = None
        self._urn: str | None = None
        self.failures: int = 0
        self.alias: Callable[[], str] | None = alias
        self.name: str = name
        self.mailbox: Mailbox = mailbox
        self.ref: ActorRef[A] = ActorRef(self)
        self.actor_class: type[Actor] = Actor
        # Context variables that the constructor sets must not leak to the spawner or other actors.
        self.instance: A | None = copy_context().run(self._create, factory)
        loop = asyncio.get_running_loop()
        mailbox.bind(loop, name)
        self.task: asyncio.Task[None] = loop.create_task(self._run(), name=f"actor {name}")
        self.guard: TaskGuard = TaskGuard(self, self.task, self._cancellation_cleared)
        # In a context that is there already: one for each actor would be one more to keep.
        self.task.add_done_callback(self._ended, context=owner.context)

    @property
    def address(self) -> str:
        """The name, preceded by the system's name if it has one."""
        name = self.name if self.alias is None else self.alias()
        return f"{self.owner.name}/{name}" if self.owner.name else name

    @property
    def urn(self) -> str:
        """The actor's name in pykka."""
        if self._urn is None:
            self._urn = f"urn:uuid:{self.owner.environment.new_id()}"
        return self._urn

    @property
    def pykka_ref(self) -> PykkaRef:
        """The `pykka.ActorRef` of this actor, created on first use."""
        if self._pykka_ref is None:
            self._pykka_ref = PykkaRef(self)
        return self._pykka_ref

    @property
    def up(self) -> bool:
        """Whether on_start has succeeded for the current instance, or for the last one."""
        return self.state not in (_STARTING, _WAITING, _FAILED)

    def current_instance(self) -> A | None:
        """Return the current instance; None between two instances and after the end."""
        return self.instance

    # Called by others

    async def started(self) -> None:
        """Wait until on_start has succeeded."""
        self._refuse_cycle()
        if not self.up and not self.task.done():
            if self._started is None:
                self._started = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._started)
        if not self.up:
            raise self.ended_with or self.stopped()

    def request_stop(self, *, drain: bool) -> None:
        """Take no more messages, and end after those in the mailbox or after the current one."""
        if not drain:
            self.discard = True
        self.mailbox.close()
        # Whoever stops handles what is left, and needs no other instance for that.
        self._afresh = False
        self.resume()
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def stop(self, *, drain: bool) -> None:
        """Request a stop and wait for the end, unless the end has to wait for the caller."""
        self.request_stop(drain=drain)
        if find_cycle(current_frame(), self) is None:
            await asyncio.wait((self.task,))

    def stop_threadsafe(self, future: ActorFuture | None) -> None:
        """Request a stop from any thread; ``future`` completes when the actor has ended."""
        try:
            if asyncio._get_running_loop() is self.task.get_loop():
                self._stop_for(future)  # at once: anything asked after this is too late
                return
            self.task.get_loop().call_soon_threadsafe(self._stop_for, future)
        except RuntimeError:
            if future is not None:
                future.set_exception(self.stopped())

    def kill(self) -> None:
        """End now, by cancelling whatever the actor is doing."""
        self.request_stop(drain=False)
        self.guard.cancel(End.KILL)

    def restart(self) -> bool:
        """Drop the instance in the middle of what it is doing, and start a new one.

        The message it was working on is abandoned; the mailbox stays. False when it is not up.
        """
        if not self.up or self.mailbox.closed:
            return False
        self._become(_STARTING)
        self.guard.cancel(End.RESTART)
        return True

    def pause(self) -> None:
        """Take nothing more out of the mailbox after the current message, until `resume`."""
        if self._gate is None and not self.mailbox.closed:
            self._gate = self.task.get_loop().create_future()
            self._note_orders()

    def resume(self) -> None:
        """Undo `pause`; a stop does so, too."""
        gate, self._gate = self._gate, None
        self._note_orders()
        if gate is not None:
            _wake(gate)

    def begin_afresh(self) -> bool:
        """Stop the instance after the current message, and start a new one; the mailbox stays.

        False when it is starting, and gets a new instance anyway, or has ended.
        """
        if not self.up or self.mailbox.closed:
            return False
        self._afresh = True
        self._note_orders()
        if self._gate is None:
            # It may be waiting for a message.
            self.mailbox.wake()
        else:
            gate, self._gate = self._gate, self.task.get_loop().create_future()
            _wake(gate)
        return True

    def _note_orders(self) -> None:
        self.leaves = self.discard or self._afresh or self._gate is not None

    def renew(self) -> None:
        """Have a new instance take over, without the old one's on_stop; see `current`."""
        # An actor that is starting gets a new instance anyway.
        if self.state in (_RUNNING, _RENEWED):
            self._become(_RENEWING)

    async def current(self) -> A | None:
        """Return the instance, after `renew` a new one; None if its start fails for good."""
        if self.state is _RENEWING:
            self._become(_STARTING)
            self.instance = None
            self.discard = not await self._bring_up(_RENEWED) or self.discard
            self._note_orders()
            CURRENT.set(Frame(self))
        return self.instance

    async def next_instance(self) -> A | None:
        """Return the instance for the next message, as `current` does, once a message has ended."""
        instance = await self.current()
        if self.state is _RENEWED:
            self._become(_RUNNING)
        return instance

    # The life of the actor

    async def _run(self) -> None:
        try:
            while await self._bring_up(_RUNNING):
                try:
                    afresh = await self._work()
                except asyncio.CancelledError:
                    if self.guard.restarted():
                        self.instance = None
                        continue
                    await self._take_down()
                    raise
                await self._take_down()
                if not afresh:
                    break
                self.instance = None
                self._become(_STARTING)
        except asyncio.CancelledError:
            if self.guard.end is not End.KILL:
                self.report(ActorError(_task_cancelled(self.address)), "task")
            raise
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self.report(error, "task")
            raise
        finally:
            self._finish()

    async def _work(self) -> bool:
        """Work until the end, or until a new instance is to take over; return whether it is."""
        while True:
            await work(self)
            if self.discard:
                return False
            if self._afresh:
                self._afresh = False
                self._note_orders()
                return True
            if self._gate is not None:
                await self._gate
            elif self.mailbox.closed and not self.mailbox.items:
                return False

    def _become(self, state: ActorCellState) -> None:
        assert state in _NEXT[self.state], f"{self.address}: {self.state} to {state}"
        self.state = state

    async def _bring_up(self, up: ActorCellState) -> bool:
        """Start an instance, which makes the actor ``up``; return whether one has started."""
        restarts: RestartCounter | None = None
        while not self.discard:
            error = await call_hook(self, self._begin)
            if error is None:
                self._become(up)
                self._announce()
                return True
            self.instance = None
            restarts = restarts or RestartCounter(self._restart, self.owner.environment.random)
            closed = self.mailbox.closed
            delay = None if closed else restarts.next_delay(error, self.task.get_loop().time())
            self.report(error, "on_start", again_in=delay)
            if delay is None:
                if not closed:
                    self._give_up(error)
                break
            await self._wait(delay)
            if self.mailbox.closed:
                break
        return False

    def _begin(self) -> Any:
        if self.instance is None and self._factory is not None:
            self.instance = self._create(self._factory)
        return self.instance.on_start() if self.instance is not None else None

    def _create(self, factory: Callable[[], A]) -> A:
        instance = factory()
        if not isinstance(instance, Actor):
            raise ConfigurationError(
                f"the factory of actor {self.name!r} returned {instance!r}, which is not an Actor;"
                " derive its class from spa_dat.Actor"
            )
        if instance._spa_cell not in (None, self):
            raise ConfigurationError(
                f"the factory of actor {self.name!r} returned {instance}, which is already running;"
                " create a new instance in each call"
            )
        instance._spa_cell = self
        self.actor_class = type(instance)
        return instance

    async def _wait(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        self._become(_WAITING)
        self._pause = loop.create_future()
        timer = loop.call_later(delay, _wake, self._pause)
        try:
            await self._pause
        finally:
            timer.cancel()
            self._pause = None
            self._become(_STARTING)

    async def _take_down(self) -> None:
        if self.instance is not None:
            error = await call_hook(self, self.instance.on_stop)
            if error is not None:
                self.report(error, "on_stop")

    def _finish(self) -> None:
        self.mailbox.close()
        unhandled = 0
        foreign: list[Any] = []
        for item in self.mailbox.extract(lambda item: True):
            if not isinstance(item, LocalMessage):
                foreign.append(item)
            elif item.reply is None:
                unhandled += 1
            else:
                item.fail(self.stopped())
        if foreign and self._leftover is not None:
            try:
                self._leftover(foreign)
            except Exception as error:  # noqa: BLE001  (the rest of the end does not depend on it)
                _log.error("the leftover hook of actor %r raised", self.address, exc_info=error)
        else:
            unhandled += len(foreign)
        if unhandled:
            _log.warning("actor %r stopped with %d messages unhandled", self.address, unhandled)
            self.owner.actor_left(self.ref, unhandled)
        self.instance = self._factory = None
        self._become(_STOPPED if self.up else _FAILED)
        self.owner.actor_ended(self)
        self._announce()
        for future in self._pykka_stops or ():
            future.set(None)

    # Inside

    def _stop_for(self, future: ActorFuture | None) -> None:
        self.request_stop(drain=True)
        if future is None:
            return
        if self.task.done():
            future.set_exception(self.stopped())
            return
        if self._pykka_stops is None:
            self._pykka_stops = []
        self._pykka_stops.append(future)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.guard.release()
        if self.state not in (_STOPPED, _FAILED):
            # A task that is cancelled before its first step never runs its own cleanup.
            self._finish()
        # Retrieving the exception marks it as seen: it has been reported.
        ended_well = not task.cancelled() and task.exception() is None and self.ended_with is None
        if ended_well and self._stopped is not None:
            self._stopped()

    def _cancellation_cleared(self) -> None:
        error = ActorError(f"the task of actor {self.address!r} was cancelled by its own code")
        self.owner.actor_failed(self.ref, error, "cancellation")

    def _announce(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            _wake(started)

    def _give_up(self, error: BaseException) -> None:
        self.ended_with = RestartLimitReached(
            f"actor {self.address!r} {self._restart.problem(error)} and stays stopped; the last"
            f" error was {quoted(error)}"
        )
        self.ended_with.__cause__ = error
        self.report(self.ended_with, "restart")

    def report(self, error: BaseException, where: str, *, again_in: float | None = None) -> None:
        """Log a failure and report it to the system.

        The traceback is logged once: with the last in a series of failed starts.

        Args:
            error: what was raised.
            where: as in the system's ``on_failure``.
            again_in: seconds until the actor is restarted; None if it is not.
        """
        kind = self.address, where, error_name(error)
        if again_in is not None:
            text = "actor %r failed in %s and will be restarted in %.2g s: %s"
            self.owner.log.warning(text, self.address, where, again_in, quoted(error), kind=kind)
        else:
            traceback = None if where == "restart" else error
            text = "actor %r failed in %s: %s"
            self.owner.log.error(
                text, self.address, where, quoted(error), exc_info=traceback, kind=kind
            )
        self.owner.actor_failed(self.ref, error, where)

    def stopped(self) -> ActorStopped:
        """Return the error for whoever wants something from the actor after its end."""
        return ActorStopped(f"actor {self.address!r} has stopped")

    def _refuse_cycle(self) -> None:
        if (cycle := find_cycle(current_frame(), self)) is not None:
            raise deadlock(cycle, self.address)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# One loop on purpose: a call for each step would cost more than the steps. Its fast paths must be
# equivalent to what they replace, `Mailbox.get_nowait`, `run_apart`, `go_on_apart` and `Frame.end`,
# each of which says so: `test_actors_short_ways` runs both.
async def work(cell: ActorCell[Any]) -> None:  # noqa: C901, PLR0912, PLR0915
    """Handle items one after another until the mailbox is closed and nothing is left to do.

    Returns only when the actor is to end.
    """
    mailbox, instance, receive, guard = cell.mailbox, cell.instance, cell.receive, cell.guard
    assert instance is not None
    items = mailbox.items
    is_async = inspect.iscoroutinefunction(instance.on_receive)
    left, looks, ended = BURST, True, False
    frame = _NO_FRAME
    context: Any = None
    # The frame may serve the next message too, as long as these have as many references.
    variables: object | None = None
    steps: FirstSteps | None = None
    step: Callable[[Any], Any] | None = None
    frame_count = variables_count = 0
    while not cell.leaves:
        if not items:
            # The frame of the last message ends before anything else can run; see below.
            frame.active, ended = False, True
            if mailbox.closed:
                return
            if steps is not None:
                give_back_steps(steps)
            # The last message must not be kept alive while the actor is idle.
            item = reply = result = context = rest = steps = step = None
            await mailbox.arrival()
            left = BURST
            if variables is not None:
                context = copy_context()
            continue
        if not left:
            frame.active, ended = False, True
            left, looks = BURST, True
            await asyncio.sleep(0)
            continue
        left -= 1
        # get_nowait(), without the cost of a call
        item = items.popleft()
        if mailbox.looks_after:
            item = mailbox.taken(item)
        if (
            variables is not None
            and getrefcount(frame) == frame_count
            and getrefcount(variables) == variables_count
        ):
            # Nothing else knows the frame of the message before: one of its own would make no
            # difference, except that it is a third of what a tell costs.
            if ended:
                frame.active, ended = True, False
        else:
            if variables is not None:
                frame.active = False
            ended, variables = False, None
            frame = Frame(cell)
            CURRENT.set(frame)
            if looks or isinstance(item, LocalMessage):
                context = copy_context()
            if looks:
                # Not for each message: it costs more than it saves if it saves nothing.
                looks = False
                variables = variables_of(context, frame)
                frame_count, variables_count = getrefcount(frame), getrefcount(variables)
        try:
            if isinstance(item, LocalMessage):
                reply = item.reply
                if reply is not None:
                    if reply.done():
                        continue
                    frame.parent, frame.waiter = item.asker, reply
                # As run_apart(), without the cost of a call.
                try:
                    if type(item) is not LocalMessage:
                        result = context.run(item.hand_to, instance)
                    elif is_async:
                        result = instance.on_receive(item.message)
                    else:
                        result = context.run(instance.on_receive, item.message)
                except GeneratorExit as error:
                    raised_by_hand(error)
                if type(result) is CoroutineType:
                    try:
                        if reply is None:
                            if step is None:
                                steps = take_steps()
                                step = steps.send
                            waits_for = context.run(step, result)
                        else:
                            waits_for = context.run(result.send, None)
                    except StopIteration as done:
                        result = done.value
                    except GeneratorExit as error:
                        raised_by_hand(error)
                    else:
                        if waits_for is not DONE:
                            went_on = steps if reply is None else None
                            rest = Isolated(context, result, waits_for, went_on)
                            del waits_for
                            result = await rest
                elif hasattr(result, "__await__") and not is_handed_on(item, result):
                    result = await go_on_apart(context, result)
                if reply is not None:
                    item.answer(result)
            else:
                reply = None
                await receive(instance, item)
                if variables is not None and CURRENT.get() is not frame:
                    variables = None
        except asyncio.CancelledError as error:
            variables = steps = step = None
            if guard.end is not None:
                if isinstance(item, LocalMessage):
                    item.fail(cell.stopped())
                raise
            await _failed(cell, item, _cancelled(cell, error))
        except GeneratorExit:
            # Nobody continues this coroutine.
            variables = None
            raise
        except BaseException as error:  # noqa: BLE001  (an actor outlives what its code raises)
            variables = steps = step = None
            await _failed(cell, item, inspectable(error))
        finally:
            # frame.end(), without the cost of a call; what may serve again ends later
            if variables is None:
                frame.active = False
            if reply is not None:
                frame.parent = frame.waiter = None
        if guard.interrupted:
            frame.active, ended = False, True
            await guard.recover()
        if cell.state is not _RUNNING:
            variables = None
            frame.active = False
            instance = await cell.next_instance()
            if instance is None:
                return
            is_async = inspect.iscoroutinefunction(instance.on_receive)
    frame.active = False


async def call_hook(
    cell: ActorCell[Any], hook: Callable[..., Any], *args: Any
) -> BaseException | None:
    """Call one of the actor's hooks, plain or async, and return what it raised."""
    frame = Frame(cell)
    token = CURRENT.set(frame)
    raised: BaseException | None = None
    try:
        refuse_unrun(await run_apart(hook, *args), "it")
    except asyncio.CancelledError as error:
        if cell.guard.end is not None:
            raise
        raised = _cancelled(cell, error)
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001  (the caller decides what becomes of it)
        raised = inspectable(error)
    finally:
        frame.end()
    # An idle actor keeps nothing of it.
    CURRENT.reset(token)
    try:
        if cell.guard.interrupted:
            await cell.guard.recover()
        return raised
    finally:
        # Its traceback refers to this frame.
        del raised


async def receive_message(instance: Any, item: Any) -> None:
    """Call ``on_receive`` with an item that came without a reference; the default ``receive``."""
    await run_apart(instance.on_receive, item)


async def _failed(cell: ActorCell[Any], item: Any, error: BaseException) -> None:
    forget_earlier(error, by_frame=True)
    # Whatever the message's code has started is not part of what follows.
    await end_attempt()
    if not isinstance(item, LocalMessage):
        cell.report(error, "receive")
    elif item.reply is not None:
        item.fail(_for_askers(cell, error))
    else:
        cell.failures += 1
        cell.report(error, "on_receive")
        instance = cell.current_instance()
        assert instance is not None
        raised = await call_hook(cell, instance.on_failure, error)
        try:
            if raised is not None:
                cell.report(raised, "on_failure")
        finally:
            # From Python 3.13 on its traceback also keeps the frames of callers.
            del raised


def _for_askers(cell: ActorCell[Any], error: BaseException) -> BaseException:
    """Return the error in a form that can be raised in the asker's task."""
    if not isinstance(error, KeyboardInterrupt | SystemExit):
        return error
    cell.report(error, "on_receive")
    result = ActorError(f"actor {cell.address!r} raised {reason_of(error)}")
    result.__cause__ = error
    return result


def _cancelled(cell: ActorCell[Any], error: BaseException) -> ActorError:
    result = ActorError(f"something that actor {cell.address!r} was waiting for was cancelled")
    result.__cause__ = error
    return result


def _task_cancelled(address: str) -> str:
    return (
        f"the task of actor {address!r} was cancelled, perhaps by asyncio.run(), which cancels all"
        " tasks when the coroutine that it was given has ended: that has to wait for as long as the"
        " actors are to run, as `async with app: await app.wait()` does"
    )
