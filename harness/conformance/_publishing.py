"""Publishing: confirmation, order, refusals, limits, dead letters."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from ...errors import (
    ConfigurationError,
    MessageError,
    MessageTooLarge,
    NoResponder,
    OutboxFull,
    PublishNotSent,
)
from ...transports import Envelope
from .._eventually import eventually
from ._inbox import numbered
from ._scenario import Scenarios, scenario
from ._transport_harness import TransportHarness

__all__ = ["Publishing"]


_TEXTS = ("topic", "header name", "header value", "key", "content_type", "id", "response_topic")
_UNUSUAL = (
    "two\nlines",
    "null\0",
    "\x1b[2J",
    "\x7f\x85\x9f",
    "\ufdd0\ufffe\U0010ffff",
    "half \ud800 of it",
    "\u2028\u202e\u200d\ufeff",
    "l/" * 250 + "l",
    "long" * 20_000,
)


def _with_text(field: str, text: str) -> Envelope:
    envelope = Envelope(topic="plant/x", payload=b"x", id="1")
    if field == "topic":
        return msgspec.structs.replace(envelope, topic=f"plant/{text}")
    if field.startswith("header"):
        pair = {text: "value"} if field == "header name" else {"name": text}
        return msgspec.structs.replace(envelope, headers=pair)
    return msgspec.structs.replace(envelope, **{field: text})


class Publishing(Scenarios):
    """What a transport does with publishes."""

    @scenario
    async def test_a_published_message_arrives(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/boiler")
        await bus.publish(Envelope(topic="plant/boiler", payload=b"21.5"), timeout=60)
        (delivery,) = await inbox.get(1)
        envelope = delivery.envelope
        assert (envelope.topic, envelope.payload) == ("plant/boiler", b"21.5")
        assert not envelope.redelivered
        assert not envelope.retain

    @scenario
    async def test_every_field_arrives_as_it_was_sent(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/#")
        sent = Envelope(
            topic="plant/größe/ü" if harness.any_topic else "plant/_size-/u",
            payload=bytes(range(256)),
            content_type="application/json",
            id="4f0c-id",
            source="plant/0/boiler",
            type="reading",
            time=1_700_000_000.25,
            key="boiler",
            headers={"traceparent": "00-ab-cd-01", "wörter": "größe =/+#", "empty": ""},
            response_topic="plant/answers",
            correlation=b"\x00\xff17",
        )
        await bus.publish(sent, timeout=60)
        (delivery,) = await inbox.get(1)
        got = delivery.envelope
        for field in ("topic", "payload", "content_type", "id", "source", "type", "key"):
            assert getattr(got, field) == getattr(sent, field), field
        assert got.time == pytest.approx(sent.time, abs=0.001)
        assert dict(got.headers) == dict(sent.headers)
        assert (got.response_topic, got.correlation) == ("plant/answers", b"\x00\xff17")
        assert got.qos == 1

    @scenario
    async def test_trace_and_flow_arrive_under_the_same_names(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        headers = {
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "vendor=t61rcWkgMzE",
            "correlationid": "txn-7",
            "causationid": "A234",
        }
        await bus.publish(Envelope(topic="plant/x", headers=headers), timeout=60)
        (delivery,) = await inbox.get(1)
        assert dict(delivery.envelope.headers) == headers

    @pytest.mark.parametrize("field", _TEXTS)
    @scenario
    async def test_a_text_arrives_as_it_is_or_is_refused_at_once(
        self, harness: TransportHarness, field: str
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/#")
        sent: list[Envelope] = []
        for text in _UNUSUAL:
            envelope = _with_text(field, text)
            try:
                await bus.publish(envelope, timeout=60)
            except (ConfigurationError, MessageError, MessageTooLarge):
                # Refused before anything was written, so other users of the bus do not notice.
                continue
            sent.append(envelope)
        assert bus.connected
        await bus.publish(Envelope(topic="plant/x", payload=b"last"), timeout=60)
        deliveries = await inbox.get(len(sent) + 1)
        assert deliveries[-1].envelope.payload == b"last"
        for delivery, envelope in zip(deliveries, sent, strict=False):
            got = delivery.envelope
            name = "headers" if field.startswith("header") else field
            assert getattr(got, name) == getattr(envelope, name)
        assert len(deliveries) == len(sent) + 1

    @scenario
    async def test_what_was_not_sent_is_absent(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        await bus.publish(Envelope(topic="plant/x"), timeout=60)
        (delivery,) = await inbox.get(1)
        got = delivery.envelope
        assert got.payload == b""
        for field in ("content_type", "id", "source", "type", "key", "response_topic"):
            assert getattr(got, field) is None, field
        assert (got.time is not None) is harness.stamps_time
        assert got.correlation is None
        assert got.expiry is None
        assert dict(got.headers) == {}

    @scenario
    async def test_posts_are_confirmed_and_arrive_in_order(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        futures = [bus.post(envelope) for envelope in numbered("plant/x", 500)]
        await asyncio.wait_for(asyncio.gather(*futures), 20)
        await inbox.get(500)
        assert inbox.payloads == [str(number) for number in range(500)]

    @scenario
    async def test_a_message_for_nobody_is_confirmed(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        await bus.publish(Envelope(topic="nobody/listens"), timeout=60)

    @scenario
    async def test_a_request_for_nobody_fails_at_once(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        request = Envelope(topic="nobody/listens", response_topic=bus.reply_address("ab"))
        if not harness.tells_no_responder:
            await bus.publish(request, timeout=60)
            return
        with pytest.raises(NoResponder, match="nobody/listens"):
            await bus.publish(request, timeout=60)

    @scenario
    async def test_an_oversized_payload_is_refused_before_it_is_sent(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus(max_payload=1000)
        assert bus.max_payload == 1000
        inbox = await harness.inbox(bus, "plant/x")
        large = Envelope(topic="plant/x", payload=b"x" * 1001)
        with pytest.raises(MessageTooLarge, match=r"plant/x.*1001.*1000"):
            bus.post(large)
        with pytest.raises(MessageTooLarge):
            await bus.publish(large, timeout=60)
        await bus.publish(Envelope(topic="plant/x", payload=b"x" * 1000), timeout=60)
        await inbox.get(1)

    @pytest.mark.parametrize("topic", ["", "plant/+", "plant/#", "$SYS/x", "a\0"])
    @scenario
    async def test_a_topic_that_can_not_be_is_refused_before_it_is_sent(
        self, harness: TransportHarness, topic: str
    ) -> None:
        bus = await harness.bus()
        with pytest.raises(ConfigurationError):
            bus.post(Envelope(topic=topic))
        with pytest.raises(ConfigurationError):
            await bus.publish(Envelope(topic=topic), timeout=60)
        with pytest.raises(ConfigurationError, match="qos=2"):
            bus.post(Envelope(topic="plant/x", qos=2))
        await bus.publish(Envelope(topic="plant/x"), timeout=60)

    @scenario
    async def test_a_full_outbox_refuses_at_once(self, harness: TransportHarness) -> None:
        bus = await harness.bus(outbox=3)
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        futures = [bus.post(envelope) for envelope in numbered("plant/x", 3)]
        with pytest.raises(OutboxFull, match="plant/x"):
            bus.post(Envelope(topic="plant/x"))
        await harness.come_back()
        await asyncio.wait_for(asyncio.gather(*futures), 20)

    @scenario
    async def test_a_publish_that_timed_out_unsent_is_never_sent(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "plant/x")
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        with pytest.raises(PublishNotSent, match="plant/x"):
            await bus.publish(Envelope(topic="plant/x", payload=b"late"), timeout=0.05)
        cancelled = bus.post(Envelope(topic="plant/x", payload=b"cancelled"))
        assert cancelled.cancel()
        await harness.come_back()
        await bus.publish(Envelope(topic="plant/x", payload=b"next"), timeout=60)
        await inbox.get(1)
        assert inbox.payloads == ["next"]

    @scenario
    async def test_closing_gives_up_what_was_not_sent(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        await harness.go_away()
        await eventually(lambda: not bus.connected)
        future = bus.post(Envelope(topic="plant/x"))
        await bus.close()
        with pytest.raises(PublishNotSent):
            await future

    @scenario
    async def test_drain_waits_for_every_outcome(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        await bus.drain()
        futures = [bus.post(envelope) for envelope in numbered("plant/x", 20)]
        await asyncio.wait_for(bus.drain(), 10)
        assert all(future.done() for future in futures)

    @pytest.mark.parametrize("payload", [b"\xff\x00bad", b""])
    @scenario
    async def test_a_dead_letter_is_kept_for_who_comes_later(
        self, harness: TransportHarness, payload: bytes
    ) -> None:
        bus = await harness.bus()
        letter = Envelope(
            topic="plant/x",
            payload=payload,
            id="any/+#text",
            headers={"why": "it failed"},
            response_topic="plant/answers",
            expiry=1.0,
        )
        await bus.park(letter, timeout=60)
        await bus.close()
        reader = await harness.bus("reader")
        inbox = await harness.inbox(reader, "_spa/dead-letter/plant/+")
        (delivery,) = await inbox.get(1)
        got = delivery.envelope
        assert got.retain is harness.has_retained
        assert got.headers["why"] == "it failed"
        assert got.id == "any/+#text"
        assert got.expiry is None
        assert got.response_topic is None
        if payload:
            assert got.payload == payload
        elif harness.has_retained:
            # An empty retained message would be none.
            assert got.headers["spa_dead_size"] == "0"
        else:
            # `parked` may have stored it, for buses that do.
            assert got.payload == b"" or got.headers["spa_dead_size"] == "0"

    @scenario
    async def test_dead_letters_are_kept_side_by_side(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        for envelope in numbered("plant/x", 3):
            await bus.park(envelope, timeout=60)
        inbox = await harness.inbox(bus, "_spa/dead-letter/plant/#")
        await inbox.get(3)
        assert sorted(inbox.payloads) == ["0", "1", "2"]

    @scenario
    async def test_topics_and_filters_are_checked(self, harness: TransportHarness) -> None:
        provider = harness.provider()
        provider.check_topic("plant/x")
        provider.check_filter("plant/+/#")
        with pytest.raises(ConfigurationError, match="plant/#"):
            provider.check_topic("plant/#")
        with pytest.raises(ConfigurationError, match="plant/#/x"):
            provider.check_filter("plant/#/x")
        assert provider.address == harness.provider().address
