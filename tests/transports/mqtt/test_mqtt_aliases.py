"""Topic aliases: numbers in place of topics that the broker knows already, on one connection."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from spa_dat.testing import Mosquitto, Proxy
from spa_dat.transports import Envelope
from spa_dat.transports.mqtt.protocol._packets import (
    PublishPacket,
    TopicAliases,
    read_variable,
)
from support.mqtt import client
from support.scripted import Packet, Peer, ScriptedBroker, publish
from support.waiting import eventually

NUMBERS = itertools.count()
ONE, TWO, THREE = (f"plant/line/{number}/temperature" for number in ("one", "two", "three"))
INVALID = 0x94
# Of the properties of our CONNECT: session expiry and receive maximum.
SIZES = {0x11: 4, 0x21: 2}


def allows(count: int) -> bytes:
    """The property of a CONNACK with which a broker accepts so many aliases."""
    return b"\x22" + count.to_bytes(2, "big")


def named(body: bytes, qos: int = 1) -> tuple[str, int]:
    """The topic and the alias in a PUBLISH without its fixed header; 0 for no alias."""
    end = 2 + int.from_bytes(body[:2], "big")
    length, start = read_variable(body, end + (2 if qos else 0))
    properties = body[start : start + length]
    alias = int.from_bytes(properties[1:3], "big") if properties[:1] == b"\x23" else 0
    return body[2:end].decode(), alias


async def written(
    topics: Sequence[str], count: int, properties: bytes, *, qos: int = 1
) -> list[tuple[str, int]]:
    """What a client with so many aliases writes to a broker that says this of itself."""
    packets: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.ready(properties)
        while True:
            packets.append(await peer.expect("PUBLISH"))
            if qos:
                peer.puback(packets[-1])

    async with ScriptedBroker(script) as broker, client(broker, topic_aliases=count) as app:
        for topic in topics:
            await app.bus.publish(Envelope(topic=topic, payload=b"x", qos=qos), timeout=10)
        await eventually(lambda: len(packets) == len(topics))
    return [named(packet.body, qos) for packet in packets]


# What is written.


@pytest.mark.parametrize("qos", [0, 1])
async def test_the_second_time_a_number_stands_for_the_topic(qos: int) -> None:
    sent = await written([ONE, ONE, TWO, ONE, TWO], 10, allows(10), qos=qos)
    assert sent == [(ONE, 1), ("", 1), (TWO, 2), ("", 1), ("", 2)]


@pytest.mark.parametrize(("ours", "the_brokers"), [(2, 10), (10, 2)])
async def test_with_more_topics_the_one_not_used_for_longest_gives_up_its_alias(
    ours: int, the_brokers: int
) -> None:
    sent = await written([ONE, TWO, ONE, THREE, ONE, TWO, THREE], ours, allows(the_brokers))
    assert sent == [(ONE, 1), (TWO, 2), ("", 1), (THREE, 2), ("", 1), (TWO, 2), (THREE, 1)]


@pytest.mark.parametrize(("ours", "properties"), [(10, b""), (10, allows(0)), (0, allows(10))])
async def test_there_are_none_unless_both_sides_want_them(ours: int, properties: bytes) -> None:
    assert await written([ONE, ONE], ours, properties) == [(ONE, 0), (ONE, 0)]


async def test_neither_short_topics_nor_those_of_the_runtime_have_one() -> None:
    topics = ["short", "_spa/reply/somebody/else/0123456789"] * 2
    assert await written(topics, 10, allows(10)) == [(topic, 0) for topic in topics]


async def test_a_packet_that_an_alias_would_make_too_large_has_none() -> None:
    size = PublishPacket(Envelope(topic=ONE, payload=b"x")).size
    limit = b"\x27" + size.to_bytes(4, "big") + allows(10)
    assert await written([ONE, ONE], 10, limit) == [(ONE, 0), (ONE, 0)]
    limit = b"\x27" + (size + 10).to_bytes(4, "big") + allows(10)
    assert await written([ONE, ONE], 10, limit) == [(ONE, 1), ("", 1)]


@pytest.mark.parametrize("again", [b"", allows(1)])
async def test_what_is_written_again_on_another_connection_never_has_an_old_alias(
    again: bytes,
) -> None:
    packets: list[Packet] = []

    async def first(peer: Peer) -> None:
        await peer.ready(allows(10))
        packets.extend([await peer.expect("PUBLISH") for _ in range(4)])
        peer.reset()

    async def second(peer: Peer) -> None:
        await peer.ready(again)
        while True:
            packets.append(await peer.expect("PUBLISH"))
            peer.puback(packets[-1])

    async with (
        ScriptedBroker(first, second) as broker,
        client(broker, topic_aliases=10) as app,
    ):
        posts = [app.bus.post(Envelope(topic=topic)) for topic in (ONE, TWO, ONE, TWO)]
        await asyncio.wait_for(asyncio.gather(*posts), 30)
    sent = [named(packet.body) for packet in packets]
    assert sent[:4] == [(ONE, 1), (TWO, 2), ("", 1), ("", 2)]
    expected = [(topic, 1 if again else 0) for topic in (ONE, TWO, ONE, TWO)]
    assert sent[4:] == expected


async def test_a_broker_that_does_not_accept_what_it_has_offered_gets_none_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    packets: list[Packet] = []

    async def first(peer: Peer) -> None:
        await peer.ready(allows(10))
        await peer.expect("PUBLISH")
        peer.goodbye(INVALID)

    async def second(peer: Peer) -> None:
        await peer.ready(allows(10))
        while True:
            packets.append(await peer.expect("PUBLISH"))
            peer.puback(packets[-1])

    async with (
        ScriptedBroker(first, second) as broker,
        client(broker, topic_aliases=10) as app,
    ):
        for _ in range(2):
            await app.bus.publish(Envelope(topic=ONE), timeout=30)
    assert [named(packet.body) for packet in packets] == [(ONE, 0), (ONE, 0)]
    assert "does not accept the topic aliases" in caplog.text
    assert "topic_aliases=0" in caplog.text


@given(
    topics=st.lists(st.integers(0, 6), max_size=60),
    most=st.integers(1, 5),
    size=st.sampled_from([0, 90, 120, 127, 20_000]),
)
def test_a_broker_that_follows_knows_each_topic(topics: list[int], most: int, size: int) -> None:
    aliases = TopicAliases(most)
    known: dict[int, str] = {}
    for number in topics:
        topic = f"plant/line/{number}/temperature"
        sent = Envelope(topic=topic, payload=b"x", headers={"h": "x" * size})
        packet = aliases.encode(PublishPacket(sent), 1)
        length, start = read_variable(packet, 1)
        assert len(packet) == start + length
        name, alias = named(packet[start:])
        assert 1 <= alias <= most
        if name:
            known[alias] = name
        assert known[alias] == topic


# What comes.


async def test_none_are_offered_and_one_that_comes_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connects: list[Packet] = []

    async def script(peer: Peer) -> None:
        connects.append(await peer.accept())
        await peer.subscribe()
        await peer.wait_closed()

    async def hostile(peer: Peer) -> None:
        connects.append(await peer.accept())
        await peer.subscribe()
        peer.send(publish(1, properties=b"\x23\xff\xff"))
        await peer.wait_closed()

    caplog.set_level(logging.INFO)
    async with ScriptedBroker(script, hostile, script) as broker, client(broker) as app:
        _, recorder = await app.consume("t")
        await eventually(lambda: len(connects) == 3)
        assert recorder.deliveries == []
    assert "has a topic alias, and none was offered" in caplog.text
    for connect in connects:
        length, position = read_variable(connect.body, 10)
        end = position + length
        while position < end:
            position += 1 + SIZES[connect.body[position]]


# On a real broker.


@pytest.mark.mosquitto
@pytest.mark.parametrize("seed", range(3))
async def test_each_message_arrives_on_its_topic_whatever_is_cut(
    mosquitto: Mosquitto, seed: int
) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    root = f"aliases/of/the/line/{next(NUMBERS)}"
    async with (
        client(mosquitto, name=f"aliases-reader-{seed}") as reader,
        Proxy(mosquitto.host, mosquitto.port) as proxy,
        client(proxy, name=f"aliases-{seed}", topic_aliases=5) as app,
    ):
        _, recorder = await reader.consume(f"{root}/+")
        posts = []
        for number in range(600):
            topic = f"{root}/{chance.randrange(8)}"
            sent = Envelope(topic=topic, payload=topic.encode(), id=str(number))
            posts.append(app.bus.post(sent))
        publishing = asyncio.gather(*posts)
        for _ in range(5):
            proxy.cut_after(chance.randrange(1_000, 8_000))
            # Another one before that cut would let bytes pass behind a gap.
            await eventually(lambda: proxy.on_client_bytes is None or publishing.done(), 60)
        await asyncio.wait_for(publishing, 60)
        await eventually(lambda: len({one.envelope.id for one in recorder.deliveries}) == 600)
        for one in recorder.deliveries:
            assert one.envelope.topic == one.envelope.payload.decode()
        assert app.stats["mqtt.lost"] > 1
