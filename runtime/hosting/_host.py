"""One registered actor while the application runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from typing import Any

from ..._limited_log import LimitedLog
from ..._logs import ACTOR_LOG, OWN, get_logger
from ..._texts import reason_of
from ...actors import Actor, ActorRef, Mailbox, Overflow, RestartPolicy
from ...errors import ConfigurationError
from ...transports import Delivery, Envelope, TopicFilter
from ..handling._execution import Caller, Work
from ..handling._processor import Handling
from ..handling._scope import ProducerScope
from ..messaging._connection import Link
from ..messaging._requests import CHAIN_HEADER, circle_of
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..messaging._turn import current_turn
from ..registration._resources import Wanted
from ..registration._specs import Handler, Spec
from ..routing._router import Router
from ..routing._routes import Route
from ..routing._subscriptions import RuntimeSubscription
from ._hosted import Runner
from ._timers import PutOff, Timers

__all__ = ["Host"]

_SHORTEST = 0.1


class Host:
    """One registered actor while the application runs: its mailbox, state, socket, deliveries.

    Attributes:
        ended: it has nothing more to do: a producer that ran through, an actor that stopped.
        state: what was given as ``state``, as it is now.
        work: what of the user's is at work.
        made: the instance of the actor's class, the latest one.
        life: changes with instance and state.
        wanted: the resources that it needs open before it is spawned.

    Args:
        runner: the run that it is part of.
        spec: its registration.
        link: its bus.
        lane: which of several it is; None when it is the only one.
        runtime: filters that come and go, when the lanes have them in common.
    """

    def __init__(
        self,
        runner: Runner,
        spec: Spec[Any],
        link: Link,
        *,
        lane: int | None = None,
        runtime: RuntimeSubscription | None = None,
    ) -> None:
        surroundings = link.surroundings
        identity = surroundings.identity
        self.runner = runner
        self.spec = spec
        self.link = link
        self.name = spec.name
        self.application = identity.application
        self.instance = identity.instance
        self.source = f"{identity.application}/{identity.instance}/{spec.name}"
        self._is_lane = lane is not None
        self.own_name = f"{spec.name}/{lane}" if self._is_lane else spec.name
        # Who waits for whom: each lane is somebody of its own.
        self.address = f"{self.source}/{lane}" if self._is_lane else self.source
        self.options = options = spec.options
        self.qos = link.provider.default_qos if options.qos is None else options.qos
        self.window = options.window_for(link.provider.default_window)
        self.window_bytes = options.window_bytes or link.provider.default_window_bytes
        self.handlers = spec.handlers
        self.environment = surroundings.environment
        self.stats = surroundings.stats
        self.max_received = link.max_received
        log, extra = get_logger(ACTOR_LOG), {"spa_dat_actor": self.source}
        self.users_log = logging.LoggerAdapter(log, extra)
        # Which of several actors on one topic has failed must show under any logging format.
        self.log = LimitedLog(log, {**extra, OWN: True}, f"actor {spec.name!r}: ")
        self.ended = False
        self.life: object = None
        self.state: Any = None
        self.made: Actor | None = None
        self.resources: dict[str, Any] = {}
        self.mailbox = self._make_mailbox()
        self.local = self._make_local()
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] | None = None
        self._is_cut_off = False
        self._reply_topics = options.reply_filters
        self._runtime = runtime or RuntimeSubscription(self, runner.system, self.stats)
        self.socket = Socket(link, self.source, self._runtime)
        self.sync_socket = SyncSocket(self.socket, self._loop)
        self._ref: ActorRef[Any] | None = None
        deadline = options.deadline
        self._caller = Caller(self.address, self.handlers, deadline, self.stats, self._thread_lost)
        self.wanted = Wanted(f"actor {self.name!r}", options.ressources)
        if not self._is_lane:
            self.wanted = self._caller.keep(self.wanted, partial(self.failed, "resource"))
        self.work = Work(self._caller, self._task)
        self.timers = Timers(self.local)
        self.handling = Handling(self, link)

    def runs_in(self, executor: Executor) -> bool:
        """Whether the executor is the thread of its handlers."""
        return self._caller.runs_in(executor)

    def _make_mailbox(self) -> Mailbox:
        by_key = self.options.overflow is Overflow.LATEST_BY_KEY
        key = self.spec.message_key.of_item if by_key else None
        mailbox = Mailbox(self.options.mailbox, self.options.overflow, key)
        mailbox.on_drop = self._dropped
        return mailbox

    def _make_local(self) -> Mailbox:
        return self.mailbox  # where everything goes that does not come from routers

    def _dropped(self, item: Any) -> None:
        self.stats["messages.dropped"] += 1
        if isinstance(item, Delivery):
            item.settle()

    # Start and stop.

    def spawn(
        self, restart: RestartPolicy, resources: Mapping[str, Any]
    ) -> tuple[ActorRef[Any], ...]:
        """Start the actor; `started` waits until it has succeeded."""
        self.resources = dict(resources)
        self._caller.start()
        observer = self.runner.observer
        self._ref = self.runner.system.spawn(
            self._make_instance,
            name=self.own_name,
            mailbox=self.local,
            restart=restart,
            receive=self.receive if observer is None else observer.receiving(self, self.receive),
            leftover=partial(self.runner.given_up.left_over, self.own_name),
            stopped=self.request_stop,
        )
        return (self._ref,)

    def _make_instance(self) -> Actor:
        self.life = object()
        self.timers.renew()
        self.state = self.spec.make_state()
        try:
            instance: Actor = self.spec.factory()
        except BaseException as error:
            problem = f"could not be made: {reason_of(error)}"
            raise ConfigurationError(f"actor {self.name!r} {problem}") from error
        for name, hook in self.spec.hooks.items():
            setattr(instance, name, partial(self._run_hook, hook, hook.bind(instance)))
        if self._caller.kept:
            instance.on_start = partial(self._caller.start_up, instance.on_start, self.resources)
        self.made = instance
        return instance

    def _run_hook(self, hook: Handler, function: Callable[..., Any]) -> Any:
        arguments = hook.injection.bind(ProducerScope(self, hook))
        if hook.injection.is_async or self._caller.kept.keys().isdisjoint(arguments):
            return function(**arguments)
        return self._caller.in_thread(partial(function, **arguments), ())

    async def started(self) -> None:
        """Wait until the actor has started; raises RestartLimitReached when it does not."""
        assert self._ref is not None
        await self.runner.system.started(self._ref)

    def begin(self) -> None:
        """All subscriptions are in force."""

    async def stop_producing(self, deadline: float) -> None:
        """Start no messages any more; see `ProducerHost`."""

    def stop_attempts(self) -> None:
        """Start no attempt at a message any more, and run nothing that was put off."""
        self.handling.stop()
        self.timers.stop()
        if not self._is_lane:
            self._runtime.stop_intake()

    async def stop(self, deadline: float) -> None:
        """Finish what is running, until ``deadline`` (loop time); then cut it off.

        Calling it again waits for the same stop.
        """
        if self._stop is None:
            self._stop = asyncio.ensure_future(self._finish(deadline))
        await asyncio.shield(self._stop)

    async def _finish(self, deadline: float) -> None:
        # An actor with nothing to do needs some turns of the loop, also when the time is up.
        deadline = max(deadline, self._loop.time() + _SHORTEST)
        ref, self._ref = self._ref, None
        try:
            if ref is not None:
                async with asyncio.timeout_at(deadline):
                    await self.runner.system.stop(ref)
                    await self.handling.settlements.drain()
        except TimeoutError:
            self._cut_off()
            if ref is not None:
                task = await self.runner.system.kill(ref)
                for on in (task, self._caller.running):
                    if on is not None:
                        self.runner.given_up.task(f"actor {self.own_name!r}", on)
        finally:
            if not self._is_lane:
                await self._runtime.close()
            if not await self._caller.stop(timeout=max(0.0, deadline - self._loop.time())):
                self._cut_off()
            self.log.flush()
            if not self._is_lane:
                self.spec.started(())

    def _cut_off(self) -> None:
        if self._is_cut_off:
            return
        self._is_cut_off = True
        self.stats["actors.cut_off"] += 1
        self.log.warning("it did not finish in time and is cut off")
        self.runner.given_up.add(f"actor {self.own_name!r} did not finish in time and was cut off")
        if (where := self._caller.in_thread_at) is not None:
            self.runner.given_up.thread(f"actor {self.own_name!r}", where)
        self.sync_socket.revoke()
        self._caller.abandon()

    @property
    def trouble(self) -> str | None:
        """See `Hosted.trouble`."""
        return self._runtime.trouble or self._caller.trouble

    @property
    def lanes(self) -> tuple[Host, ...]:
        """Itself; see `Hosted.lanes`."""
        return (self,)

    def _task(self) -> asyncio.Future[Any] | None:
        return None if self._ref is None else self.runner.system.task(self._ref)

    @property
    def up(self) -> bool:
        """Whether it has started, or has nothing to start any more."""
        return self._ref is None or self.runner.system.is_up(self._ref)

    def crash(self, unfinished: Sequence[Delivery]) -> bool:
        """Lose instance, state and thread, in the middle of what it does, and start again.

        Args:
            unfinished: what it was working on; it begins anew with that.

        Returns:
            False when it is starting or stopping, and nothing happens.
        """
        if self._ref is None or not self.runner.system.crash(self._ref):
            return False
        self._caller.replace_thread()
        for delivery in reversed(unfinished):
            delivery.route.router.start_over(delivery)
        return True

    def abandon(self) -> None:
        """See `Hosted.abandon`."""
        self.sync_socket.revoke()
        self._caller.abandon()
        self.spec.started(())

    # Messages.

    def receive(self, instance: Any, item: Any) -> Awaitable[None]:
        """Work one item of the mailbox off."""
        if isinstance(item, Delivery):
            return self.handling.handle(instance, item)
        return self._receive_other(instance, item)

    async def _receive_other(self, instance: Any, item: Any) -> None:
        if not isinstance(item, PutOff):
            await self.receive_other(instance, item)
            return
        current_turn.set(None)  # no message waits for what it sends
        error = await self.timers.run(item, self._caller.in_thread)
        if error is not None:
            self.stats["timers.failed"] += 1
            self.log.error("what it had put off failed", exc_info=error)
            self.failed("timer", error)

    async def receive_other(self, instance: Any, item: Any) -> None:
        """Work off what only some kinds of actors get; see `ProducerHost`."""
        raise TypeError(f"actor {self.name!r} got {item!r}")

    def invoke(self, instance: Any, index: int, arguments: Mapping[str, Any]) -> Awaitable[Any]:
        """Call a handler, cut off at the actor's deadline."""
        return self._caller.call(instance, index, arguments)

    def direct(self, instance: Any) -> list[Callable[..., Any] | None]:
        """The handlers that can be called and awaited without `invoke`; None for others."""
        return self._caller.direct(instance)

    def _thread_lost(self) -> None:
        # What was given up may go on, and nothing that it has at hand is to be used by two.
        self.sync_socket.give_up()
        self.socket = Socket(self.link, self.source, self._runtime)
        self.sync_socket = SyncSocket(self.socket, self._loop)
        self.life = object()
        if self._ref is not None:
            self.runner.system.renew(self._ref)

    async def current(self, instance: Any) -> Any:
        """The instance for the next attempt; None when there is to be none."""
        return instance if self._ref is None else await self.runner.system.current(self._ref)

    def reply_address_problem(self, envelope: Envelope) -> str | None:
        """Why a reply must not go where the message asks for; None when it may."""
        return self.link.reply_address_problem(envelope, self._reply_topics)

    def failed(self, where: str, error: BaseException, envelope: Envelope | None = None) -> None:
        """Let the observer know of a failure; Ctrl-C and exits mean the program."""
        if where != "resource" and isinstance(error, KeyboardInterrupt | SystemExit):
            self.runner.actor_ended(error)
        if self.runner.observer is not None:
            self.runner.observer.failed(self.address, where, error, envelope)

    def troubled(self, reason: str) -> None:
        """Let the observer, if there is one, know why the actor cannot go on as it should."""
        if self.runner.observer is not None:
            self.runner.observer.troubled(self.address, reason)

    def take_letter(self) -> bool:
        """See `ParkingHost.take_letter`."""
        return self.runner.take_letter(self.name)

    def return_letter(self) -> None:
        """See `ParkingHost.return_letter`."""
        self.runner.return_letter(self.name)

    def parked(self) -> None:
        """See `ParkingHost.parked`."""
        self.runner.parked(self.name, self.own_name)

    def unhealthy(self, reason: str) -> None:
        """The actor cannot go on as it should."""
        self.troubled(reason)
        self.runner.unhealthy(self.own_name, reason)

    # What subscriptions and routers call.

    def check_filter(self, filter_: TopicFilter) -> None:
        """Raise ConfigurationError when it cannot take what comes through a further filter."""
        if self.options.key is not None:
            self.spec.message_key.check_filter(filter_)

    def route(self, router: Router, handler: int, filter_: TopicFilter) -> Route:
        """The way from a filter of the router to one of its handlers."""
        return Route(router, self, handler, filter_)

    def interrupt(self, router: Router) -> None:
        """End a wait between two attempts at a message of this router."""
        self.handling.interrupt(router)

    def refuses(self, envelope: Envelope, handler: int) -> bool:
        """Answer a request that would wait for itself; True when that happened."""
        if CHAIN_HEADER not in envelope.headers or not self.handlers[handler].responder:
            return False
        cycle = circle_of(envelope, self.address)
        if cycle is None or self.reply_address_problem(envelope) is not None:
            return False
        self.stats["requests.deadlocked"] += 1
        text = f"{cycle}: {self.address!r} itself waits for the reply to this request"
        self.link.refuse(envelope, self.source, "deadlock", text)
        return True

    # What contexts and sockets call.

    def later(self, delay: float, function: Callable[..., Any], args: tuple[Any, ...]) -> PutOff:
        """See `Context.later`."""
        return self.timers.put_off(delay, function, args)

    def request_stop(self) -> None:
        """See `Context.stop`."""
        # A context of its own: whoever stops the actor must not count as part of its message.
        context = Context()
        if asyncio._get_running_loop() is self._loop:
            # At once: the next message may be handled before the loop has its turn.
            context.run(self.runner.stop_actor, self)
        else:
            self._loop.call_soon_threadsafe(self.runner.stop_actor, self, context=context)
