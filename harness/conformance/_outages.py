"""Outages: what is published, received and replied while the broker is away, and after that."""

from __future__ import annotations

import asyncio
import random

import pytest

from ...errors import ConfigurationError, ConnectFailed
from ...transports import Delivery, DeliveryState, Envelope
from .._eventually import eventually
from ._inbox import numbered
from ._scenario import Scenarios, scenario
from ._transport_harness import TransportHarness

__all__ = ["Outages"]


class Outages(Scenarios):
    """What a transport does when the broker is away."""

    @scenario
    async def test_a_start_waits_for_the_broker(self, harness: TransportHarness) -> None:
        await harness.go_away()
        starting = asyncio.ensure_future(harness.bus())
        await asyncio.sleep(0)
        await harness.come_back()
        bus = await asyncio.wait_for(starting, 15)
        assert bus.connected

    @scenario
    async def test_a_start_without_a_broker_fails_in_time(self, harness: TransportHarness) -> None:
        working = await harness.bus("working", start_timeout=harness.quick)
        await harness.go_away()
        with pytest.raises(ConnectFailed):
            await harness.bus("late", start_timeout=harness.quick)
        with pytest.raises(ConnectFailed):
            await harness.inbox(working, "a")

    @scenario
    async def test_a_start_can_be_cancelled(self, harness: TransportHarness) -> None:
        await harness.go_away()
        starting = asyncio.ensure_future(harness.bus())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await harness.come_back()
        assert (await harness.bus("other")).connected

    @scenario
    async def test_what_keeps_messages_from_arriving_is_told(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        consumer = (await harness.inbox(bus, "a")).consumer
        assert (bus.trouble, consumer.trouble) == (None, None)
        await harness.go_away()
        await eventually(lambda: bus.trouble and consumer.trouble, 60.0)
        await harness.come_back()
        await eventually(lambda: bus.trouble is None and consumer.trouble is None, 60.0)

    @scenario
    async def test_connected_follows_the_connection(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        assert bus.connected
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        await harness.come_back()
        await eventually(lambda: bus.connected)

    @scenario
    async def test_what_is_published_while_the_broker_is_away_arrives_later(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        futures = [bus.post(envelope) for envelope in numbered("plant/x", 50)]
        await harness.come_back()
        await asyncio.wait_for(asyncio.gather(*futures), 20)
        await inbox.get(50)
        assert [d.envelope.id for d in inbox.deliveries] == [f"id-{n}" for n in range(50)]

    @scenario
    async def test_what_expires_while_the_broker_is_away_does_not_arrive(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        loop = asyncio.get_running_loop()
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        futures = [
            bus.post(Envelope(topic="plant/x", payload=payload, expiry=expiry))
            for payload, expiry in ((b"short", 1.0), (b"long", 1000.0), (b"endless", None))
        ]
        expired = loop.time() + 2.5
        await eventually(lambda: loop.time() >= expired)
        await harness.come_back()
        # Who posts what may be dropped has no need to know.
        await asyncio.wait_for(asyncio.gather(*futures), 20)
        _, delivery = sorted(await inbox.get(2), key=lambda one: one.envelope.expiry or 0.0)
        assert inbox.payloads == ["long", "endless"]
        assert delivery.envelope.expiry is not None
        assert delivery.envelope.expiry < 999.0, "what is left, and not what it was at first"

    @scenario
    async def test_publishes_and_cuts_at_the_same_time_lose_nothing(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        futures = []
        for index, envelope in enumerate(numbered("plant/x", 600)):
            futures.append(bus.post(envelope))
            if index % 20 == 0:
                await asyncio.sleep(0)
            if index % 200 == 100:
                await harness.cut()
        await asyncio.wait_for(asyncio.gather(*futures), 30)
        await eventually(lambda: len(set(inbox.payloads)) == 600, 60.0)
        first_seen = list(dict.fromkeys(inbox.payloads))
        assert first_seen == [str(number) for number in range(600)]

    @scenario
    async def test_replies_arrive_again_after_a_cut(self, harness: TransportHarness) -> None:
        replies: list[str] = []
        bus = await harness.bus(on_reply=lambda correlation, reply: replies.append(correlation))
        address = bus.reply_address("ab")
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        # Pending publishes must not overtake the subscription to the inbox.
        pending = bus.post(Envelope(topic=address))
        await harness.come_back()
        await asyncio.wait_for(pending, 20)
        await eventually(lambda: replies == ["ab"])
        assert bus.reply_address("ab") == address

    @scenario
    async def test_closing_twice_and_without_a_broker_is_quiet(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        for _ in range(2):
            await asyncio.wait_for(inbox.consumer.close(), 10)
            await asyncio.wait_for(bus.close(), 10)
        assert not bus.connected
        assert inbox.events.count("resume, redelivered") == 0

    @scenario
    async def test_two_programs_with_one_identity_end_with_an_error(
        self, harness: TransportHarness
    ) -> None:
        errors: list[BaseException] = []
        for _ in range(2):
            bus = await harness.bus("twice", fatal=errors.append)
            await harness.inbox(bus, "plant/x")
        await eventually(lambda: errors, 60)
        assert isinstance(errors[0], ConfigurationError)
        assert "'twice.0" in str(errors[0])
        assert "instance" in str(errors[0])

    @pytest.mark.parametrize("seed", [1, 2])
    @scenario
    async def test_random_settling_with_cuts_in_between_loses_nothing(
        self, harness: TransportHarness, seed: int
    ) -> None:
        choice = random.Random(seed)
        count = 2000
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/+", settle=False, window=50)
        done: dict[str, int] = {}
        open_ones: list[Delivery] = []
        inbox.on_delivery = open_ones.append

        async def work() -> None:
            while len(done) < count:
                for delivery in list(open_ones):
                    if delivery.state in (DeliveryState.SETTLED, DeliveryState.WITHDRAWN):
                        open_ones.remove(delivery)
                    elif delivery.state is DeliveryState.RUNNING and choice.random() < 0.5:
                        # Once it is settled a bus need not keep what was in it.
                        number = delivery.envelope.payload.decode()
                        delivery.settle()
                        done[number] = done.get(number, 0) + 1
                    elif delivery.state is DeliveryState.QUEUED and not held():
                        delivery.start()
                await asyncio.sleep(0.001)

        def held() -> bool:
            return bool(inbox.events) and inbox.events[-1] == "hold"

        async def trouble() -> None:
            goal = 0
            while (goal := goal + choice.randrange(200, 600)) < count:
                await progress(goal)
                await harness.cut()

        async def progress(goal: int) -> None:
            await eventually(lambda: len(done) >= goal, 60)

        posts = [bus.post(envelope) for envelope in numbered("plant/x", count)]
        await asyncio.wait_for(asyncio.gather(work(), trouble(), *posts), 100)
        assert sorted(map(int, done)) == list(range(count))
        assert inbox.events
