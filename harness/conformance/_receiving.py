"""Receiving: redelivery, order, windows, sessions, expiry."""

from __future__ import annotations

import asyncio

import pytest

from ...transports import Delivery, DeliveryState, Envelope
from .._eventually import eventually
from ._inbox import numbered
from ._scenario import Scenarios, scenario
from ._transport_harness import TransportHarness

__all__ = ["Receiving"]

_STRUCTURED = "application/cloudevents+json"


def message(payload: str, topic: str = "plant/x", **fields: object) -> Envelope:
    return Envelope(topic=topic, payload=payload.encode(), **fields)  # type: ignore[arg-type]


class Receiving(Scenarios):
    """What a transport does with deliveries."""

    @scenario
    async def test_what_is_not_settled_comes_again_after_a_cut(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        first = await harness.unsettled(bus, inbox, numbered("plant/x", 4))
        assert first[0].start()
        first[0].settle()
        await harness.cut()
        if harness.recognises:
            await inbox.get(7)
            assert inbox.payloads[4:] == ["1", "2", "3"]
            assert all(d.envelope.redelivered for d in inbox.deliveries[4:])
        else:
            await eventually(lambda: inbox.payloads.count("3") == 2, 60.0)
            assert inbox.payloads[-3:] == ["1", "2", "3"]
        assert {d.epoch for d in inbox.deliveries[4:]}.isdisjoint({d.epoch for d in first})
        assert not any(d.start() for d in first)

    @scenario
    async def test_what_was_settled_never_comes_again(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        for envelope in numbered("plant/x", 5):
            await bus.publish(envelope, timeout=60)
        await inbox.get(5)
        await inbox.consumer.close()
        again = await harness.inbox(bus, "plant/x")
        await bus.publish(message("end"), timeout=60)
        await again.get(1)
        assert again.payloads == ["end"]

    @scenario
    async def test_settling_out_of_order_runs_nothing_twice(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        deliveries = await harness.unsettled(bus, inbox, numbered("plant/x", 3))
        for delivery in deliveries[1:]:
            delivery.start()
            delivery.settle()
        await harness.cut()
        again = ["0"] if harness.recognises else ["0", "1", "2"]
        await inbox.get(3 + len(again))
        await bus.publish(message("end"), timeout=60)
        await harness.get_on(inbox, 4 + len(again))
        await inbox.has("end")
        # Where groups rebalance, what nobody has started may come several times.
        there = [one for one in inbox.deliveries[3:] if one.state is not DeliveryState.WITHDRAWN]
        assert [one.envelope.payload.decode() for one in there] == [*again, "end"]

    @scenario
    async def test_a_running_handler_settles_what_comes_again_meanwhile(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        await bus.publish(message("running", id="one"), timeout=60)
        (running,) = list(await inbox.get(1))
        assert running.start()
        for times in (1, 2):
            await harness.cut()
            await harness.back(inbox, times)
            await bus.publish(message(f"{times}"), timeout=60)
            if harness.sends_on:
                await inbox.has(f"{times}")
        assert inbox.payloads.count("running") == 1 or not harness.recognises
        running.settle()
        for delivery in inbox.deliveries:
            delivery.start()
            delivery.settle()
        await inbox.consumer.close()
        again = await harness.inbox(bus, "plant/x")
        await bus.publish(message("end"), timeout=60)
        await again.has("end")
        assert "running" not in again.payloads

    @scenario
    async def test_what_is_settled_while_away_does_not_run_again(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        await bus.publish(message("running"), timeout=60)
        (running,) = list(await inbox.get(1))
        running.start()
        await harness.go_away()
        await harness.lost(inbox)
        running.settle()
        await harness.come_back()
        await harness.back(inbox)
        await bus.publish(message("end"), timeout=60)
        again = [] if harness.recognises else ["running"]
        await inbox.get(2 + len(again))
        assert inbox.payloads == ["running", *again, "end"]

    @scenario
    async def test_what_waits_behind_the_window_stays_behind_what_comes_again(
        self,
        harness: TransportHarness,
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False, window=2)
        came = len(await harness.unsettled(bus, inbox, numbered("plant/x", 5), arrive=2))
        assert came == 2 or not harness.keeps_window
        await harness.cut()
        await harness.back(inbox)
        came = came if harness.keeps_window else 0
        for done in range(5):
            await inbox.get(came + 1 + done)
            inbox.deliveries[came + done].start()
            inbox.deliveries[came + done].settle()
        if harness.keeps_window:
            assert inbox.payloads == ["0", "1", "0", "1", "2", "3", "4"]

    @scenario
    async def test_what_is_settled_after_its_session_settles_no_later_message(
        self,
        harness: TransportHarness,
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False, durable=False)
        await bus.publish(message("old"), timeout=60)
        (old,) = list(await inbox.get(1))
        old.start()
        await harness.go_away()
        await harness.lost(inbox)
        old.settle()
        await harness.come_back()
        await harness.back(inbox)
        await harness.unsettled(bus, inbox, [message("old"), message("new")])
        assert inbox.payloads == ["old", "old", "new"]
        assert inbox.deliveries[1].start()

    @scenario
    async def test_failed_attempts_are_carried_over(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        await bus.publish(message("bad"), timeout=60)
        (delivery,) = list(await inbox.get(1))
        delivery.start()
        delivery.attempts = 2
        delivery.requeue()
        await harness.cut()
        await inbox.get(2)
        assert inbox.deliveries[1].attempts == (2 if harness.recognises else 0)
        assert inbox.deliveries[1].state is DeliveryState.QUEUED

    @pytest.mark.parametrize("durable", [True, False])
    @scenario
    async def test_hold_and_resume_say_whether_it_comes_again(
        self, harness: TransportHarness, durable: bool
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", durable=durable, settle=False)
        await bus.publish(message("kept"), timeout=60)
        await inbox.get(1)
        assert inbox.events == []
        await harness.cut()
        await harness.back(inbox)
        resumed = "resume, redelivered" if durable else "resume, last copies"
        assert inbox.events == (["hold", resumed] if harness.is_held(inbox) else [])
        await bus.publish(message("end"), timeout=60)
        expected = ["kept", "kept", "end"] if durable else ["kept", "end"]
        if durable:
            await inbox.get(2)
            await harness.get_on(inbox, 3)
        await eventually(lambda: inbox.payloads[-1] == "end")
        assert inbox.payloads == expected
        assert inbox.deliveries[0].start() is not durable

    @scenario
    async def test_settling_a_last_copy_acknowledges_nothing_else(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", durable=False, settle=False, window=2)
        old = await harness.unsettled(bus, inbox, numbered("plant/x", 2))
        await harness.cut()
        await harness.back(inbox)
        letters = [message(name) for name in ("a", "b", "c")]
        await harness.unsettled(bus, inbox, letters, arrive=2 if harness.is_held(inbox) else 0)
        for delivery in old:
            assert delivery.start()
            delivery.settle()
        await inbox.get(4)
        inbox.deliveries[2].start()
        inbox.deliveries[2].settle()
        await harness.get_on(inbox, 5)
        assert inbox.payloads == ["0", "1", "a", "b", "c"]

    @scenario
    async def test_an_event_in_structured_mode_is_opened(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        document = (
            '{"specversion":"1.0","id":"A1","source":"https://example.com/s","type":"t",'
            '"time":"2023-11-14T22:13:20.25Z","customer":"c","data":{ "x": 1 }}'
        )
        broken = '{"specversion":"1.0"}'
        for text in (document, broken):
            event = message(text, content_type=_STRUCTURED, headers={"h": "1"}, key="k")
            await bus.publish(event, timeout=60)
        deliveries = await inbox.get(2)
        got, flawed = (delivery.envelope for delivery in deliveries)
        assert (got.payload, got.content_type) == (b'{ "x": 1 }', "application/json")
        assert (got.id, got.source, got.type) == ("A1", "https://example.com/s", "t")
        assert (got.time, got.key) == (1_700_000_000.25, "k")
        assert dict(got.headers) == {"h": "1", "customer": "c"}
        assert got.original is not None
        assert (got.original.payload, got.flaw) == (document.encode(), None)
        assert (flawed.payload, flawed.content_type) == (broken.encode(), _STRUCTURED)
        assert "no 'id'" in (flawed.flaw or "")
        # What comes again is compared with what came before.
        assert deliveries[0].start()
        deliveries[0].settle()
        await harness.cut()
        if harness.recognises:
            await inbox.get(3)
            assert inbox.payloads[2:] == [broken]

    @scenario
    async def test_no_more_than_the_window_is_unsettled(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        other = await harness.inbox(bus, "plant/#", name="other")
        inbox = await harness.inbox(bus, "plant/x", settle=False, window=5)
        for envelope in numbered("plant/x", 30):
            await bus.publish(envelope, timeout=60)
        await other.get(30)
        for done in range(30):
            await inbox.get(done + 1)
            unsettled = [d for d in inbox.deliveries if d.state is not DeliveryState.SETTLED]
            assert len(unsettled) <= 5 * harness.overrun
            unsettled[0].start()
            unsettled[0].settle()
        assert inbox.payloads == [str(number) for number in range(30)]

    @scenario
    async def test_no_more_than_the_window_in_bytes_is_unsettled(
        self, harness: TransportHarness
    ) -> None:
        size, most = 50_000, 4
        bus = await harness.bus()
        other = await harness.inbox(bus, "plant/#", name="other")
        inbox = await harness.inbox(bus, "plant/x", settle=False, window_bytes=most * size)
        payloads = [f"{number}".ljust(size) for number in range(20)]
        for payload in payloads:
            await bus.publish(message(payload), timeout=60)
        await other.get(20)
        for done in range(20):
            await inbox.get(done + 1)
            unsettled = [d for d in inbox.deliveries if d.state is not DeliveryState.SETTLED]
            # What was read together, or was fetched before its size was known, may be more.
            assert len(unsettled) <= most + 2 or not harness.counts_bytes
            unsettled[0].start()
            unsettled[0].settle()
        assert inbox.payloads == payloads

    @scenario
    async def test_a_message_larger_than_the_window_in_bytes_passes_alone(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", window_bytes=1)
        payloads = ["a" * 1_000, "b", "c" * 100_000, "d"]
        for payload in payloads:
            await bus.publish(message(payload), timeout=60)
        await inbox.get(len(payloads))
        assert inbox.payloads == payloads

    @scenario
    async def test_a_full_window_does_not_hold_up_publishing(
        self, harness: TransportHarness
    ) -> None:
        replies: list[str] = []
        bus = await harness.bus(on_reply=lambda correlation, reply: replies.append(correlation))
        inbox = await harness.inbox(bus, "plant/x", settle=False, window=1)
        for envelope in numbered("plant/x", 10):
            await bus.publish(envelope, timeout=60)
        await inbox.get(1)
        await bus.publish(message("more"), timeout=60)
        await bus.publish(message("", bus.reply_address("ab")), timeout=60)
        await eventually(lambda: replies == ["ab"])
        assert inbox.payloads == ["0"] or not harness.keeps_window

    @scenario
    async def test_a_durable_subscription_keeps_messages_while_away(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        first = await harness.unsettled(bus, inbox, numbered("plant/x", 3))
        first[0].start()
        first[0].settle()
        await inbox.consumer.close()
        await bus.publish(message("while away"), timeout=60)
        again = await harness.inbox(bus, "plant/x")
        await harness.get_on(again, 3)
        assert again.payloads == ["1", "2", "while away"]
        known = harness.knows_redelivery
        assert [d.envelope.redelivered for d in again.deliveries] == [known, known, False]
        assert again.events == []

    @pytest.mark.parametrize("ephemeral", [True, False])
    @scenario
    async def test_nothing_is_kept_for_who_does_not_ask_for_it(
        self, harness: TransportHarness, ephemeral: bool
    ) -> None:
        sender = await harness.bus("sender")
        bus = await harness.bus(ephemeral=ephemeral)
        inbox = await harness.inbox(bus, "plant/x", settle=False, durable=ephemeral)
        await sender.publish(message("unsettled"), timeout=60)
        await inbox.get(1)
        await inbox.consumer.close()
        await sender.publish(message("while away"), timeout=60)
        again = await harness.inbox(bus, "plant/x", durable=ephemeral)
        await sender.publish(message("end"), timeout=60)
        await again.get(1)
        assert again.payloads == ["end"]

    @scenario
    async def test_after_stopping_intake_acknowledgements_still_go_out(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        running, waiting = await harness.unsettled(bus, inbox, numbered("plant/x", 2))
        running.start()
        inbox.consumer.stop_intake()
        waiting.withdraw()
        await bus.publish(message("after"), timeout=60)
        running.settle()
        await inbox.consumer.close()
        assert inbox.payloads == ["0", "1"]
        again = await harness.inbox(bus, "plant/x")
        await harness.get_on(again, 2)
        assert again.payloads == ["1", "after"]

    @scenario
    async def test_an_expired_message_is_not_delivered(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        await inbox.consumer.close()
        loop = asyncio.get_running_loop()
        await bus.publish(message("short", expiry=1.0), timeout=60)
        await bus.publish(message("long", expiry=1000.0), timeout=60)
        expired = loop.time() + 2.5
        await eventually(lambda: loop.time() >= expired)
        again = await harness.inbox(bus, "plant/x")
        (delivery,) = await again.get(1)
        assert again.payloads == ["long"]
        assert delivery.envelope.expiry is not None
        assert 0.0 < delivery.envelope.expiry < 1000.0

    @scenario
    async def test_qos_0_needs_no_settling_and_is_not_kept(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False)
        await bus.publish(message("fast", qos=0), timeout=60)
        (delivery,) = await inbox.get(1)
        assert delivery.envelope.qos == (0 if harness.has_qos_0 else 1)
        assert (delivery.token == -1) is harness.has_qos_0
        await harness.cut()
        await harness.back(inbox)
        await bus.publish(message("end"), timeout=60)
        await inbox.has("end")
        again = [] if harness.has_qos_0 else ["fast"]
        assert inbox.payloads == ["fast", *again, "end"]

    @scenario
    async def test_a_qos_0_subscription_gets_everything_without_acknowledgement(
        self,
        harness: TransportHarness,
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x", settle=False, qos=0, window=1)
        for envelope in numbered("plant/x", 5):
            await bus.publish(envelope, timeout=60)
        await inbox.get(5)
        assert {d.token for d in inbox.deliveries} == {-1}

    @scenario
    async def test_a_receiver_may_publish_and_settle_where_it_stands(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/+")

        def publish(delivery: Delivery) -> None:
            if delivery.envelope.topic == "plant/a":
                bus.post(message("b", "plant/b"))

        inbox.on_delivery = publish
        await bus.publish(message("a", "plant/a"), timeout=60)
        await inbox.get(2)
        assert inbox.payloads == ["a", "b"]
        await bus.drain()
