"""The router: puts a subscription's deliveries into mailboxes, and holds them during an outage."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import quoted
from ...actors import Actor, ActorSystem, Mailbox, Overflow
from ...errors import ActorStopped, MailboxFull
from ...transports import (
    Consumer,
    Delivery,
    DeliveryState,
    TopicTrie,
    Tracker,
    is_reserved,
)
from ._routed_deliveries import DeliveryPart, Route, RoutedDelivery, SharedDelivery, Target

if TYPE_CHECKING:
    from ..metrics._sampling import Sampling

__all__ = ["Outage", "Router"]

log = get_logger("spa_dat")

_MOST_STALE_TOPICS = 1000
# A filter that is there again after it was removed is one of ours, which the broker has changed.
_MOST_SEARCHES = 2


class Router(Actor):
    """The actor that fans one subscription's deliveries out into mailboxes.

    It is the receiver of the subscription's consumer: what arrives goes into its own mailbox, and
    from there, one at a time and in order, into the mailbox of each actor that wants it.
    Deliveries that have to be acknowledged always find room, because the window bounds them.
    Others are subject to the mailbox's overflow policy; with the default they are dropped and
    counted (``messages.dropped``) if there is no room.

    Args:
        name: the subscription's name.
        stats: the application's counters.
        elsewhere: for runtime subscriptions, tells whether the actor already gets a topic's
            messages through its declared subscription.
        sampling: chooses the messages that are timed; None if nothing is measured.

    Attributes:
        consumer: the connection of the subscription; None until it is made.
        shared: whether each message goes to one of several instances.
        durable: whether the bus keeps what is not settled.
        serves: the names of all actors that it has ever served.
        on_restored: as in `Subscription`.
    """

    def __init__(
        self,
        name: str,
        stats: Counter[str],
        *,
        elsewhere: Callable[[str], bool] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.name = name
        self._sampling = sampling
        self._elsewhere = elsewhere
        self.inbox: Mailbox = Mailbox()
        self._waiting = self.inbox.items
        self.consumer: Consumer | None = None
        self.shared = False
        self.durable = True
        self.serves: list[str] = []
        self.on_restored: Callable[[], None] = lambda: None
        self._stats = stats
        self._trie: TopicTrie[Route] = TopicTrie()
        # The lanes of an actor are several targets.
        self._targets: list[Target] = []
        self._actors: list[Target] = []
        self._note_targets()
        self._outage: Outage | None = None
        self._redelivered = False
        self._epoch = -1
        # The connection was lost that brought what has come up to this epoch.
        self._lost = -1
        # The bus has forgotten what it had sent up to this epoch.
        self._forgotten = -1
        self._stopped = False
        # What was here when the intake stopped: what is to be acknowledged, by its id, and how much
        # never is.
        self._taken: dict[int, Delivery] = {}
        self._unacknowledged = 0
        # How often the filter of an unwanted message was looked for, by the hash of its topic:
        # strangers may invent long ones.
        self._stale: dict[int, int] = {}
        self._log = LimitedLog(log)

    def add(self, route: Route) -> None:
        """Serve a further route; of one actor's matching routes the first one added counts."""
        self._trie.add(route.filter.pattern, route)
        if route.target not in self._actors:
            self._actors.append(route.target)
            self.serves.append(route.target.actor_name)
            self._targets.extend(route.targets)
        self._note_targets()

    def _note_targets(self) -> None:
        self._several_actors = len(self._actors) > 1
        # The only mailbox, if every message goes to the same one.
        self._direct: Mailbox | None = None
        if len(self._targets) == 1 and self._elsewhere is None:
            (target,) = self._targets
            if target.options.overflow is Overflow.REFUSE:
                self._direct = target.mailbox

    def discard(self, route: Route) -> None:
        """Stop serving a route."""
        self._trie.discard(route.filter.pattern, route)

    def leave(self, routes: Sequence[Route]) -> None:
        """Hand out nothing more to an actor that stops while others keep using the subscription.

        Args:
            routes: all routes to it.
        """
        for route in routes:
            self.discard(route)
        self._actors.remove(routes[0].target)
        for target in routes[0].targets:
            self._targets.remove(target)
            if self._outage is not None:
                # The others must not wait for it: it handles what it has before it ends.
                self._outage.leave(target.mailbox)
        self._note_targets()

    def wants(self, topic: str) -> bool:
        """Return whether one of its routes is for the topic."""
        return bool(self._trie.match(topic))

    @property
    def holding(self) -> bool:
        """Whether the connection is lost, so that nothing may be started."""
        return self._outage is not None

    async def start(self) -> None:
        """Activate the subscription; raises as `Consumer.start` does."""
        assert self.consumer is not None
        await self.consumer.start()

    @property
    def trouble(self) -> str | None:
        """What prevents messages from being received, in words; None if nothing does."""
        return None if self.consumer is None else self.consumer.trouble

    @property
    def lag(self) -> int | None:
        """How many messages the bus has for it beyond what is settled; None if it is unknown."""
        return None if self.consumer is None else self.consumer.lag

    @property
    def trackers(self) -> Sequence[Tracker]:
        """The trackers of what its consumer has handed out."""
        return () if self.consumer is None else self.consumer.trackers

    # For the consumer.

    def deliver(self, delivery: Delivery) -> None:
        """Take a message that has arrived.

        If one actor gets all messages, it goes straight into its mailbox.
        """
        sampling = self._sampling
        if sampling is not None:
            left = sampling.left
            if left:
                sampling.left = left - 1
            else:
                sampling.choose(delivery)
        mailbox = self._direct
        if delivery.envelope.expiry is not None:
            _let_expire(delivery)
        if delivery.token < 0:
            self.inbox.force(delivery)
            return
        self._epoch = delivery.epoch
        if (
            mailbox is None
            or mailbox.closed
            or self._waiting
            or self._outage is not None
            or self._stopped
        ):
            self.inbox.force(delivery)
            return
        envelope = delivery.envelope
        routes = self._trie.match(envelope.topic)
        if routes and envelope.response_topic is None:
            delivery.route = routes[0]
            mailbox.force(delivery)
        else:
            self._route(delivery)

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        """Take messages that have arrived, in this order.

        If one actor gets all messages, they go straight into its mailbox.
        """
        mailbox = self._direct
        if (
            mailbox is None
            or mailbox.closed
            or self.inbox.items
            or self._outage is not None
            or self._stopped
            or deliveries[0].token < 0
        ):
            for delivery in deliveries:
                self.deliver(delivery)
            return
        if self._sampling is not None:
            self._sampling.choose_among(deliveries)
        self._epoch = deliveries[0].epoch
        topic = None
        route: Route | None = None
        now: float | None = None
        ready: list[Delivery] = []
        for delivery in deliveries:
            envelope = delivery.envelope
            if envelope.topic != topic:
                topic = envelope.topic
                routes = self._trie.match(topic)
                route = routes[0] if routes else None
            if envelope.expiry is not None:
                if now is None:
                    now = asyncio.get_running_loop().time()
                delivery.deadline = now + envelope.expiry
            if route is None:
                mailbox.force_all(ready)
                ready = []
                self._route(delivery)
                continue
            # As in _hand_out().
            if envelope.response_topic is not None and route.target.refuses(
                envelope, route.handler
            ):
                delivery.settle()
                continue
            delivery.route = route
            ready.append(delivery)
        mailbox.force_all(ready)

    def hold(self) -> None:
        """Take back what has not been started, because the connection is lost.

        A delivery that one of several actors has started stays with the others: the bus may be
        waiting until it is settled.
        """
        if self._outage is None:
            self._outage = outage = Outage()
            self._lost = self._epoch
            self._stale.clear()
            for target in self._targets:
                outage.take(target.mailbox, self._is_mine)
                target.interrupt(self)
            # After those already routed, to keep the order of arrival.
            outage.take(self.inbox, _is_delivery)

    def resume(self, *, redelivered: bool) -> None:
        """Drop what is held, or hand it out again if it is the last copy: connected again."""
        outage, self._outage = self._outage, None
        self._redelivered = redelivered
        if not redelivered:
            self._forgotten = self._epoch
        if outage is not None:
            outage.end(self._comes_again)

    # For the actors.

    def give_back(self, delivery: RoutedDelivery) -> bool:
        """Take back a started delivery that was interrupted before it was settled.

        This may come late, as a child process may be busy: when there is a connection again, and a
        later receipt of the message waits for the result of this one.

        Returns:
            False if it cannot be taken back: nobody would start it again, and the bus will not
            send it again.
        """
        target = delivery.route.target
        mailbox = target.mailbox
        if self.is_last_copy(delivery) if self._stopped else target not in self._targets:
            return False
        delivery.requeue()
        if self._stopped:
            self._note_taken((delivery,))
            delivery.withdraw()
        elif self._outage is not None:
            self._outage.give_back(mailbox, delivery)
        elif self._is_still_to_come(delivery):
            delivery.withdraw()
        else:
            mailbox.push_front([delivery])
        return True

    def withdraw(self, delivery: Delivery) -> bool:
        """Leave a delivery to the bus, because its actor ended before starting it.

        Returns:
            False if the bus no longer has it.
        """
        if not delivery.is_stored and (self.is_last_copy(delivery) or delivery.token < 0):
            return False
        delivery.withdraw()
        return True

    def start_over(self, delivery: RoutedDelivery) -> None:
        """Queue a started delivery again, first in its mailbox: its actor has crashed."""
        if self._stopped or self._outage is not None:
            self.give_back(delivery)
            return
        delivery.requeue()
        delivery.route.target.mailbox.push_front([delivery])

    def put_in(self, delivery: Delivery, route: Route) -> None:
        """Hand out, in order, a delivery that did not come from the bus."""
        if self._sampling is not None:
            self._sampling.choose_among((delivery,))
        if delivery.envelope.expiry is not None:
            _let_expire(delivery)
        if self._outage is None:
            self._hand_out(delivery, route)
            return
        delivery.route = route = route.lane(delivery.envelope)
        self._outage.add(route.target.mailbox, delivery)

    def stop_intake(self) -> None:
        """Withdraw what has not been started, except what the bus would not send again."""
        self._stopped = True
        for tracker in self.trackers:
            self._note_taken(tracker.unreleased())
        if self.consumer is not None:
            self.consumer.stop_intake()
        outage, self._outage = self._outage, None
        if outage is not None:
            # Those of a lost connection are in no tracker any more.
            self._note_taken(delivery for _, delivery in outage.taken)
            self._unacknowledged += sum(delivery.token < 0 for _, delivery in outage.taken)
            outage.end(lambda delivery: not self.is_last_copy(delivery))
        left: list[tuple[Mailbox, Delivery]] = []
        for target in self._targets:
            left += [(target.mailbox, item) for item in target.mailbox.extract(self._is_mine)]
            target.interrupt(self)
        left += [(self.inbox, item) for item in self.inbox.extract(_is_delivery)]
        self._unacknowledged += sum(delivery.token < 0 for _, delivery in left)
        for mailbox, delivery in left:
            if not self.is_last_copy(delivery):
                delivery.withdraw()
            elif mailbox is self.inbox:
                self._route(delivery)
            else:
                mailbox.force(delivery)

    def _note_taken(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            whole = _whole_of(delivery)
            one = delivery if whole is None else whole.delivery
            if one.token >= 0:
                self._taken[id(one)] = one

    @property
    def left(self) -> tuple[int, int]:
        """How many messages were here when the intake stopped and are not settled.

        Those that the bus has and delivers again, and those that no bus keeps.
        """
        taken = self._taken
        unsettled = sum(
            delivery.state is not DeliveryState.SETTLED
            # A later receipt of the same message stands for it.
            and id(delivery.successor) not in taken
            and not self.is_last_copy(delivery)
            for delivery in taken.values()
        )
        if self.durable:
            return unsettled, self._unacknowledged
        return 0, unsettled + self._unacknowledged

    async def close(self, system: ActorSystem, deadline: float | None = None) -> None:
        """Acknowledge what can be, disconnect, and end.

        Args:
            system: where it runs.
            deadline: loop time until which to wait for the broker; None for as long as the
                transport does by itself.
        """
        if self.consumer is not None:
            if deadline is None:
                await self.consumer.close()
            else:
                left = deadline - asyncio.get_running_loop().time()
                await self.consumer.close_within(max(left, 0.0))
        if self._spa_cell is not None:
            await system.stop(self.actor_ref, drain=False)

    # Into the mailboxes.

    async def route(self, delivery: Delivery) -> None:
        """Put one delivery into the mailbox of each actor that wants it."""
        if self._stopped and not self.is_last_copy(delivery):
            delivery.withdraw()
        else:
            self._route(delivery)

    def _route(self, delivery: Delivery) -> None:
        envelope = delivery.envelope
        routes = self._trie.match(envelope.topic)
        if self._elsewhere is not None and self._elsewhere(envelope.topic):
            delivery.settle()
        elif not routes:
            self._unwanted(delivery)
        elif not self._several_actors:
            self._hand_out(delivery, routes[0])
        else:
            first: dict[int, Route] = {}
            for route in routes:
                first.setdefault(id(route.target), route)
            if len(first) == 1:
                self._hand_out(delivery, routes[0])
                return
            if not delivery.start():
                return
            whole = SharedDelivery(delivery, len(first))
            for route in first.values():
                self._hand_out(whole.part(), route)

    def _hand_out(self, delivery: Delivery, route: Route) -> None:
        envelope = delivery.envelope
        if route.lanes:
            route = route.lane(envelope)
        delivery.route = route
        if envelope.response_topic is not None and route.target.refuses(envelope, route.handler):
            delivery.settle()
            return
        mailbox = route.target.mailbox
        try:
            if delivery.token >= 0 and route.target.options.overflow is Overflow.REFUSE:
                mailbox.force(delivery)
            else:
                mailbox.offer(delivery)
        except MailboxFull:
            self._log.warning(
                "the mailbox of %r is full with %d messages: one with QoS 0 on %s is dropped; send"
                " with QoS 1 what must not be lost, or say with overflow= what may be dropped",
                mailbox.name,
                mailbox.limit,
                quoted(envelope.topic),
                kind=mailbox.name,
            )
            route.target.dropped(delivery)
        except ActorStopped:
            # The actor was given up, and has reported it; the bus keeps what nobody settles.
            pass

    def _unwanted(self, delivery: Delivery) -> None:
        delivery.settle()
        topic = delivery.envelope.topic
        if is_reserved(topic):
            self._stats["messages.reserved"] += 1
            return
        self._stats["messages.unwanted"] += 1
        if self._elsewhere is not None:
            # It was on its way when its filter was removed: that session has no older filters.
            return
        key = hash(topic)
        times = self._stale.get(key, 0)
        if times >= _MOST_SEARCHES or (not times and len(self._stale) >= _MOST_STALE_TOPICS):
            return
        self._stale[key] = times + 1
        if not times:
            self._log.warning(
                "subscription %r: a message on %s matches none of its filters, and is dropped; an"
                " earlier version of the program may have had a filter for it",
                self.name,
                quoted(topic),
            )
        if self.consumer is not None:
            self.consumer.discard_stale(topic)

    def _is_mine(self, item: Any) -> bool:
        return isinstance(item, Delivery) and item.route.router is self

    def _comes_again(self, delivery: Delivery) -> bool:
        # Other parts of the same delivery may be running; the bus's copy is settled with them.
        return (
            self._redelivered
            and delivery.token >= 0
            and not self.is_last_copy(delivery)
            and not isinstance(delivery, DeliveryPart)
        )

    def _is_still_to_come(self, delivery: Delivery) -> bool:
        # With its connection alive, or as another receipt that has come already, it never would.
        return (
            delivery.epoch <= self._lost
            and delivery.successor is None
            and self._comes_again(delivery)
        )

    def is_last_copy(self, delivery: Delivery) -> bool:
        """Return whether the bus, which has forgotten what it sent, does not send it again."""
        return delivery.token >= 0 and delivery.epoch <= self._forgotten


def _is_delivery(item: Any) -> bool:
    return isinstance(item, Delivery)


class Outage:
    """Deliveries that were taken out of their mailboxes, with the positions they had there.

    A delivery that one of several actors has started stays: the bus may be waiting for the others
    to settle it.

    Attributes:
        taken: mailboxes and deliveries; those of one mailbox in the order to hand them out again.
    """

    def __init__(self) -> None:
        self.taken: deque[tuple[Mailbox, Delivery]] = deque()
        self._before: dict[int, list[Delivery]] = {}

    def take(self, mailbox: Mailbox, is_mine: Callable[[Any], bool]) -> None:
        """Take from a mailbox what has not been started."""
        before = self._before[id(mailbox)] = []

        def is_to_take(item: Any) -> bool:
            if not is_mine(item):
                return False
            before.append(item)
            return not (
                isinstance(item, DeliveryPart) and item.whole is not None and item.whole.begun
            )

        taken = mailbox.extract(is_to_take)
        for delivery in taken:
            if (whole := _whole_of(delivery)) is not None:
                # No part of it is running, so it must not be waited for as if one were.
                whole.delivery.requeue()
        self.taken.extend((mailbox, delivery) for delivery in taken)

    def give_back(self, mailbox: Mailbox, delivery: Delivery) -> None:
        """Add a delivery that was running, to be started again before all others."""
        self.taken.appendleft((mailbox, delivery))

    def add(self, mailbox: Mailbox, delivery: Delivery) -> None:
        """Add a new delivery, to be started after all others."""
        self.taken.append((mailbox, delivery))
        self._before.setdefault(id(mailbox), []).append(delivery)

    def leave(self, mailbox: Mailbox) -> None:
        """Put back at once what was taken from a mailbox."""
        left = [delivery for held, delivery in self.taken if held is mailbox]
        self.taken = deque(held for held in self.taken if held[0] is not mailbox)
        self._put_back(mailbox, left)

    def end(self, comes_again: Callable[[Delivery], bool]) -> None:
        """Withdraw what the bus sends again, and put back everything else."""
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
        again: dict[int, SharedDelivery] = {}
        for _, delivery in self.taken:
            whole = _whole_of(delivery)
            if whole is not None and not whole.begun and comes_again(whole.delivery):
                again[id(whole)] = whole
        for whole in again.values():
            whole.withdraw()
        return set(again)

    def _put_back(self, mailbox: Mailbox, deliveries: Iterable[Delivery]) -> None:
        # What was given back had been started, so it comes before all others.
        places = {id(delivery): place for place, delivery in enumerate(self._places(mailbox))}
        stayed = mailbox.extract(lambda item: id(item) in places)
        ordered = sorted([*deliveries, *stayed], key=lambda item: places.get(id(item), -1))
        for delivery in ordered:
            if (whole := _whole_of(delivery)) is not None:
                whole.delivery.start()
        mailbox.push_front(ordered)

    def _places(self, mailbox: Mailbox) -> list[Delivery]:
        return self._before.get(id(mailbox), [])


def _let_expire(delivery: Delivery) -> None:
    """Have the time of a message begin to run out, wherever it waits from now on."""
    assert delivery.envelope.expiry is not None
    delivery.deadline = asyncio.get_running_loop().time() + delivery.envelope.expiry


def _whole_of(delivery: Delivery) -> SharedDelivery | None:
    return delivery.whole if isinstance(delivery, DeliveryPart) else None
