"""A broker that delivers messages on other topics than those that were asked for."""

from __future__ import annotations

import pytest

from support.mqtt import client
from support.scripted import Packet, Peer, ScriptedBroker, publish, suback
from support.waiting import eventually

_CHANGED = "delivers messages on 'site/a', which this program has not asked for"


def filters_of(packet: Packet) -> list[str]:
    """Return the filters of an UNSUBSCRIBE without properties."""
    found, rest = [], packet.body[3:]
    while rest:
        size = int.from_bytes(rest[:2], "big")
        found.append(rest[2 : 2 + size].decode())
        rest = rest[2 + size :]
    return found


class Mounting:
    """Puts ``site/`` in front of topics, but not in front of what is to be unsubscribed.

    As Mosquitto 2.0.11 with ``mount_point``.

    Args:
        session: whether it has a session from an earlier program.
        stale: whether there is a filter ``site/a`` of that program, and nothing is changed.
    """

    def __init__(self, *, session: bool, stale: bool = False) -> None:
        self.session = session
        self.stale = stale
        self.in_force = {"site/a"} if stale else set[str]()
        self.subscribed = self.unsubscribed = 0
        self.peer: Peer | None = None

    async def talk(self, peer: Peer) -> None:
        await peer.ready()
        await peer.wait_closed()

    async def consume(self, peer: Peer) -> None:
        await peer.accept(session=self.session)
        self.peer = peer
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                self.subscribed += 1
                self.in_force.add("a" if self.stale else "site/a")
                peer.send(suback(packet.packet_id, 1))
            elif packet.kind == "UNSUBSCRIBE":
                self.unsubscribed += 1
                wanted = filters_of(packet)
                peer.unsuback(packet, *(0 if one in self.in_force else 0x11 for one in wanted))
                self.in_force.difference_update(wanted)
            elif packet.kind == "PINGREQ":
                peer.send(b"\xd0\0")

    def deliver(self, number: int) -> None:
        assert self.peer is not None
        self.peer.send(publish(number, topic="site/a"))


async def test_in_a_session_of_its_own_a_strange_topic_is_trouble_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mounting = Mounting(session=False)
    async with (
        ScriptedBroker(mounting.talk, mounting.consume) as broker,
        client(broker) as app,
    ):
        consumer, recorder = await app.consume("a")
        assert consumer.trouble is None
        mounting.deliver(1)
        await recorder.get(1)
        consumer.discard_stale("site/a")
        assert _CHANGED in (consumer.trouble or "")
        # It would have ended the subscription of the actor itself.
        assert mounting.in_force == {"site/a"}
        consumer.discard_stale("site/a")
        assert caplog.text.count(_CHANGED) == 1


async def test_in_a_session_of_an_earlier_program_a_filter_that_is_back_is_trouble() -> None:
    mounting = Mounting(session=True)
    async with (
        ScriptedBroker(mounting.talk, mounting.consume) as broker,
        client(broker) as app,
    ):
        consumer, recorder = await app.consume("a")
        mounting.deliver(1)
        await recorder.get(1)
        consumer.discard_stale("site/a")
        # What is wanted is asked for again, in case it was that which was removed.
        await eventually(lambda: mounting.subscribed == 2)
        assert consumer.trouble is None
        mounting.deliver(2)
        await recorder.get(2)
        consumer.discard_stale("site/a")
        await eventually(lambda: _CHANGED in (consumer.trouble or ""))
        await eventually(lambda: mounting.subscribed == 3)
        # From now on it is known what such messages mean.
        asked = mounting.unsubscribed
        consumer.discard_stale("site/b")
        await consumer.add_filter("b")
        assert (mounting.subscribed, mounting.unsubscribed) == (4, asked)


async def test_a_filter_of_an_earlier_program_is_no_trouble_once_it_is_removed() -> None:
    mounting = Mounting(session=True, stale=True)
    async with (
        ScriptedBroker(mounting.talk, mounting.consume) as broker,
        client(broker) as app,
    ):
        consumer, recorder = await app.consume("a")
        # Two that were on their way.
        mounting.deliver(1)
        mounting.deliver(2)
        await recorder.get(2)
        consumer.discard_stale("site/a")
        consumer.discard_stale("site/a")
        await eventually(lambda: mounting.subscribed == 2)
        await eventually(lambda: mounting.in_force == {"a"})
        assert consumer.trouble is None


async def test_messages_of_a_filter_that_was_removed_are_no_trouble() -> None:
    mounting = Mounting(session=False, stale=True)
    async with (
        ScriptedBroker(mounting.talk, mounting.consume) as broker,
        client(broker) as app,
    ):
        consumer, recorder = await app.consume("a", "site/a")
        await consumer.remove_filter("site/a")
        mounting.deliver(1)
        await recorder.get(1)
        consumer.discard_stale("site/a")
        assert consumer.trouble is None


async def test_replies_on_a_strange_topic_are_trouble_of_the_bus(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def talk(peer: Peer) -> None:
        await peer.ready()
        for number in (1, 2):
            peer.send(publish(number, topic="site/a"))
        await peer.wait_closed()

    async with (
        ScriptedBroker(talk) as broker,
        client(broker) as app,
    ):
        await eventually(lambda: app.stats["replies.foreign"] == 2)
        assert _CHANGED in (app.bus.trouble or "")
        assert caplog.text.count(_CHANGED) == 1


async def test_replies_to_an_earlier_program_are_no_trouble() -> None:
    async def talk(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(1, topic="_spa/reply/app/other/1"))
        await peer.wait_closed()

    async with ScriptedBroker(talk) as broker, client(broker) as app:
        await eventually(lambda: app.stats["replies.foreign"] == 1)
        assert app.bus.trouble is None
