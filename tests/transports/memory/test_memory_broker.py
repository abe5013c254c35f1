"""The memory broker: what only it has, and its faults; on virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from conformance.memory_harness import MemoryHarness
from spa_dat import DistributedApplication, RetryPolicy
from spa_dat.errors import (
    ConfigurationError,
    ConnectFailed,
    NoResponder,
    NotAuthorised,
    OutboxFull,
    PublishNotSent,
    PublishRefused,
    PublishUnknown,
)
from spa_dat.testing.conformance import Inbox, numbered
from spa_dat.transports import (
    Bus,
    Delivery,
    DeliveryState,
    Envelope,
    Identity,
    MemoryConfig,
    MemoryProvider,
    Subscription,
    Surroundings,
)
from spa_dat.transports.memory import Broker
from support.memory import Site
from support.waiting import eventually

virtual = pytest.mark.virtual


def message(payload: str, topic: str = "a", **fields: object) -> Envelope:
    return Envelope(topic=topic, payload=payload.encode(), **fields)  # type: ignore[arg-type]


def broker_of(harness: MemoryHarness) -> Broker:
    provider = harness.provider()
    assert isinstance(provider, MemoryProvider)
    return provider.broker


async def passed(seconds: float) -> None:
    """Virtual time goes by."""
    await asyncio.sleep(seconds)


# Who shares a broker.


@virtual
async def test_a_name_stands_for_one_broker_and_no_name_for_one_of_ones_own() -> None:
    named = [MemoryProvider(MemoryConfig(name="plant")) for _ in range(2)]
    assert named[0].broker is named[1].broker
    assert named[0].address == named[1].address == "memory://plant"
    other = MemoryProvider(MemoryConfig(name="other"))
    assert other.broker is not named[0].broker
    own = [MemoryProvider(), MemoryProvider()]
    assert own[0].broker is own[0].broker
    assert own[0].broker is not own[1].broker
    assert own[0].address != own[1].address
    assert own[0].address.startswith("memory://")


def test_a_named_broker_needs_an_event_loop_and_ends_with_it() -> None:
    provider = MemoryProvider(MemoryConfig(name="plant"))
    with pytest.raises(RuntimeError, match="no running event loop"):
        _ = provider.broker

    async def look() -> tuple[weakref.ref[Broker], int]:
        return weakref.ref(provider.broker), id(provider.broker)

    first, _ = asyncio.run(look())
    gc.collect()
    assert first() is None


def test_a_broker_of_ones_own_keeps_sessions_from_one_event_loop_to_the_next() -> None:
    provider = MemoryProvider()

    async def visit(*publish: str, close: bool) -> list[str]:
        bus = provider.open(Surroundings(Identity("plant")))
        await bus.start(lambda correlation, reply: None)
        inbox = Inbox(settle=close)
        consumer = bus.consumer(Subscription("actor", ("a",)), inbox)
        await consumer.start()
        for payload in publish:
            await bus.publish(message(payload), timeout=5)
        await eventually(lambda: len(inbox.deliveries) >= 1)
        if close:
            await consumer.close()
            await bus.close()
        return inbox.payloads

    assert asyncio.run(visit("one", close=False)) == ["one"]
    assert asyncio.run(visit(close=True)) == ["one"]


async def test_one_broker_is_not_used_from_two_running_event_loops() -> None:
    provider = MemoryProvider()
    bus = provider.open(Surroundings(Identity("plant")))
    await bus.start(lambda correlation, reply: None)

    async def elsewhere() -> None:
        other = provider.open(Surroundings(Identity("other")))
        await other.start(lambda correlation, reply: None)

    with pytest.raises(ConfigurationError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    await bus.close()


# What a confirmation means.


@virtual
async def test_a_confirmation_waits_for_no_receiver_and_comes_later() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a", settle=False, window=1)
        futures = [bus.post(envelope) for envelope in numbered("a", 5)]
        assert not any(future.done() for future in futures)
        assert inbox.deliveries == []
        await asyncio.wait_for(asyncio.gather(*futures), 1)
        assert len(inbox.deliveries) == 1


@virtual
async def test_a_receiver_can_not_change_what_others_get() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        headers = {"x": "1"}
        await bus.publish(message("m", headers=headers, redelivered=True, partition=3), timeout=5)
        headers["x"] = "2"
        (delivery,) = await inbox.get(1)
        assert delivery.envelope.headers == {"x": "1"}
        assert not delivery.envelope.redelivered
        assert delivery.envelope.partition is None
        with pytest.raises(TypeError):
            delivery.envelope.headers["x"] = "3"  # type: ignore[index]


@virtual
async def test_a_kept_session_counts_as_a_responder() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        request = message("?", response_topic=bus.reply_address("ab"))
        with pytest.raises(NoResponder):
            await bus.publish(request, timeout=5)
        inbox = await harness.inbox(bus, "a", durable=False)
        await bus.publish(request, timeout=5)
        await inbox.consumer.close()
        with pytest.raises(NoResponder):
            await bus.publish(request, timeout=5)
        kept = await harness.inbox(bus, "a")
        await kept.consumer.close()
        await bus.publish(request, timeout=5)


@virtual
async def test_a_session_that_is_not_durable_any_more_starts_empty() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        await inbox.consumer.close()
        await bus.publish(message("kept"), timeout=5)
        clean = await harness.inbox(bus, "b", durable=False)
        await bus.publish(message("a", "a"), timeout=5)
        await bus.publish(message("b", "b"), timeout=5)
        await clean.get(1)
        assert clean.payloads == ["b"]
        await clean.consumer.close()
        assert list(broker_of(harness).queues) == ["plant.0"]


@virtual
async def test_what_expires_while_it_waits_for_a_place_is_dropped() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a", settle=False, window=1)
        await bus.publish(message("first"), timeout=5)
        await bus.publish(message("short", expiry=2.0), timeout=5)
        await bus.publish(message("long", expiry=10.0), timeout=5)
        await passed(4.0)
        (first,) = await inbox.get(1)
        first.settle()
        await inbox.get(2)
        assert inbox.payloads == ["first", "long"]
        assert inbox.deliveries[1].envelope.expiry == pytest.approx(6.0, abs=0.5)


@virtual
async def test_a_retained_message_expires() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        await bus.publish(message("old", retain=True, expiry=5.0), timeout=5)
        assert list(broker_of(harness).retained) == ["a"]
        early = await harness.inbox(bus, "a", name="early")
        await early.get(1)
        await passed(5.0)
        assert list(broker_of(harness).retained) == []
        late = await harness.inbox(bus, "a", name="late")
        await bus.publish(message("end"), timeout=5)
        await late.get(1)
        assert late.payloads == ["end"]


# Shared groups.


async def group(
    harness: MemoryHarness, *instances: str, **fields: object
) -> tuple[Bus, list[Inbox]]:
    buses = [await harness.bus(instance=instance) for instance in instances]
    fields = {"settle": False, "share": True, **fields}
    return buses[0], [await harness.inbox(bus, "a", **fields) for bus in buses]  # type: ignore[arg-type]


@virtual
async def test_a_group_takes_turns_among_those_with_a_free_place() -> None:
    async with MemoryHarness() as harness:
        bus, (one, two, three) = await group(harness, "0", "1", "2", window=3)
        for envelope in numbered("a", 12):
            await bus.publish(envelope, timeout=5)
        await eventually(lambda: sum(len(each.deliveries) for each in (one, two, three)) == 9)
        assert [len(each.deliveries) for each in (one, two, three)] == [3, 3, 3]
        assert sorted(one.payloads + two.payloads + three.payloads) == [str(n) for n in range(9)]
        two.deliveries[0].settle()
        await two.get(4)
        assert two.payloads[-1] == "9"


@virtual
@pytest.mark.parametrize("way", ["close", "cut"])
async def test_what_a_leaving_member_did_not_settle_goes_to_the_others(way: str) -> None:
    async with MemoryHarness() as harness:
        bus, (one, two) = await group(harness, "0", "1")
        for envelope in numbered("a", 10):
            await bus.publish(envelope, timeout=5)
        await eventually(lambda: len(one.deliveries) + len(two.deliveries) == 10)
        settled = one.deliveries[0]
        settled.start()
        settled.settle()
        if way == "close":
            await one.consumer.close()
        else:
            broker_of(harness).faults.disconnect("plant.0.actor")
        await two.get(9)
        assert two.payloads[5:] == one.payloads[1:]
        assert all(delivery.envelope.redelivered for delivery in two.deliveries[5:])


@virtual
async def test_a_group_that_is_not_durable_ends_with_its_last_member() -> None:
    async with MemoryHarness() as harness:
        bus, (one, two) = await group(harness, "0", "1", durable=False)
        await bus.publish(message("m"), timeout=5)
        await eventually(lambda: one.deliveries or two.deliveries)
        await one.consumer.close()
        assert "$share/plant.actor" in broker_of(harness).queues
        await two.get(1)
        await two.consumer.close()
        assert "$share/plant.actor" not in broker_of(harness).queues
        with pytest.raises(NoResponder):
            await bus.publish(message("?", response_topic="r"), timeout=5)


@virtual
async def test_a_filter_of_a_group_is_in_force_while_one_member_wants_it() -> None:
    async with MemoryHarness() as harness:
        bus, (one, two) = await group(harness, "0", "1")
        await one.consumer.remove_filter("a")
        queue = broker_of(harness).queues["$share/plant.actor"]
        assert list(queue.filters) == ["a"]
        await two.consumer.remove_filter("a")
        assert list(queue.filters) == []
        assert len(queue) == 0
        await bus.publish(message("m"), timeout=5)
        assert len(queue) == 0


@virtual
async def test_qos_0_goes_to_one_member_of_a_group() -> None:
    async with MemoryHarness() as harness:
        bus, (one, two) = await group(harness, "0", "1")
        for envelope in numbered("a", 10, qos=0):
            await bus.publish(envelope, timeout=5)
        await eventually(lambda: len(one.deliveries) + len(two.deliveries) == 10)
        assert len(one.deliveries) == len(two.deliveries) == 5


# Faults.


@virtual
async def test_a_lost_session_is_told_and_nothing_comes_again() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a", settle=False)
        await bus.publish(message("one"), timeout=5)
        await inbox.get(1)
        broker_of(harness).faults.disconnect("plant.0.actor", lose_session=True)
        await inbox.back()
        assert inbox.events == ["hold", "resume, last copies"]
        await bus.publish(message("two"), timeout=5)
        await inbox.get(2)
        assert inbox.payloads == ["one", "two"]
        # Both have the same token, on different connections.
        assert inbox.deliveries[0].token == inbox.deliveries[1].token
        inbox.deliveries[0].settle()
        await inbox.consumer.close()
        again = await harness.inbox(bus, "a")
        await again.get(1)
        assert again.payloads == ["two"]


@virtual
async def test_a_dropped_message_comes_again_after_a_cut() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        faults = broker_of(harness).faults
        faults.drop_next(2)
        for envelope in numbered("a", 4):
            await bus.publish(envelope, timeout=5)
        await inbox.get(2)
        assert inbox.payloads == ["2", "3"]
        faults.disconnect("plant.0.actor")
        await inbox.get(4)
        assert inbox.payloads == ["2", "3", "0", "1"]
        faults.drop_next(1)
        await bus.publish(message("gone", qos=0), timeout=5)
        await bus.publish(message("end"), timeout=5)
        await inbox.get(5)
        assert inbox.payloads[-1] == "end"


@virtual
async def test_a_duplicated_message_comes_twice() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "+")
        broker_of(harness).faults.duplicate_next(1, "b")
        for topic in ("a", "b", "b"):
            await bus.publish(message(topic, topic, id=topic), timeout=5)
        await inbox.get(4)
        assert inbox.payloads == ["a", "b", "b", "b"]


@virtual
async def test_faults_leave_replies_alone_unless_named() -> None:
    async with MemoryHarness() as harness:
        replies: list[str] = []
        bus = await harness.bus(on_reply=lambda correlation, reply: replies.append(correlation))
        faults = broker_of(harness).faults
        faults.drop_next(1)
        await bus.publish(message("", bus.reply_address("ab")), timeout=5)
        faults.drop_next(1, "_spa/reply/#")
        await bus.publish(message("", bus.reply_address("cd")), timeout=5)
        await bus.publish(message("", bus.reply_address("ef")), timeout=5)
        await eventually(lambda: replies == ["ab", "ef"])


@virtual
async def test_a_lost_confirmation_leads_to_a_second_copy_with_the_same_id() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        faults = broker_of(harness).faults
        faults.drop_confirmations(1)
        future = bus.post(message("m", id="one"))
        await inbox.get(1)
        assert not future.done()
        faults.disconnect("plant.0")
        await asyncio.wait_for(future, 60)
        await inbox.get(2)
        assert [delivery.envelope.id for delivery in inbox.deliveries] == ["one", "one"]


@virtual
async def test_a_confirmation_on_its_way_is_lost_with_the_connection() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        future = bus.post(message("m", id="one"))
        broker_of(harness).faults.disconnect("plant.0")
        await inbox.get(1)
        assert not future.done()
        await asyncio.wait_for(future, 60)
        assert inbox.payloads == ["m", "m"]


@virtual
async def test_a_retained_message_is_no_request() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        await bus.publish(message("m", retain=True, response_topic="r"), timeout=5)
        assert list(broker_of(harness).retained) == ["a"]


@virtual
async def test_an_unconfirmed_publish_is_unknown_in_the_end() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        broker_of(harness).faults.drop_confirmations(2)
        with pytest.raises(PublishUnknown, match="'a'"):
            await bus.publish(message("m"), timeout=5)
        future = bus.post(message("m"))
        await bus.close()
        with pytest.raises(PublishUnknown):
            await future


@virtual
async def test_a_refused_publish_raises_until_it_is_allowed() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        faults = broker_of(harness).faults
        faults.refuse_publish("a/#")
        faults.refuse_publish("b", NotAuthorised("not here"))
        with pytest.raises(PublishRefused, match="a/x"):
            await bus.publish(message("m", "a/x"), timeout=5)
        with pytest.raises(NotAuthorised, match="not here"):
            await bus.publish(message("m", "b"), timeout=5)
        await bus.publish(message("m", "c"), timeout=5)
        faults.allow()
        await bus.publish(message("m", "b"), timeout=5)


@virtual
async def test_refused_connections_are_tried_again_with_growing_delays() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        faults = broker_of(harness).faults
        loop = asyncio.get_running_loop()
        began = loop.time()
        faults.disconnect("plant.0.actor")
        faults.refuse_connections(4)
        await inbox.back()
        # 0.1 + 0.2 + 0.4 + 0.8 + 1.0 s at the most, half of it at the least.
        assert 1.25 <= loop.time() - began <= 2.6


@virtual
async def test_a_start_is_tried_until_its_time_is_over() -> None:
    async with MemoryHarness() as harness:
        broker_of(harness).faults.refuse_connections(3)
        await harness.bus(start_timeout=10.0)
        broker_of(harness).faults.refuse_connections()
        began = asyncio.get_running_loop().time()
        with pytest.raises(ConnectFailed, match=r"'late\.0'.*memory://conformance.*10 s"):
            await harness.bus("late", start_timeout=10.0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(10.0)


@virtual
async def test_disconnecting_a_stranger_names_who_is_there() -> None:
    async with MemoryHarness() as harness:
        await harness.bus()
        with pytest.raises(ConfigurationError, match=r"'nobody'.*plant\.0"):
            broker_of(harness).faults.disconnect("nobody")


@virtual
async def test_being_taken_over_now_and_then_is_not_fatal() -> None:
    async with MemoryHarness() as harness:
        errors: list[BaseException] = []
        bus = await harness.bus(fatal=errors.append)
        broker = broker_of(harness)
        for _ in range(10):
            await passed(60.0)
            assert bus.connected
            broker.drop(broker.links["plant.0"], taken_over=True)
        await passed(60.0)
        assert bus.connected
        assert errors == []


@virtual
async def test_closing_while_disconnected_stops_the_attempts() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        broker_of(harness).faults.disconnect()
        await inbox.consumer.close()
        await bus.close()
        await passed(60.0)
        assert broker_of(harness).links == {}
        assert inbox.events == ["hold"]


@virtual
async def test_a_message_on_its_way_is_lost_with_the_connection_and_comes_again() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        future = bus.post(message("m"))
        broker_of(harness).faults.disconnect("plant.0.actor")
        await future
        assert inbox.deliveries == []
        (delivery,) = await inbox.get(1)
        assert delivery.envelope.redelivered


@virtual
async def test_a_cut_from_within_a_delivery_is_survived() -> None:
    async with MemoryHarness() as harness:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a", settle=False)
        faults = broker_of(harness).faults

        def cut_once(delivery: Delivery) -> None:
            inbox.on_delivery = None
            faults.disconnect("plant.0.actor")

        inbox.on_delivery = cut_once
        for envelope in numbered("a", 3):
            bus.post(envelope)
        await bus.drain()
        await eventually(lambda: len(inbox.deliveries) >= 4)
        assert inbox.payloads == ["0", "0", "1", "2"]
        assert inbox.deliveries[0].state is DeliveryState.WITHDRAWN


# What a subscriber does not take.


def kept(site: Site) -> int:
    return len(site.broker.queues["app.0.slow"])


def with_slow_actor(site: Site, go_on: asyncio.Event) -> tuple[DistributedApplication, list[int]]:
    app, handled = site.app(), list[int]()

    @app.application("slow/+", window=1)
    async def slow(payload: int) -> None:
        await go_on.wait()
        handled.append(payload)

    @app.application("quick")
    async def quick(payload: int) -> None: ...

    return app, handled


@virtual
async def test_publishes_wait_while_too_much_waits_for_a_subscriber_and_keep_their_order() -> None:
    site, go_on = Site(queue=5), asyncio.Event()
    app, handled = with_slow_actor(site, go_on)
    async with app:
        socket = app.socket()
        publishing = [
            asyncio.ensure_future(socket.publish(f"slow/{number % 2}", number))
            for number in range(50)
        ]
        await passed(1.0)
        assert kept(site) == 5
        assert sum(each.done() for each in publishing) == 6
        # Other subscribers are not affected.
        await socket.publish("quick", 1)
        with pytest.raises(
            OutboxFull, match=r"5 messages of 5 bytes are waiting for 'app\.0\.slow'"
        ):
            socket.post("slow/0", 50)
        # Whoever gives up leaves no gap in the order of the others.
        publishing[20].cancel()
        go_on.set()
        await asyncio.gather(*publishing, return_exceptions=True)
        await eventually(lambda: len(handled) == 49)
        socket.post("slow/0", 50)
        await eventually(lambda: len(handled) == 50)
    assert handled == [number for number in range(51) if number != 20]


@virtual
async def test_a_publish_that_finds_no_room_in_time_says_whose_queue_is_full() -> None:
    site, go_on = Site(queue_bytes=10_000), asyncio.Event()
    app, handled = with_slow_actor(site, go_on)
    async with app:
        socket = app.socket()
        for _ in range(5):
            await socket.publish("slow/1", 10**3000)
        with pytest.raises(OutboxFull) as caught:
            await socket.publish("slow/1", 10**3000, timeout=3.0)
        text = "4 messages of 12004 bytes are waiting for 'app.0.slow', which is slow to take them"
        assert text in str(caught.value)
        # It has waited already.
        assert "within 3 s: wait longer with timeout=; let its actor" in str(caught.value)
        assert "socket.publish" not in str(caught.value)
        assert not caught.value.outage
        assert app.stats["outages"] == 0
        go_on.set()
        await eventually(lambda: len(handled) == 5)


@virtual
async def test_a_session_that_nobody_uses_keeps_no_more_than_others_and_is_named() -> None:
    site, go_on = Site(queue=5), asyncio.Event()
    app, _ = with_slow_actor(site, go_on)
    async with app:
        pass
    other = site.app("other")

    @other.application("quick")
    async def quick(payload: int) -> None: ...

    async with other:
        for number in range(5):
            other.socket().post("slow/1", number)
        await passed(1.0)
        with pytest.raises(
            OutboxFull,
            match=r"'app\.0\.slow', which is away, .* waits for room; start its application",
        ):
            other.socket().post("slow/1", 5)
        waiting = asyncio.ensure_future(other.socket().publish("slow/1", 5))
        await passed(1.0)
        assert kept(site) == 5
    # The end of the publisher ends its wait as well.
    with pytest.raises(PublishNotSent, match="closed"):
        await waiting
    go_on.set()
    async with app:
        await eventually(lambda: kept(site) == 0)


@virtual
async def test_a_full_queue_is_in_nobodys_way_who_has_to_empty_it() -> None:
    site = Site(queue=5)
    app, ready, handled = site.app(), asyncio.Event(), list[int]()

    @app.application("slow", window=1, retry=RetryPolicy(attempts=1))
    async def slow(payload: int) -> int:
        await ready.wait()
        handled.append(payload)
        raise ValueError("its dead letter and its reply need no room in the queue")

    @app.application("slow", name="asked")
    async def asked(payload: int) -> None: ...

    async with app:
        for number in range(6):
            app.socket().post("slow", number)
            await passed(0.1)
        asking = asyncio.ensure_future(app.socket().publish("slow", 6))
        await passed(0.1)
        assert not asking.done()
        ready.set()
        await asking
        await eventually(lambda: len(handled) == 7)
        assert len(await site.parked(7)) == 7


@virtual
async def test_a_session_that_is_lost_releases_those_who_wait_for_room_in_it() -> None:
    site, go_on = Site(queue=5), asyncio.Event()
    app, _ = with_slow_actor(site, go_on)
    async with app:
        publishing = [
            asyncio.ensure_future(app.socket().publish("slow/1", number)) for number in range(20)
        ]
        await passed(0.1)
        go_on.set()
        site.cut("app.0.slow", lose_session=True)
        await asyncio.gather(*publishing)
