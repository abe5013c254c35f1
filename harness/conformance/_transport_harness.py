"""A broker to test against, its faults, and what may differ between transports."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Self

import pytest

from ..._environment import Environment
from ...errors import ConnectFailed
from ...runtime.application._application import DistributedApplication
from ...transports import (
    Bus,
    Delivery,
    Envelope,
    Identity,
    SocketProvider,
    Subscription,
    Surroundings,
)
from .._eventually import eventually
from ..loop._run_alone import run_alone
from ._inbox import Inbox

__all__ = ["TransportHarness"]


class TransportHarness(abc.ABC):
    """A broker for one test, and everything connected to it, which is closed at the end.

    Subclass it for a transport, and say how its broker is started, reached, cut off and ended. The
    attributes are all that may differ between transports; set those that do, and say in the
    documentation of the transport what each means for its users. If a test fails for any other
    reason, it has found a mistake.

    Attributes:
        any_topic: topics can be any text. Otherwise their levels are letters, digits, ``_``, ``-``.
        counts_bytes: no more is delivered than the window in bytes allows. Otherwise only the
            number of messages is limited.
        has_groups: instances can share a subscription. Otherwise that is refused.
        has_qos_0: a message can be published with QoS 0, to be delivered at most once. Otherwise
            it is a message like any other.
        has_retained: the last retained message of a topic is sent to new subscriptions. Otherwise
            a retained message is a message like any other.
        keeps_all: messages stay when they are consumed: a new durable subscription gets all there
            are. Otherwise it gets what is published from then on. A transport without
            ``has_retained`` has to do this, or dead letters would be lost.
        keeps_filters: the broker knows the filters of a durable subscription. Otherwise those of
            an earlier program are gone with that program.
        keeps_window: the broker respects the window that it is told. Otherwise it sends more, and
            reading is paused.
        knows_redelivery: the broker marks what it has sent before. Otherwise a program only knows
            it of what it has received itself.
        one_copy: a message that matches several filters of a subscription comes once. Otherwise it
            may come once for each of them.
        orders_topics: messages of one publisher arrive in order across topics. Otherwise only those
            of one topic do.
        recognises: what comes again after a cut is recognised. Otherwise it is like a new message:
            it is handled again, although a handler is working on it or has settled it, and has no
            failed attempts.
        sends_on: the broker sends further messages while some are unsettled, as long as there is
            room in the window. Otherwise it may wait until all that it has sent is settled.
        stamps_time: a message whose sender sets no time gets one.
        tells_no_responder: a request that nobody is subscribed to fails at once.
        tells_correlation: a reply without a correlation of its own gets that of its address.
        overrun: how many windows may be unsettled at most. More than 1 for brokers that do not
            respect the window they are told.
        quick: seconds within which a start certainly succeeds while the broker is there.
        spread: options that let instances of one application share the messages of a topic.
        deadline: the most seconds for one test, on the clock of its event loop.
        environment: the wall time, randomness and identifiers of everything that is connected.
    """

    any_topic: bool = True
    counts_bytes: bool = True
    has_groups: bool = True
    has_qos_0: bool = True
    has_retained: bool = True
    keeps_all: bool = False
    keeps_filters: bool = True
    keeps_window: bool = True
    knows_redelivery: bool = True
    one_copy: bool = True
    orders_topics: bool = True
    recognises: bool = True
    sends_on: bool = True
    stamps_time: bool = False
    tells_no_responder: bool = True
    tells_correlation: bool = False
    overrun: int = 1
    quick: float = 0.3
    spread: Mapping[str, Any] = MappingProxyType({})
    deadline: float = 120.0

    def __init__(self) -> None:
        self.environment: Environment = Environment()
        self._inboxes: list[Inbox] = []
        self._buses: list[Bus] = []
        self._identities: dict[Bus, Identity] = {}
        self._is_new = True

    # What a transport implements.

    @abc.abstractmethod
    async def start_broker(self) -> None:
        """Start an empty broker; or separate this test from others on a shared one."""

    @abc.abstractmethod
    async def stop_broker(self) -> None:
        """End the broker, and forget everything."""

    @abc.abstractmethod
    def provider(self, **options: Any) -> SocketProvider:
        """Return a provider for the broker.

        Args:
            options: ``max_payload``, ``outbox``, ``start_timeout``, and those of ``spread``. Use
                short times for everything else, above all between attempts to connect.
        """

    @abc.abstractmethod
    async def cut(self) -> None:
        """Cut all connections; they can be made again at once."""

    @abc.abstractmethod
    async def go_away(self) -> None:
        """Cut all connections and refuse new ones."""

    @abc.abstractmethod
    async def come_back(self) -> None:
        """Accept connections again."""

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        """Run a test to its end, on an event loop of its own.

        Raises:
            AssertionError: the test failed, left tasks running or errors unhandled, or took longer
                than ``deadline``.
        """
        __tracebackhide__ = True
        run_alone(test, self.new_loop(), self.deadline)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop for a test.

        A transport without real input and output can use a `VirtualLoop`, on which waiting takes no
        real time.
        """
        return asyncio.SelectorEventLoop()

    def is_held(self, inbox: Inbox) -> bool:
        """Tell whether a cut interrupts the inbox: it is told to hold, and later to resume."""
        return True

    async def lost(self, inbox: Inbox) -> None:
        """Wait until the inbox was told to hold, after `go_away`; return at once if it never is."""
        await eventually(lambda: inbox.events == ["hold"])

    async def back(self, inbox: Inbox, times: int = 1) -> None:
        """Wait until the inbox was told to resume, if it was told to hold.

        It is called after a `cut`, the ``times``-th of the test, or after `go_away` and
        `come_back`.
        """
        await inbox.back(times)

    # What tests use.

    @property
    def inboxes(self) -> Sequence[Inbox]:
        """All inboxes that the test has made so far."""
        return self._inboxes

    async def bus(
        self,
        name: str = "plant",
        instance: str = "0",
        *,
        ephemeral: bool = False,
        on_reply: Callable[[str, Envelope], None] = lambda correlation, reply: None,
        fatal: Callable[[BaseException], None] = lambda error: None,
        **options: Any,
    ) -> Bus:
        """Open and start a bus.

        Args:
            name: the name of the application.
            instance: which instance of it.
            ephemeral: keep nothing for it.
            on_reply: called with the correlation and the reply.
            fatal: called with an error that ends the application.
            options: as for `provider`.
        """
        identity = Identity(name, instance, ephemeral)
        surroundings = Surroundings(identity, environment=self.environment, fatal=fatal)
        bus = self.provider(**options).open(surroundings)
        self._buses.append(bus)
        self._identities[bus] = identity
        await bus.start(on_reply)
        return bus

    async def inbox(
        self,
        bus: Bus,
        *filters: str,
        settle: bool = True,
        name: str = "actor",
        **fields: Any,
    ) -> Inbox:
        """Make an inbox, and start its consumer.

        Args:
            bus: the bus.
            filters: the filters of the subscription.
            settle: as for `Inbox`.
            name: the name of the subscription.
            fields: further fields of `Subscription`.
        """
        inbox = Inbox(settle=settle)
        inbox.identity = self._identities[bus]
        inbox.subscription = Subscription(name, filters, **fields)
        inbox.consumer = bus.consumer(inbox.subscription, inbox)
        self._inboxes.append(inbox)
        await inbox.consumer.start()
        return inbox

    async def unsettled(
        self, bus: Bus, inbox: Inbox, envelopes: Sequence[Envelope], arrive: int | None = None
    ) -> list[Delivery]:
        """Publish messages on one topic, and wait until they are unsettled at the same time.

        Args:
            bus: where to publish.
            inbox: an inbox that does not settle by itself, with everything settled so far.
            envelopes: the messages.
            arrive: how many fit into the window; None for all.

        Returns:
            The deliveries that have arrived.
        """
        first = None
        begun = len(inbox.deliveries)
        if not self.sends_on:
            # What is published while one is unsettled waits in the broker and comes together.
            await bus.publish(Envelope(topic=envelopes[0].topic, payload=b"first"), timeout=60)
            (first,) = (await inbox.get(begun + 1))[begun:]
        for envelope in envelopes:
            await bus.publish(envelope, timeout=60)
        if first is not None:
            first.start()
            first.settle()
            inbox.deliveries.remove(first)
        await inbox.get(begun + (len(envelopes) if arrive is None else arrive))
        return list(inbox.deliveries[begun:])

    async def get_on(self, inbox: Inbox, count: int) -> list[Delivery]:
        """Wait until so many messages have arrived in total; return the deliveries.

        If the broker does not send on, what arrived on this connection is settled meanwhile.
        """
        if self.sends_on:
            return await inbox.get(count)

        def settled() -> bool:
            for delivery in list(inbox.deliveries):
                if delivery.epoch == inbox.deliveries[-1].epoch and delivery.start():
                    delivery.settle()
            return len(inbox.deliveries) >= count

        await eventually(settled)
        return inbox.deliveries

    async def refuses_groups(self, bus: Bus) -> None:
        """Check that a group is refused, not ignored, by a transport that has none."""
        with pytest.raises(ConnectFailed):
            await self.inbox(bus, "a", share=True)

    def application(self, name: str, **options: Any) -> DistributedApplication:
        """Make an application on the broker, not running.

        Args:
            name: the name of the application.
            options: further options of `DistributedApplication`.
        """
        return DistributedApplication(
            self.provider(), name=name, environment=self.environment, **options
        )

    def in_order(self, items: Sequence[str]) -> list[str]:
        """Return what came on several topics, sorted if the transport does not keep that order."""
        return list(items) if self.orders_topics else sorted(items)

    async def __aenter__(self) -> Self:
        if not getattr(self, "_is_new", False):
            raise TypeError(
                f"{type(self).__name__} was used before: make a new one for each test"
                if hasattr(self, "_is_new")
                else f"{type(self).__name__}.__init__ has to call super().__init__()"
            )
        self._is_new = False
        await self.start_broker()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Whatever else goes wrong, the broker is not left behind.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.stop_broker)
            await stack.enter_async_context(asyncio.timeout(self.deadline))
            for bus in reversed(self._buses):
                stack.push_async_callback(bus.close)
            for inbox in reversed(self._inboxes):
                stack.push_async_callback(inbox.consumer.close)
