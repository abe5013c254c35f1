"""The router between a broker that comes and goes and actors that fail, against what is promised.

Each actor that wants a message finishes it once, those of one topic in order, nothing starts while
the connection is gone, and nothing is acknowledged before all are done with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import cast

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from spa_dat.runtime.routing._routed_deliveries import DeliveryPart, Route
from spa_dat.runtime.routing._router import Router
from spa_dat.transports import Consumer, Delivery, Envelope, TopicFilter
from support.machine import VirtualMachine, machine_case, step
from support.routing import Session, Worker


class RouterMachine(VirtualMachine):
    """One subscription of two actors, each with messages of its own and shared ones."""

    several = True

    @initialize()
    def begin(self) -> None:
        self.stats: Counter[str] = Counter()
        self.router = Router("subscription", self.stats)
        self.broker = Session(self.router)
        self.router.consumer = cast(Consumer, self.broker)
        self.workers = [Worker("a", "both"), Worker("b", "both")][: 2 if self.several else 1]
        self.routes: list[list[Route]] = []
        for worker in self.workers:
            routes = [
                Route(self.router, worker, handler, TopicFilter.parse(topic))
                for handler, topic in enumerate(worker.topics)
            ]
            self.routes.append(routes)
            for route in routes:
                self.router.add(route)
        self.sent: dict[int, str] = {}
        self.sent_qos0: list[int] = []
        self.stopped = False
        self.taken: set[int] = set()
        self.session_ended = False

    def wanting(self, number: int) -> list[Worker]:
        return [worker for worker in self.workers if self.sent[number] in worker.topics]

    # The broker.

    def new(self, topic: str, qos: int) -> Envelope:
        number = len(self.sent) + 1
        self.sent[number] = topic
        return Envelope(topic=topic, payload=str(number).encode(), qos=qos)

    @rule(topics=st.lists(st.sampled_from(["a", "b", "both", "both"]), min_size=1, max_size=4))
    def publish(self, topics: list[str]) -> None:
        if not self.several:
            topics = ["both" if topic == "b" else topic for topic in topics]
        self.broker.waiting += [self.new(topic, 1) for topic in topics]

    @precondition(lambda self: self.broker.connected and self.broker.waiting)
    @rule(count=st.integers(1, 5), together=st.booleans())
    @step
    async def messages_arrive(self, count: int, together: bool) -> None:
        self.broker.send(count, together=together)

    @precondition(lambda self: self.broker.connected and not self.stopped)
    @rule()
    @step
    async def a_message_of_qos_0_arrives(self) -> None:
        envelope = self.new("a", 0)
        self.sent_qos0.append(len(self.sent))
        self.router.deliver(Delivery(envelope))

    @precondition(lambda self: self.broker.connected)
    @rule()
    @step
    async def connection_is_lost(self) -> None:
        self.broker.cut()

    @precondition(lambda self: not self.broker.connected)
    @rule(kept=st.booleans(), late=st.booleans())
    @step
    async def connection_is_back(self, kept: bool, late: bool) -> None:
        for worker in self.workers:
            if worker.interrupted and not late:
                self.give_back(worker)
        self.session_ended |= self.stopped and not kept
        self.broker.come_back(kept=kept)

    # The router and the actors.

    @rule(data=st.data())
    @step
    async def the_router_works(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            if len(self.router.inbox):
                await self.router.route(self.router.inbox.get_nowait())

    @rule(data=st.data())
    @step
    async def start(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        if worker.running is None and (delivery := worker.start_next()) is not None:
            if not worker.present:
                # It works off what it has before it ends.
                return
            if self.router.holding:
                # What others have begun is not held back: the bus may be waiting for it.
                assert isinstance(delivery, DeliveryPart)
                assert delivery.whole is not None
                assert delivery.whole.begun
            last = delivery.token in (*self.broker.lost, *self.broker.gone)
            assert last or not self.stopped

    @rule(data=st.data())
    @step
    async def finish_one(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        if worker.running is not None:
            worker.interrupted = False
            worker.done()

    def give_back(self, worker: Worker) -> None:
        delivery, worker.running = worker.running, None
        worker.interrupted = False
        assert delivery is not None
        if not self.router.give_back(delivery):
            assert self.stopped or not worker.present
            # It is parked then.
            worker.running = delivery
            worker.done()

    @rule(data=st.data())
    @step
    async def give_something_back(self, data: st.DataObject) -> None:
        """It has failed, or is in a process that was busy, or has another subscription, too."""
        worker = data.draw(st.sampled_from(self.workers))
        if worker.running is not None:
            self.give_back(worker)

    @rule(data=st.data())
    @step
    async def start_over(self, data: st.DataObject) -> None:
        """The actor has lost its instance in the middle of it."""
        worker = data.draw(st.sampled_from(self.workers))
        if worker.running is not None and worker.present and not self.stopped:
            delivery, worker.running = worker.running, None
            worker.interrupted = False
            self.router.start_over(delivery)

    @precondition(lambda self: len(self.sent) > 8 and self.several and not self.stopped)
    @rule()
    @step
    async def the_second_leaves(self) -> None:
        worker = self.workers[1]
        if worker.present:
            worker.present = False
            self.router.leave(self.routes[1])

    @precondition(lambda self: len(self.sent) > 15 and not self.stopped)
    @rule()
    @step
    async def stop(self) -> None:
        self.stopped = True
        self.taken = set(self.broker.in_flight)
        self.router.stop_intake()

    # What holds after each of them.

    @invariant()
    def each_is_finished_once_and_in_order(self) -> None:
        for worker in self.workers:
            assert len(set(worker.finished)) == len(worker.finished)
            assert self.in_order(worker.finished), worker.finished
            assert worker.finished_qos0 == sorted(set(worker.finished_qos0))

    def in_order(self, finished: list[int]) -> bool:
        """Those of one topic among each other.

        What is shared and was begun by another actor when the connection was lost may be overtaken
        by an actor's own: the bus sends the own ones again, the shared one goes on here.
        """
        topics = {self.sent[number] for number in finished} if self.several else {None}
        for topic in topics:
            these = [n for n in finished if topic is None or self.sent[n] == topic]
            if these != sorted(these):
                return False
        return True

    @invariant()
    def what_is_acknowledged_is_finished(self) -> None:
        assert self.broker.acknowledged == sorted(set(self.broker.acknowledged))
        for number in self.broker.acknowledged:
            for worker in self.wanting(number):
                assert number in worker.finished or not worker.present

    async def work_everything_off(self) -> None:
        for _ in range(100):
            self.broker.send(5, together=True)
            while len(self.router.inbox):
                await self.router.route(self.router.inbox.get_nowait())
            for worker in self.workers:
                while worker.start_next() is not None:
                    worker.done()
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Everything is worked off in the end, but for what stays with the bus after a stop."""
        for worker in self.workers:
            if worker.interrupted or (worker.running is not None and self.stopped):
                self.give_back(worker)
        if not self.broker.connected:
            self.broker.come_back(kept=True)
        await self.work_everything_off()
        self.each_is_finished_once_and_in_order()
        self.what_is_acknowledged_is_finished()
        for number in self.sent:
            if number in self.sent_qos0 or number in self.broker.gone:
                continue
            if self.stopped and number not in self.broker.lost:
                continue
            for worker in self.wanting(number):
                assert number in worker.finished or not worker.present
        if self.stopped and not self.session_ended:
            self.what_is_left_is_counted()
        if not self.stopped:
            done = len(self.workers[0].finished_qos0) + self.workers[0].dropped_qos0
            assert done == len(self.sent_qos0)
            assert len(self.broker.tracker) == 0
            assert not self.broker.in_flight

    def what_is_left_is_counted(self) -> None:
        """What was here at the stop, was not finished, and comes again."""
        taken = self.taken.difference(self.broker.lost, self.broker.gone)
        unfinished = [
            [worker for worker in self.wanting(number) if number not in worker.finished]
            for number in sorted(taken)
        ]
        # What an actor wanted that has left is settled as soon as it is looked at.
        least = sum(any(worker.present for worker in workers) for workers in unfinished)
        assert least <= self.router.left[0] <= sum(map(bool, unfinished))


class OneActorRouterMachine(RouterMachine):
    """One actor alone: what arrives goes right into its mailbox."""

    several = False


TestRouter = machine_case(RouterMachine, tries=40, steps=50)
TestRouterOfOneActor = machine_case(OneActorRouterMachine, tries=25, steps=50)
