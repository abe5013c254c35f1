"""Replies: how requests get them, and what the reply inbox takes."""

from __future__ import annotations

import asyncio

from ...transports import Delivery, Envelope
from .._eventually import eventually
from ._scenario import Scenarios, scenario
from ._transport_harness import TransportHarness

__all__ = ["Replies"]


class Replies(Scenarios):
    """What a transport does for requests."""

    @scenario
    async def test_a_reply_finds_the_request(self, harness: TransportHarness) -> None:
        replies: dict[str, bytes] = {}
        bus = await harness.bus(
            on_reply=lambda correlation, reply: replies.update({correlation: reply.payload})
        )
        responder = await harness.bus("responder")
        inbox = await harness.inbox(responder, "sum")

        def answer(delivery: Delivery) -> None:
            request = delivery.envelope
            assert request.response_topic is not None
            responder.post(
                Envelope(
                    topic=request.response_topic,
                    payload=request.payload * 2,
                    correlation=request.correlation,
                )
            )

        inbox.on_delivery = answer
        for number in range(50):
            correlation = f"{number:04x}"
            bus.post(
                Envelope(
                    topic="sum",
                    payload=correlation.encode(),
                    response_topic=bus.reply_address(correlation),
                    correlation=correlation.encode(),
                )
            )
        await eventually(lambda: len(replies) == 50)
        await bus.drain()
        await responder.drain()
        assert all(payload == correlation.encode() * 2 for correlation, payload in replies.items())

    @scenario
    async def test_every_reply_is_handed_over_also_late_and_twice(
        self, harness: TransportHarness
    ) -> None:
        replies: list[tuple[str, bytes | None]] = []
        bus = await harness.bus(
            on_reply=lambda correlation, reply: replies.append((correlation, reply.correlation))
        )
        other = await harness.bus("other")
        for correlation in (b"ab", b"ab", None):
            await other.publish(
                Envelope(topic=bus.reply_address("ab"), correlation=correlation), timeout=10
            )
        await eventually(lambda: len(replies) == 3)
        without = b"ab" if harness.tells_correlation else None
        assert replies == [("ab", b"ab"), ("ab", b"ab"), ("ab", without)]

    @scenario
    async def test_a_reply_in_structured_mode_is_opened(self, harness: TransportHarness) -> None:
        replies: list[Envelope] = []
        bus = await harness.bus(on_reply=lambda _, reply: replies.append(reply))
        document = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":[5]}'
        await bus.publish(
            Envelope(
                topic=bus.reply_address("ab"),
                payload=document,
                content_type="application/cloudevents+json",
                correlation=b"ab",
            ),
            timeout=10,
        )
        await eventually(lambda: len(replies) == 1)
        assert (replies[0].payload, replies[0].content_type) == (b"[5]", "application/json")

    @scenario
    async def test_reply_addresses_belong_to_one_bus(self, harness: TransportHarness) -> None:
        seen: dict[str, list[str]] = {"0": [], "1": []}
        first = await harness.bus(
            instance="0", on_reply=lambda correlation, _: seen["0"].append(correlation)
        )
        second = await harness.bus(
            instance="1", on_reply=lambda correlation, _: seen["1"].append(correlation)
        )
        assert first.reply_address("ab") != second.reply_address("ab")
        assert first.reply_address("ab").startswith("_spa/reply/plant/")
        assert len(first.reply_address("ab")) - len("_spa/reply/plant//ab") >= 32
        await first.publish(Envelope(topic=second.reply_address("ab")), timeout=60)
        await first.publish(Envelope(topic=first.reply_address("cd")), timeout=60)
        await eventually(lambda: seen == {"0": ["cd"], "1": ["ab"]})

    @scenario
    async def test_a_reply_inbox_needs_no_window(self, harness: TransportHarness) -> None:
        replies: list[str] = []
        bus = await harness.bus(on_reply=lambda correlation, reply: replies.append(correlation))
        expected = [f"{number:04x}" for number in range(2000)]
        posts = [bus.post(Envelope(topic=bus.reply_address(name))) for name in expected]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        await eventually(lambda: len(replies) == 2000)
        assert replies == expected
