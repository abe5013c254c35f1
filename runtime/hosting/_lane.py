"""Lanes, in which the messages of an actor are handled, one at a time in each."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ..._environment import Environment
from ..._limited_log import LimitedLog
from ..._logs import ACTOR_LOG, OWN, ActorLog, get_logger, origin_of
from ..._texts import reason_of
from ...actors import Actor, ActorRef, Mailbox, RestartPolicy
from ...errors import ActorStopped, ConfigurationError
from ...transports import Delivery, Envelope
from ...transports._commit_steps import CommitStep
from ..handling._argument_values import ProducerScope
from ..handling._failures_and_retries import Pauses
from ..handling._handler_calls import HandlerCaller, RunningCode
from ..injection._handler_context import ContextOwner
from ..messaging._middleware import CallOutcome, HandlerCall
from ..messaging._request_deadlocks import CHAIN_HEADER, circle_of
from ..messaging._sent_replies import Replies
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..messaging._turn import current_turn
from ..options._resources import RequiredResources
from ..registration._specs import Handler
from ..routing._routed_deliveries import RoutedDelivery
from ..routing._router import Router
from ..routing._tallies import Tallies
from ._message_source import MessageSource, WorkSource
from ._producer import CallSource
from ._timers import ScheduledCall, Timers

if TYPE_CHECKING:
    from ..handling._delivery_processor import DeliveryProcessor
    from ..metrics._measurements import Measurements
    from ..options._actor_options import ActorOptions
    from ._actor_runner import ActorRunner

__all__ = ["Lane"]

_SHORTEST = 0.1


class Lane:
    """One lane of an actor: its mailbox, instance, state, thread, socket.

    Most actors have one, which has the actor's name and address. With ``concurrency`` there are
    several. Each counts as an actor of its own in the detection of deadlocks, and all messages with
    the same key go to the same one.

    Attributes:
        name: the actor's name; followed by a number if there are several lanes.
        address: the actor's address, likewise.
        source: the actor's address, which its messages state as their source.
        work_source: what it gets its work from.
        state: the current value of ``state``.
        running_code: the user's code that is running in it.
        latest_instance: the latest instance of the actor's class.
        generation: a new object with each new instance, and when a thread is given up.
        measurements: those of the application; None if nothing is measured.
        tallies: how many messages it has finished with.
        pauses: the waits between attempts.
        alias: returns the name of what it works for at the moment; None if that is its own.
        commit_steps: those in which it commits what messages have come to.

    Args:
        runner: the runner of its actor.
        number: which of several lanes it is; None if it is the only one.
    """

    alias: Callable[[], str] | None = None
    commit_steps: ClassVar[Sequence[CommitStep]] = ()

    def __init__(self, runner: ActorRunner, number: int | None = None) -> None:
        spec, connection = runner.spec, runner.connection
        surroundings = connection.surroundings
        identity = surroundings.identity
        suffix = runner.place if number is None else f"{runner.place}/{number}"
        self.runner = runner
        self.spec = spec
        self.connection = connection
        self.application: str = identity.application
        self.instance: str = identity.instance
        self.actor_name: str = runner.name
        self.source: str = runner.address
        self.name: str = runner.name + suffix
        self.address: str = runner.address + suffix
        options = spec.options
        self.options: ActorOptions = options
        self.handlers: tuple[Handler, ...] = spec.handlers
        self.environment: Environment = surroundings.environment
        self.stats: Counter[str] = surroundings.stats
        self.max_received: int = connection.max_received
        self.users_log: logging.LoggerAdapter[logging.Logger] = ActorLog(
            get_logger(ACTOR_LOG).logger, self.source
        )
        self.log: LimitedLog = self._make_log()
        self.generation: object = None
        self.state: Any = None
        self.latest_instance: Actor | None = None
        self.resources: dict[str, Any] = {}
        self._run = runner.run
        self.measurements: Measurements | None = runner.measurements
        self.tallies: Tallies = Tallies()
        self._loop = asyncio.get_running_loop()
        self._is_cut_off = False
        self._has_ended = False
        self._reply_topics = options.reply_filters
        self.pauses: Pauses = self._make_pauses()
        self.work_source: WorkSource = self._make_work_source()
        self.mailbox: Mailbox = self.work_source.mailbox
        self.local: Mailbox = self.work_source.local
        self.processor: DeliveryProcessor = self.work_source.processor
        self.socket: Socket = self._make_socket()
        self.sync_socket: SyncSocket = SyncSocket(self.socket, self._loop)
        self._ref: ActorRef[Any] | None = None
        self._caller = self._make_caller()
        self._thread = self._caller.thread
        self.running_code: RunningCode = RunningCode(self._caller, self._task)
        self.timers: Timers = Timers(self.local, self._loop, threading.get_ident())

    def _make_work_source(self) -> WorkSource:
        if self.spec.kind == "producer":
            return CallSource(self)
        if self.options.batch is None:
            return MessageSource(self)
        # Not at the top: most applications have no batches.
        from ._batch_source import BatchSource

        return BatchSource(self)

    def _make_log(self) -> LimitedLog:
        # Which of several actors on one topic has failed must show in any logging format.
        about = {**origin_of(self.source), OWN: True}
        return LimitedLog(get_logger(ACTOR_LOG), about, f"actor {self.spec.name!r}: ")

    def _make_pauses(self) -> Pauses:
        return Pauses()

    def _make_caller(self) -> HandlerCaller:
        settings = self._run.settings
        of_actor = (self.handlers, self.options.deadline, self.stats, self._thread_lost)
        if not settings.middleware:
            return HandlerCaller(self.address, *of_actor)
        # Not at the top: most applications have no middleware.
        from ..handling._middleware_calls import MiddlewareCaller

        caller = MiddlewareCaller(self.address, *of_actor)
        caller.middleware = settings.around_handlers
        caller.sees_replies = bool(settings.on_publishes)
        return caller

    def _make_socket(self) -> Socket:
        options = self.options
        runtime = self.runner.runtime
        return Socket(self.connection, self.source, runtime, options.codec, options.wire)

    def take_thread_resources(self, required: RequiredResources) -> RequiredResources:
        """Take over the resources that its thread can open; return how all are to be opened."""
        return self._thread.take_resources(required, partial(self.failed, "resource"))

    def runs_in(self, executor: Executor) -> bool:
        """Return whether the executor is the thread of its handlers."""
        return self._thread.runs_in(executor)

    def dropped(self, item: Any) -> None:
        """Count, and settle, an item that the mailbox had no room for."""
        self.stats["messages.dropped"] += 1
        if isinstance(item, Delivery):
            self.processor.ended(item, "dropped")
            if item.is_stored:
                item.withdraw()
            else:
                item.settle()

    # Start and stop.

    def begin(self) -> None:
        """Note that everybody has started."""

    def spawn(self, restart: RestartPolicy, resources: Mapping[str, Any]) -> ActorRef[Any] | None:
        """Begin to start it; `started` waits until it is up."""
        self.resources = dict(resources)
        self._thread.start()
        observer, receive = self._run.observer, self._receive()
        self._ref = self._run.system.spawn(
            self._make_instance,
            name=self.name,
            mailbox=self.local,
            restart=restart,
            receive=receive if observer is None else observer.receiving(self, receive),
            leftover=partial(self._run.given_up.left_over, self.name),
            stopped=self.runner.request_stop,
            alias=self.alias,
        )
        return self._ref

    def _receive(self) -> Callable[[Any, Any], Awaitable[None]]:
        """Return what handles the items of its mailbox, with its instance."""
        return self.processor.receive

    def _make_instance(self) -> Actor:
        self.generation = object()
        self.timers.renew()
        self.state = self.spec.make_state()
        instance = self._new_instance()
        for name, hook in self.spec.hooks.items():
            setattr(instance, name, partial(self._run_hook, hook, hook.bind(instance)))
        if self._thread.resources:
            instance.on_start = partial(self._thread.start_up, instance.on_start, self.resources)
        self.latest_instance = instance
        return instance

    def _new_instance(self) -> Actor:
        try:
            instance: Actor = self.spec.factory()
        except BaseException as error:
            problem = f"could not be made: {reason_of(error)}"
            raise ConfigurationError(f"actor {self.actor_name!r} {problem}") from error
        return instance

    def _run_hook(self, hook: Handler, function: Callable[..., Any]) -> Any:
        arguments = hook.injection.bind(ProducerScope(self, hook))
        if hook.injection.is_async or self._thread.resources.keys().isdisjoint(arguments):
            return function(**arguments)
        return self._thread.run(partial(function, **arguments), ())

    async def started(self) -> None:
        """Wait until the actor has started; raises RestartLimitReached if it fails to."""
        assert self._ref is not None
        await self._run.system.started(self._ref)

    def stop_attempts(self) -> None:
        """Start no further attempt at a message, and run no scheduled call."""
        self.processor.stop()
        self.timers.stop()
        self.work_source.flush()

    async def finish(self, deadline: float) -> None:
        """Finish what is running, until ``deadline`` (loop time); then cut it off."""
        # Even an idle actor needs some iterations of the loop, also when the time is up.
        deadline = max(deadline, self._loop.time() + _SHORTEST)
        ref, self._ref = self._ref, None
        try:
            if ref is not None:
                async with asyncio.timeout_at(deadline):
                    await self._run.system.stop(ref)
                    await self.processor.settlements.drain()
        except TimeoutError:
            self._cut_off()
            if ref is not None:
                task = await self._run.system.kill(ref)
                for on in (task, self._caller.running):
                    if on is not None:
                        self._run.given_up.task(f"actor {self.name!r}", on)
        finally:
            if not await self._thread.stop(timeout=max(0.0, deadline - self._loop.time())):
                self._cut_off()
                self._thread.tell_left_open(self._run.given_up)
            self._run.given_up.running_on(f"actor {self.name!r}", self._caller.running_on)
            self.log.flush()
            self._has_ended = True

    def _cut_off(self) -> None:
        if self._is_cut_off:
            return
        self._report_cut_off()
        if (where := self._thread.in_thread_at) is not None:
            self._run.given_up.thread(f"actor {self.name!r}", where)
        self.sync_socket.revoke()
        self._thread.abandon()

    def _report_cut_off(self) -> None:
        self._is_cut_off = True
        self.stats["actors.cut_off"] += 1
        self.log.warning("it did not finish in time and is cut off")
        self._run.given_up.add(f"actor {self.name!r} did not finish in time and was cut off")

    def pause(self) -> None:
        """Take nothing more out of the mailbox after the current message, until `resume`."""
        if self._ref is not None:
            self._run.system.pause(self._ref)

    def resume(self) -> None:
        """Undo `pause`; a stop does so, too."""
        if self._ref is not None:
            self._run.system.resume(self._ref)

    def begin_afresh(self) -> bool:
        """Replace instance and state after the current message; return whether it will."""
        return self._ref is not None and self._run.system.begin_afresh(self._ref)

    @property
    def finished_elsewhere(self) -> int | None:
        """How many messages its child processes have finished with; None if it has none."""
        return None

    @property
    def context_owner(self) -> ContextOwner:
        """See `HandlingLane.context_owner`."""
        return self

    @property
    def trouble(self) -> str | None:
        """What prevents its handlers from being called; None if nothing does."""
        return self._thread.trouble

    def _task(self) -> asyncio.Future[Any] | None:
        task = self.work_source.task
        return task or (None if self._ref is None else self._run.system.task(self._ref))

    @property
    def handled(self) -> int:
        """How many messages it has handled, with all that came of it confirmed."""
        return self.tallies.handled - self.processor.settlements.unconfirmed

    @property
    def up(self) -> bool:
        """Whether it has started, or will not be started any more."""
        return self._ref is None or self._run.system.is_up(self._ref)

    def crash(self, unfinished: Sequence[RoutedDelivery]) -> bool:
        """Lose instance, state and thread in the middle of its work, and start again.

        Args:
            unfinished: what it was handling; it begins again with that.

        Returns:
            False if nothing happens, because it is starting or stopping.
        """
        if self._ref is None or not self._run.system.crash(self._ref):
            return False
        self._thread.replace()
        for delivery in reversed(unfinished):
            delivery.route.router.start_over(delivery)
        return True

    def abandon(self) -> None:
        """Release what is held outside the event loop, after the application was killed."""
        self.sync_socket.revoke()
        self._thread.abandon()

    # Messages.

    async def receive_other(self, instance: Any, item: Any) -> None:
        """Handle an item of the mailbox that is not a delivery."""
        if not isinstance(item, ScheduledCall):
            await self.work_source.receive(instance, item)
            return
        current_turn.set(None)  # what it sends belongs to no message
        self.report_call(await self.timers.run(item, self._thread.run))

    def report_call(self, error: BaseException | None) -> None:
        """Report what a scheduled call has raised, if anything."""
        if error is not None:
            self.stats["timers.failed"] += 1
            self.log.error("a call scheduled with context.later failed", exc_info=error)
            self.failed("timer", error)

    def invoke(
        self, instance: Any, index: int, arguments: Mapping[str, Any], scope: ProducerScope
    ) -> Awaitable[Any]:
        """See `HandlingLane.invoke`."""
        return self._caller.call(instance, index, arguments, scope)

    def undecodable(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """See `HandlingLane.undecodable`."""
        self._caller.undecodable(make, outcome)

    def expired(self, make: Callable[[], HandlerCall], outcome: CallOutcome) -> None:
        """See `HandlingLane.expired`."""
        self._caller.expired(make, outcome)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """Return the handlers that can be called and awaited without `invoke`; None for others."""
        return self._caller.direct(instance)

    def _thread_lost(self) -> None:
        self._run.thread_lost(self)
        self._give_up_socket()
        self.generation = object()
        if self._ref is not None:
            self._run.system.renew(self._ref)

    def _give_up_socket(self) -> None:
        # The abandoned thread may keep running, and must not share anything with its successor.
        self.sync_socket.give_up()
        self.socket = self._make_socket()
        self.sync_socket = SyncSocket(self.socket, self._loop)

    async def current(self, instance: Any) -> Any:
        """Return the instance for the next attempt; None if there must not be one."""
        return instance if self._ref is None else await self._run.system.current(self._ref)

    def reply_address_problem(self, envelope: Envelope) -> str | None:
        """Return why no reply may go to the message's response topic; None if it may."""
        return self.connection.reply_addresses.problem(envelope, self._reply_topics)

    def failed(self, where: str, error: BaseException, envelope: Envelope | None = None) -> None:
        """Tell the observer about a failure; Ctrl-C and exits end the whole application."""
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._run.actor_ended(error)
        if self._run.observer is not None:
            self._run.observer.failed(self.address, where, error, envelope)

    def troubled(self, reason: str) -> None:
        """Tell the observer, if there is one, why the actor cannot do its work for now."""
        if self._run.observer is not None:
            self._run.observer.troubled(self.address, reason)

    def make_replies(self) -> Replies:
        """See `HandlingLane.make_replies`."""
        return self.connection.replies_in(self.options.wire)

    async def park(self, delivery: Delivery, letter: Envelope, timeout: float) -> bool:
        """See `HandlingLane.park`."""
        await self.connection.bus.park(letter, timeout=timeout)
        return True

    def take_letter(self) -> bool:
        """See `HandlingLane.take_letter`."""
        return self._run.take_letter(self.actor_name)

    def return_letter(self) -> None:
        """See `HandlingLane.return_letter`."""
        self._run.return_letter(self.actor_name)

    def parked(self) -> None:
        """See `HandlingLane.parked`."""
        self._run.parked(self.actor_name, self.name)

    def unhealthy(self, reason: str) -> None:
        """Report why the actor cannot do its work: to the observer and in the health."""
        self.troubled(reason)
        self._run.unhealthy(self.name, reason)

    # For routers.

    def interrupt(self, router: Router) -> None:
        """End a wait between two attempts at a message of this router."""
        self.processor.interrupt(router)

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """Refuse a request that would wait for itself; return whether it was refused.

        If there is no room for the answer it waits for its turn like any other: a stranger may have
        written the chain.
        """
        return self._refuses(self.address, envelope, handler)

    def _refuses(self, address: str, envelope: Envelope, handler: int) -> bool:
        if CHAIN_HEADER not in envelope.headers or not self.handlers[handler].responder:
            return False
        cycle = circle_of(envelope, address)
        if cycle is None or self.reply_address_problem(envelope) is not None:
            return False
        text = f"{cycle}: {address!r} itself waits for the reply to this request"
        replies = self.connection.replies_in(self.options.wire)
        if not replies.refuse(envelope, self.source, "deadlock", text):
            return False
        self.stats["requests.deadlocked"] += 1
        return True

    # For contexts and sockets.

    def later(
        self, delay: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> ScheduledCall:
        """See `Context.later`."""
        self.refuse_after_end()
        return self.timers.schedule(delay, function, args)

    def refuse_after_end(self) -> None:
        """Raise ActorStopped if nothing would make a call that is scheduled now."""
        if self._has_ended or self._loop.is_closed():
            raise ActorStopped(
                f"actor {self.actor_name!r} has ended, so it makes no calls any more; use the"
                " context only while the application is running"
            )

    def delete(self) -> None:
        """See `Context.delete`: refused, as only durable keys have something to delete."""
        raise ConfigurationError(
            f"actor {self.actor_name!r} is not durable, so context.delete() has nothing to delete:"
            " assign a new state instead, or give per= and durable=True"
        )

    def remind(self, name: str, payload: object, due: float) -> None:
        """See `Context.remind`: refused, as only durable keys have reminders."""
        self._refuse_reminders("remind")

    def forget_reminder(self, name: str) -> None:
        """See `Context.forget_reminder`: refused, as only durable keys have reminders."""
        self._refuse_reminders("forget_reminder")

    def _refuse_reminders(self, method: str) -> None:
        raise ConfigurationError(
            f"actor {self.actor_name!r} is not durable, so it has no reminders and no"
            f" context.{method}(): use context.later(), which the program forgets when it ends, or"
            " give per= and durable=True"
        )

    def request_stop(self) -> None:
        """See `Context.stop`."""
        self.runner.request_stop()
