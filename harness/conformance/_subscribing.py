"""Filters: wildcards, overlaps, retained messages, changes at run time, shared groups."""

from __future__ import annotations

import asyncio

import pytest

from ...errors import ConnectionLost
from ...transports import Envelope
from .._eventually import eventually
from ._inbox import numbered
from ._scenario import Scenarios, scenario
from ._transport_harness import TransportHarness

__all__ = ["Subscribing"]


def message(topic: str, payload: str = "x", *, retain: bool = False) -> Envelope:
    return Envelope(topic=topic, payload=payload.encode(), retain=retain)


class Subscribing(Scenarios):
    """Which messages a transport brings."""

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("a/b", ["a/b"]),
            ("a/+", ["a/b", "a/c"]),
            ("a/#", ["a", "a/b", "a/c", "a/b/c"]),
            ("+/b", ["a/b"]),
            ("+", ["a", "end"]),
            ("#", ["a", "a/b", "a/c", "a/b/c", "end"]),
        ],
    )
    @scenario
    async def test_wildcards(
        self, harness: TransportHarness, pattern: str, expected: list[str]
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, pattern, *([] if "end" in expected else ["end"]))
        wanted = [*expected, *([] if "end" in expected else ["end"])]
        for topic in ("a", "a/b", "a/c", "a/b/c", "end"):
            await bus.publish(message(topic), timeout=60)
        await inbox.get(len(wanted))
        topics = [d.envelope.topic for d in inbox.deliveries]
        assert harness.in_order(topics) == harness.in_order(wanted)

    @scenario
    async def test_wildcards_do_not_reach_reserved_topics(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "#")
        also = await harness.inbox(bus, "+/#", name="also", settle=False, window=2)
        for number in range(5):
            await bus.park(Envelope(topic="plant/x", payload=b"dead", id=f"{number}"), timeout=60)
            await bus.publish(message(bus.reply_address("ab")), timeout=60)
        await bus.publish(message("plant/x", "end"), timeout=60)
        await inbox.has("end")
        await also.has("end")
        for each in (inbox, also):
            wanted = [d for d in each.deliveries if not d.envelope.topic.startswith("$")]
            assert [d.envelope.topic for d in wanted] == ["plant/x"]

    @pytest.mark.parametrize(
        "patterns",
        [
            ("a/b/c", "a/+/c", "a/#", "a/b/#"),
            ("a/+/c", "a/b/+"),
            ("a/#", "a/#"),
            ("+/b/#", "a/+/c", "a/b/c"),
        ],
    )
    @scenario
    async def test_overlapping_filters_give_one_copy(
        self, harness: TransportHarness, patterns: tuple[str, ...]
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, *patterns, "end")
        # Equal messages, one after the other and at once: each is a message of its own.
        for _ in range(3):
            await bus.publish(message("a/b/c", "same"), timeout=60)
        await asyncio.gather(*(bus.post(message("a/b/c", "same")) for _ in range(3)))
        await bus.publish(message("end", "end"), timeout=60)
        if not harness.one_copy:
            await inbox.has("end")
            assert inbox.payloads.count("same") >= 6
            return
        await inbox.get(7)
        assert harness.in_order(inbox.payloads) == harness.in_order([*["same"] * 6, "end"])

    @scenario
    async def test_each_subscription_gets_its_own_copy_and_settles_it_alone(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        slow = await harness.inbox(bus, "a", name="slow", settle=False)
        fast = await harness.inbox(bus, "a", name="fast")
        other = await harness.inbox(await harness.bus("other"), "a", name="fast")
        for envelope in numbered("a", 3):
            await bus.publish(envelope, timeout=60)
        for inbox in (fast, other):
            await inbox.get(3)
        unsettled = ["0", "1", "2"] if harness.sends_on else ["0"]
        await slow.get(len(unsettled))
        await harness.cut()
        for inbox in (slow, fast, other):
            await harness.back(inbox)
        await bus.publish(message("a", "end"), timeout=60)
        await harness.get_on(slow, len(unsettled) + 4)
        await fast.get(4)
        await other.get(4)
        assert slow.payloads == [*unsettled, "0", "1", "2", "end"]
        assert fast.payloads == other.payloads == ["0", "1", "2", "end"]

    @scenario
    async def test_a_new_subscription_gets_what_the_broker_keeps(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        live = await harness.inbox(bus, "a/b", name="live")
        # With ids and the time, so an acknowledgement that the cut swallows makes no difference.
        for envelope in numbered("a/b", 2, retain=True):
            await bus.publish(envelope, timeout=60)
        await live.get(2)
        assert [d.envelope.retain for d in live.deliveries] == [False, False]
        late = await harness.inbox(bus, "a/+", name="late")
        kept = ["0", "1"] if harness.keeps_all else ["1"]
        await late.get(len(kept))
        assert late.payloads == kept
        assert {d.envelope.retain for d in late.deliveries} == {harness.has_retained}
        await harness.cut()
        await harness.back(late)
        await bus.publish(message("a/c", "end"), timeout=60)
        await late.has("end")
        assert late.payloads == [*kept, "end"]

    @scenario
    async def test_retained_messages_come_as_often_as_a_subscription_asks(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        for envelope in numbered("a/b", 1, retain=True):
            await bus.publish(envelope, timeout=60)
        once = ["0"] if harness.has_retained or harness.keeps_all else []
        again = ["0"] if harness.has_retained else []
        never = [] if harness.has_retained else once
        expected = {"new": once, "always": once + again, "never": never}
        inboxes = {}
        for kind in expected:
            inboxes[kind] = await harness.inbox(bus, "a/+", name=kind, retained=kind)
        for kind in ("new", "always"):
            await inboxes[kind].get(len(once))
        await harness.cut()
        for inbox in inboxes.values():
            await harness.back(inbox)
        # It is back before it has subscribed again.
        await inboxes["always"].get(len(expected["always"]))
        await bus.publish(message("a/c", "end"), timeout=60)
        for kind, payloads in expected.items():
            await inboxes[kind].has("end")
            assert inboxes[kind].payloads == [*payloads, "end"], kind

    @scenario
    async def test_an_empty_payload_clears_the_retained_message(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        live = await harness.inbox(bus, "a", name="live")
        await bus.publish(message("a", "kept", retain=True), timeout=60)
        await bus.publish(message("a", "", retain=True), timeout=60)
        await live.get(2)
        assert live.payloads == ["kept", ""]
        late = await harness.inbox(bus, "a", name="late")
        await bus.publish(message("a", "end"), timeout=60)
        await late.has("end")
        assert late.payloads == [*(live.payloads[:2] if harness.keeps_all else []), "end"]

    @scenario
    async def test_filters_are_added_and_removed_at_run_time(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        await bus.publish(message("b", "kept", retain=True), timeout=60)
        inbox = await harness.inbox(bus, "a", "end", durable=False)
        await inbox.consumer.add_filter("b")
        kept = ["kept"] if harness.has_retained else []
        await inbox.get(len(kept))
        await bus.publish(message("b", "added"), timeout=60)
        await inbox.has("added")
        await inbox.consumer.remove_filter("b")
        await bus.publish(message("b", "removed"), timeout=60)
        await bus.publish(message("end", "end"), timeout=60)
        await inbox.has("end")
        assert inbox.payloads == [*kept, "added", "end"]

    @scenario
    async def test_a_subscription_may_start_without_filters(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, durable=False)
        await inbox.consumer.add_filter("a")
        await bus.publish(message("a"), timeout=60)
        await inbox.get(1)

    @scenario
    async def test_removing_one_of_two_overlapping_filters_keeps_the_other(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a/#", "a/b", "end", durable=False)
        await inbox.consumer.remove_filter("a/#")
        await bus.publish(message("a/c", "removed"), timeout=60)
        await bus.publish(message("a/b", "kept"), timeout=60)
        await bus.publish(message("end", "end"), timeout=60)
        await inbox.get(2)
        assert harness.in_order(inbox.payloads) == harness.in_order(["kept", "end"])

    @pytest.mark.parametrize("durable", [True, False])
    @scenario
    async def test_changed_filters_survive_a_reconnect(
        self, harness: TransportHarness, durable: bool
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a", "end", durable=durable)
        await inbox.consumer.add_filter("b")
        await inbox.consumer.remove_filter("a")
        await harness.cut()
        await harness.back(inbox)
        for topic in ("a", "b", "end"):
            await bus.publish(message(topic, topic), timeout=60)
        await inbox.get(2)
        assert harness.in_order(inbox.payloads) == harness.in_order(["b", "end"])

    @pytest.mark.parametrize("durable", [True, False])
    @scenario
    async def test_changes_while_the_broker_is_away_come_in_force_later(
        self, harness: TransportHarness, durable: bool
    ) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a", "end", durable=durable)
        await harness.go_away()
        await harness.lost(inbox)
        changes = asyncio.gather(inbox.consumer.add_filter("b"), inbox.consumer.remove_filter("a"))
        await asyncio.sleep(0)
        assert not changes.done()
        await harness.come_back()
        await asyncio.wait_for(changes, 20)
        for topic in ("a", "b", "end"):
            await bus.publish(message(topic, topic), timeout=60)
        await inbox.get(2)
        assert harness.in_order(inbox.payloads) == harness.in_order(["b", "end"])

    @scenario
    async def test_closing_ends_a_change_that_waits(self, harness: TransportHarness) -> None:
        bus = await harness.bus()
        inbox = await harness.inbox(bus, "a")
        await harness.go_away()
        await harness.lost(inbox)
        change = asyncio.ensure_future(inbox.consumer.add_filter("b"))
        await asyncio.sleep(0)
        await inbox.consumer.close()
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(change, 10)

    @scenario
    async def test_a_filter_that_an_earlier_program_left_can_be_removed(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        earlier = await harness.inbox(bus, "old/+/x", "new")
        await earlier.consumer.close()
        inbox = await harness.inbox(bus, "new")
        await bus.publish(message("old/1/x", "stale"), timeout=60)
        if harness.keeps_filters:
            await inbox.get(1)
            assert inbox.payloads == ["stale"]
        inbox.consumer.discard_stale("old/1/x")

        async def gone() -> bool:
            """Tell whether the stale message does not arrive before the wanted one any more."""
            seen = len(inbox.deliveries)
            await bus.publish(message("old/1/x", "stale"), timeout=60)
            await bus.publish(message("new", "wanted"), timeout=60)
            await eventually(lambda: "wanted" in inbox.payloads[seen:])
            return inbox.payloads[seen:] == ["wanted"]

        await eventually(gone)

    @scenario
    async def test_a_group_shares_messages_between_instances(
        self, harness: TransportHarness
    ) -> None:
        first = await harness.bus(instance="0", **harness.spread)
        if not harness.has_groups:
            await harness.refuses_groups(first)
            return
        second = await harness.bus(instance="1", **harness.spread)
        one = await harness.inbox(first, "a/#", share=True)
        two = await harness.inbox(second, "a/#", share=True)
        everything = await harness.inbox(first, "a/+", name="everything")
        for envelope in numbered("a/b", 100):
            await first.publish(envelope, timeout=60)
        await everything.get(100)
        await eventually(lambda: len(one.deliveries) + len(two.deliveries) >= 100)
        assert sorted(map(int, one.payloads + two.payloads)) == list(range(100))
        assert one.payloads
        assert two.payloads

    @scenario
    async def test_groups_of_other_applications_and_actors_are_other_groups(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        if not harness.has_groups:
            await harness.refuses_groups(bus)
            return
        inboxes = [
            await harness.inbox(bus, "a", name="one", share=True),
            await harness.inbox(bus, "a", name="two", share=True),
            await harness.inbox(await harness.bus("other"), "a", name="one", share=True),
        ]
        for envelope in numbered("a", 10):
            await bus.publish(envelope, timeout=60)
        for inbox in inboxes:
            await inbox.get(10)
            assert inbox.payloads == [str(number) for number in range(10)]

    @scenario
    async def test_a_group_keeps_messages_while_nobody_is_there(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        if not harness.has_groups:
            await harness.refuses_groups(bus)
            return
        inbox = await harness.inbox(bus, "a", share=True)
        await inbox.consumer.close()
        for envelope in numbered("a", 10):
            await bus.publish(envelope, timeout=60)
        again = await harness.inbox(bus, "a", share=True)
        await again.get(10)
        assert again.payloads == [str(number) for number in range(10)]

    @scenario
    async def test_a_group_gets_nothing_because_it_was_retained(
        self, harness: TransportHarness
    ) -> None:
        bus = await harness.bus()
        if not harness.has_groups:
            await harness.refuses_groups(bus)
            return
        await bus.publish(message("a", "retained", retain=True), timeout=60)
        inbox = await harness.inbox(bus, "a", share=True)
        await bus.publish(message("a", "end"), timeout=60)
        await inbox.has("end")
        assert inbox.payloads == [*(["retained"] if harness.keeps_all else []), "end"]
