"""Messages that a broker does not take: those that it closes over, and those it puts off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from spa_dat import DistributedApplication, MqttConfig, RetryPolicy
from spa_dat.errors import (
    ConnectFailed,
    MessageTooLarge,
    NotAuthorised,
    PublishNotSent,
    PublishRefused,
    PublishUnknown,
)
from spa_dat.testing import Mosquitto, Proxy
from spa_dat.transports import REPLY_HEADER, Envelope
from spa_dat.transports._suspect_publishes import Blame
from spa_dat.transports.mqtt._bus import MqttBus
from spa_dat.transports.mqtt._connection_events import Ending, Loss
from spa_dat.transports.mqtt._publishing import blame
from spa_dat.transports.mqtt.protocol._packets import PublishPacket
from spa_dat.transports.mqtt.protocol._reason_codes import ANSWERS, BrokerReason, Packet
from support.mqtt import Client, client
from support.scripted import Packet as ClientPacket, Peer, ScriptedBroker, reason_string, suback
from support.waiting import eventually

StartBroker = Callable[..., Mosquitto]

QUICK: dict[str, Any] = {"backoff_min": 0.01, "backoff_max": 0.05}


class Accepting:
    """A broker that accepts everything.

    Args:
        taken: gets the payloads.
    """

    def __init__(self, taken: list[bytes]) -> None:
        self._taken = taken

    async def __call__(self, peer: Peer) -> None:
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            self._taken.append(payload_of(packet))
            peer.puback(packet)


class Picky:
    """A broker that closes over payloads that begin with ``bad``.

    Args:
        code: reason code of its goodbye; None to close without a word.
    """

    def __init__(self, code: int | None = None, words: str = "") -> None:
        self.code = code
        self.words = words
        self.taken: list[bytes] = []
        self.seen: list[list[bytes]] = []
        """What was written on each connection."""

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        seen: list[bytes] = []
        self.seen.append(seen)
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))
            elif packet.kind == "PINGREQ":
                peer.send(b"\xd0\0")
            elif packet.kind == "PUBLISH":
                payload = payload_of(packet)
                seen.append(payload)
                if payload.startswith(b"bad"):
                    if self.code is None:
                        peer.close()
                    else:
                        peer.goodbye(self.code, reason_string(self.words) if self.words else b"")
                    return
                self.taken.append(payload)
                peer.puback(packet)


def payload_of(packet: ClientPacket) -> bytes:
    start = 2 + int.from_bytes(packet.body[:2], "big") + (2 if packet.flags & 6 else 0)
    length = packet.body[start]
    assert length < 128, "a variable byte integer of one byte"
    return packet.body[start + 1 + length :]


def message(payload: bytes, topic: str = "t") -> Envelope:
    return Envelope(topic=topic, payload=payload)


# What an end says.


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Loss("", Ending.CLOSED), Blame.POSSIBLE),
        (Loss("", Ending.RESET), Blame.POSSIBLE),
        (Loss("", Ending.REFUSED), Blame.NONE),
        (Loss("", Ending.FAILED), Blame.NONE),
        (Loss("", Ending.OURS), Blame.NONE),
        (Loss("", Ending.GOODBYE), Blame.POSSIBLE),
    ],
    ids=lambda value: value.ending.name if isinstance(value, Loss) else value.name,
)
def test_what_the_end_of_a_connection_says_about_what_was_written(
    loss: Loss, expected: Blame
) -> None:
    assert blame(loss) is expected


def test_goodbyes_that_name_another_reason_excuse_every_message() -> None:
    found: dict[Blame, set[int]] = {kind: set() for kind in Blame}
    for code in ANSWERS[Packet.DISCONNECT]:
        found[blame(Loss("", Ending.GOODBYE, BrokerReason(code)))].add(code)
    assert found[Blame.NAMED] == {0x90, 0x95, 0x99, 0x9A, 0x9B}
    assert found[Blame.POSSIBLE] == {0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x94}
    assert {0x89, 0x8B, 0x8D, 0x8E, 0x97, 0x98, 0x9C, 0x9D, 0xA0} <= found[Blame.NONE]


# Closed over.


@pytest.mark.parametrize("code", [None, 0x81, 0x82, 0x87, 0x95, 0x99])
async def test_a_message_that_the_broker_closes_over_is_refused_and_the_rest_goes_on(
    code: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    picky = Picky(code, "line\nbreak" if code else "")
    async with ScriptedBroker(picky) as broker, client(broker, **QUICK) as app:
        payloads = [b"1", b"2", b"bad one", b"3", b"4"]
        posts = [app.bus.post(message(payload)) for payload in payloads]
        await asyncio.wait(posts, timeout=30)
        error = posts[2].exception()
        assert isinstance(error, MessageTooLarge if code == 0x95 else PublishRefused)
        assert "'t' (7 bytes)" in str(error)
        assert str(error).isprintable()
        if code is not None:
            assert f"({code:#04x})" in str(error)
            assert r"'line\nbreak'" in str(error)
        await asyncio.gather(*posts[:2], *posts[3:])
        assert picky.taken == [b"1", b"2", b"3", b"4"]
        ends = [seen for seen in picky.seen if b"bad one" in seen]
        assert len(ends) == 4
        assert ends[-1] == [b"bad one"], "alone"
        assert app.stats["publishes.refused"] == 1
        assert app.fatal == []
        assert "it will be sent alone now" in caplog.text
        await app.bus.publish(message(b"5"), timeout=5)


async def test_several_such_messages_are_found_one_after_the_other() -> None:
    picky = Picky(0x95)
    async with ScriptedBroker(picky) as broker, client(broker, **QUICK) as app:
        payloads = [b"bad %d" % n if n % 3 == 0 else b"%d" % n for n in range(12)]
        posts = [app.bus.post(message(payload)) for payload in payloads]
        await asyncio.wait(posts, timeout=40)
        refused = [p for p, post in zip(payloads, posts, strict=True) if post.exception()]
        assert refused == [payload for payload in payloads if payload.startswith(b"bad")]
        assert picky.taken == [payload for payload in payloads if not payload.startswith(b"bad")]


async def test_a_broker_that_closes_with_nothing_under_way_too_makes_nothing_be_refused() -> None:
    taken: list[bytes] = []

    async def flapping(peer: Peer) -> None:
        await peer.ready()
        # Well before the quiet second is over.
        await asyncio.sleep(0.01)
        peer.close()

    async with (
        ScriptedBroker(*[flapping] * 25, Accepting(taken)) as broker,
        client(broker, **QUICK) as app,
    ):
        posts = [app.bus.post(message(b"%d" % n)) for n in range(5)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        assert taken == [b"0", b"1", b"2", b"3", b"4"]
        assert app.stats["publishes.suspected"] >= 1, "or this proves nothing"


@pytest.mark.parametrize("code", [0x8B, 0x97, 0x98, 0x89])
async def test_a_broker_that_gives_another_reason_makes_nothing_be_suspected(code: int) -> None:
    async def draining(peer: Peer) -> None:
        await peer.ready()
        await peer.expect("PUBLISH")
        peer.goodbye(code)

    async with (
        ScriptedBroker(*[draining] * 8, Picky()) as broker,
        client(broker, **QUICK) as app,
    ):
        await app.bus.publish(message(b"good"), timeout=30)
        assert app.stats["publishes.suspected"] == 0


async def test_a_message_given_up_by_its_sender_holds_up_nothing() -> None:
    picky = Picky()
    async with ScriptedBroker(picky) as broker, client(broker, **QUICK) as app:
        bad = app.bus.post(message(b"bad"))
        good = app.bus.post(message(b"good"))
        await eventually(lambda: app.stats["publishes.suspected"] == 1)
        bad.cancel()
        await asyncio.wait_for(good, 60)


async def test_a_dead_letter_that_the_broker_closes_over_is_stored_with_less_in_it() -> None:
    stored: list[ClientPacket] = []
    sent = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))
                if b"poisoned" in packet.body and not sent.is_set():
                    sent.set()
                    peer.send(b"\x32\x14\0\x08poisoned\0\x01\0payload")
            elif packet.kind == "PUBLISH":
                if packet.body.endswith(b"payload"):
                    peer.close()
                    return
                stored.append(packet)
                peer.puback(packet)

    async with ScriptedBroker(talk) as broker:
        config = MqttConfig(broker.host, port=broker.port, backoff_min=0.01, backoff_max=0.05)
        app = DistributedApplication(config, name="plant")

        @app.application("poisoned", retry=RetryPolicy(attempts=1))
        async def handle(payload: bytes) -> None:
            raise ValueError

        async with app:
            await eventually(lambda: stored)
            assert b"_spa/dead-letter/plant/" in stored[0].body
            assert b"spa_dead_size\0\x017" in stored[0].body
            await eventually(lambda: app.stats["dead_letters.stored"] == 1)


# Refused, and then closed.


class Final:
    """A broker that refuses payloads that begin with ``bad``, and closes as soon as it has."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.refused: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            payload = payload_of(packet)
            if payload.startswith(b"bad"):
                self.refused.append(payload)
                peer.puback(packet, 0x87)
                peer.close()
                return
            self.taken.append(payload)
            peer.puback(packet)


def reply(topic: str, payload: bytes) -> Envelope:
    return Envelope(topic=topic, payload=payload, headers={REPLY_HEADER: "1"})


async def test_a_broker_that_closes_after_each_refusal_holds_nothing_else_up() -> None:
    """Mosquitto 2.0 does, where its queues have no limit."""
    final = Final()
    async with (
        ScriptedBroker(final) as broker,
        client(broker, backoff_min=0.01, backoff_max=600.0) as app,
    ):
        payloads = [b"bad %d" % n if n % 2 == 0 else b"%d" % n for n in range(30)]
        posts = [app.bus.post(message(payload)) for payload in payloads]
        # With a backoff that grows each time it would take minutes.
        await asyncio.wait(posts, timeout=40)
        for payload, post in zip(payloads, posts, strict=True):
            assert post.done()
            assert isinstance(post.exception(), NotAuthorised) == payload.startswith(b"bad")
        assert final.taken == [payload for payload in payloads if not payload.startswith(b"bad")]
        assert app.stats["publishes.suspected"] == 0
        assert app.stats["mqtt.lost"] == len(final.refused) == 15


async def test_a_reply_refused_together_with_the_connection_stands_for_all_to_the_unknown() -> None:
    """Else whoever may ask could keep the application without a connection."""
    final = Final()
    async with ScriptedBroker(final) as broker, client(broker, **QUICK) as app:
        await app.bus.publish(reply("known", b"1"), timeout=10)
        with pytest.raises(NotAuthorised):
            await app.bus.publish(reply("secret/1", b"bad"), timeout=10)
        await eventually(lambda: app.stats["mqtt.lost"] == 1)
        with pytest.raises(PublishRefused, match="reply_topics="):
            await app.bus.publish(reply("secret/2", b"bad"), timeout=10)
        await app.bus.publish(reply("known", b"2"), timeout=10)
        await app.bus.publish(message(b"3"), timeout=10)
        assert final.refused == [b"bad"]
        assert final.taken == [b"1", b"2", b"3"]


async def test_a_refusal_after_which_the_broker_goes_on_is_no_reason_for_a_later_end() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"), 0x87)
        peer.puback(await peer.expect("PUBLISH"))
        peer.close()

    async with ScriptedBroker(script, Final()) as broker, client(broker, **QUICK) as app:
        with pytest.raises(NotAuthorised):
            await app.bus.publish(reply("secret/1", b"1"), timeout=10)
        await app.bus.publish(message(b"2"), timeout=10)
        await eventually(lambda: app.stats["mqtt.lost"] == 1)
        await app.bus.publish(reply("secret/2", b"3"), timeout=10)


@pytest.mark.mosquitto
async def test_mosquitto_closes_after_a_refusal_and_everything_else_goes_on(
    own_mosquitto: StartBroker,
) -> None:
    rights = "user ann\ntopic readwrite a/#\ntopic readwrite _spa/#\n"
    broker = own_mosquitto(durable=True, users={"ann": "s"}, acl=rights)
    async with client(broker, username="ann", password="s", **QUICK) as app:
        _, recorder = await app.consume("a/+")
        posts = [app.bus.post(message(b"%d" % n, f"{'ab'[n % 2]}/1")) for n in range(20)]
        await asyncio.wait(posts, timeout=60)
        assert [type(post.exception()) for post in posts] == [type(None), NotAuthorised] * 10
        await recorder.get(10)
        assert list(dict.fromkeys(recorder.payloads)) == [b"%d" % n for n in range(0, 20, 2)]


# Put off.


async def test_a_quota_is_waited_for_and_the_order_kept(caplog: pytest.LogCaptureFixture) -> None:
    written: list[bytes] = []
    taken: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            written.append(payload_of(packet))
            if len(written) <= 7:
                peer.puback(packet, 0x97, reason_string("10 messages\na minute"))
            else:
                taken.append(written[-1])
                peer.puback(packet)

    async with ScriptedBroker(script) as broker, client(broker, inflight=3, **QUICK) as app:
        posts = [app.bus.post(message(b"%d" % n)) for n in range(5)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        assert taken == [b"0", b"1", b"2", b"3", b"4"]
        assert app.stats["publishes.put_off"] == 7
        assert app.stats["mqtt.lost"] == 0
        assert (
            r"quota exceeded (0x97), in the broker's words '10 messages\na minute'" in caplog.text
        )


@pytest.mark.parametrize(("code", "longest"), [(0x97, True), (0x91, False)])
async def test_a_broker_that_closes_over_what_it_puts_off_is_not_asked_at_once_again(
    code: int, longest: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be in a hurry for ever: the publish is written first on every connection."""
    taken: list[bytes] = []

    async def closing(peer: Peer) -> None:
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"), code, reason_string("10 a day"))
        peer.close()

    quick = {"backoff_min": 0.001, "backoff_max": 0.2}
    async with (
        ScriptedBroker(closing, closing, closing, Accepting(taken)) as broker,
        client(broker, inflight=1, **quick) as app,  # type: ignore[arg-type]
    ):
        began = asyncio.get_running_loop().time()
        posts = [app.bus.post(message(b"%d" % n)) for n in range(3)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        if longest:
            assert asyncio.get_running_loop().time() - began > 0.3, "half of 0.2 s at least, thrice"
        assert taken == [b"0", b"1", b"2"]
        assert app.stats["publishes.suspected"] == 0, "the broker has said why"
    assert "a publish that it does not accept for now: " in caplog.text
    assert f"({code:#04x}), in the broker's words '10 a day'" in caplog.text


async def test_a_suspect_that_is_put_off_for_long_is_not_overtaken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._publishing._LONGEST_ALONE", 0.05)
    seen: list[bytes] = []

    async def closing(peer: Peer) -> None:
        await peer.ready()
        await peer.expect("PUBLISH")
        peer.close()

    async def putting_off(peer: Peer) -> None:
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            seen.append(payload_of(packet))
            peer.puback(packet, 0x97 if len(seen) == 1 else 0)

    async with (
        ScriptedBroker(closing, closing, closing, putting_off) as broker,
        client(broker, backoff_min=0.3, backoff_max=0.3) as app,
    ):
        await asyncio.gather(*(app.bus.post(message(name)) for name in (b"1", b"2", b"3")))
        assert seen == [b"1", b"1", b"2", b"3"]


async def test_what_is_put_off_until_its_time_is_over_was_not_sent_and_says_why() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        while True:
            peer.puback(await peer.expect("PUBLISH"), 0x97, reason_string("tenant 7"))

    slow = {"backoff_min": 60.0, "backoff_max": 60.0}
    async with ScriptedBroker(script) as broker, client(broker, **slow) as app:  # type: ignore[arg-type]
        with pytest.raises(PublishNotSent, match=r"quota exceeded \(0x97\).*'tenant 7'"):
            await app.bus.publish(message(b"x"), timeout=2.0)


async def test_what_was_put_off_and_then_written_again_may_have_been_received() -> None:
    count = 0

    async def script(peer: Peer) -> None:
        nonlocal count
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"), 0x97)
        await peer.expect("PUBLISH")
        count += 1
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker, **QUICK) as app:
        with pytest.raises(PublishUnknown):
            await app.bus.publish(message(b"x"), timeout=1.0)
        assert count == 1


async def test_a_connection_lost_while_something_is_put_off_sends_it_on_the_next_one() -> None:
    taken: list[bytes] = []

    async def first(peer: Peer) -> None:
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"), 0x97)
        await peer.expect("PUBLISH")
        peer.reset()

    async with (
        ScriptedBroker(first, Accepting(taken)) as broker,
        client(broker, backoff_min=0.3, backoff_max=0.5) as app,
    ):
        posts = [app.bus.post(message(b"%d" % n)) for n in range(3)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        assert taken == [b"0", b"1", b"2"]


async def test_the_brokers_words_are_in_the_errors_of_publishes_and_subscriptions() -> None:
    async def refusing(peer: Peer) -> None:
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"), 0x87, reason_string("no\nway"))
        await peer.wait_closed()

    async def consuming(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.expect("SUBSCRIBE")
        peer.send(suback(packet.packet_id, 0x80, properties=reason_string("not\ntoday")))
        await peer.wait_closed()

    async with ScriptedBroker(refusing, consuming) as broker, client(broker) as app:
        with pytest.raises(NotAuthorised, match=r"'no\\nway'"):
            await app.bus.publish(message(b"x"), timeout=5)
        with pytest.raises(ConnectFailed, match=r"'not\\ntoday'"):
            await app.consume("a")


# On a real broker.


def raw(app: Client, topic: str, payload: bytes = b"x") -> asyncio.Future[None]:
    """Post to a topic that every check would refuse."""
    bus = app.bus
    assert isinstance(bus, MqttBus)
    stand_in = "x" * len(topic.encode())
    packet = PublishPacket(message(payload, stand_in))
    packet.topic = packet.topic.replace(stand_in.encode(), topic.encode())
    return bus._outbox.submit(message(payload, topic), packet)


@pytest.mark.mosquitto
@pytest.mark.parametrize("topic", ["line\nbreak", "control\x01", "a" + "/a" * 250, "wild/#"])
async def test_mosquitto_closes_over_a_topic_and_everything_else_goes_on(
    topic: str, own_mosquitto: StartBroker
) -> None:
    broker = own_mosquitto()
    async with client(broker, **QUICK) as app:
        _, recorder = await app.consume("a")
        good = [app.bus.post(message(b"%d" % n, "a")) for n in range(3)]
        bad = raw(app, topic)
        good += [app.bus.post(message(b"%d" % n, "a")) for n in range(3, 6)]
        await asyncio.wait([bad], timeout=30)
        assert isinstance(bad.exception(), PublishRefused)
        assert repr(topic[:120]) in str(bad.exception())
        await asyncio.wait_for(asyncio.gather(*good), 60)
        await recorder.get(6)
        assert list(dict.fromkeys(recorder.payloads)) == [b"%d" % n for n in range(6)]
        assert app.fatal == []


@pytest.mark.mosquitto
@pytest.mark.slow
async def test_restarts_and_cuts_under_load_make_nothing_be_refused(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(durable=True)
    async with Proxy(broker.host, broker.port) as proxy, client(proxy, **QUICK) as app:
        _, recorder = await app.consume("a")
        posts: list[asyncio.Future[None]] = []
        for turn in range(16):
            posts += [app.bus.post(message(b"%d %d" % (turn, n), "a")) for n in range(50)]
            await asyncio.sleep(0)
            before = app.stats["mqtt.connected"]
            if turn % 4 == 3:
                await asyncio.to_thread(broker.restart)
            else:
                proxy.cut()
            # Both connections: the one that publishes, and the one that consumes.
            await eventually(lambda: app.stats["mqtt.connected"] >= before + 2)  # noqa: B023
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        await eventually(lambda: len(set(recorder.payloads)) == 800)
        assert app.fatal == []
        assert app.stats["publishes.refused"] == 0


class Full:
    """A broker that does not accept for now what goes to topics that begin with ``full``."""

    def __init__(self) -> None:
        self.full = True
        self.taken: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            full = self.full and packet.body[2:6] == b"full"
            peer.puback(packet, 0x97 if full else 0)
            if not full:
                self.taken.append(payload_of(packet))


async def test_a_reply_that_is_not_accepted_for_now_holds_up_nothing_and_is_sent_later() -> None:
    full = Full()
    async with ScriptedBroker(full) as broker, client(broker, inflight=2, **QUICK) as app:
        replies = [app.bus.post(reply(f"full/{n}", b"r%d" % n)) for n in range(5)]
        for number in range(20):
            await app.bus.publish(message(b"%d" % number), timeout=20.0)
        assert not any(posted.done() for posted in replies)
        full.full = False
        await asyncio.wait_for(asyncio.gather(*replies), 20)
        assert sorted(full.taken[20:]) == [b"r0", b"r1", b"r2", b"r3", b"r4"]
        assert app.stats["mqtt.lost"] == 0


async def test_replies_that_wait_in_vain_are_refused_as_are_others_to_unknown_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._publishing._REPLIES_AGAIN", 0.05)
    monkeypatch.setattr("spa_dat.transports.mqtt._publishing._ONLY_REPLIES_REFUSED_FOR", 0.3)
    async with ScriptedBroker(Full()) as broker, client(broker, **QUICK) as app:
        await app.bus.publish(reply("known/1", b"known"), timeout=20.0)
        waiting = [app.bus.post(reply(f"full/{n}", b"r")) for n in range(3)]
        await app.bus.publish(message(b"other"), timeout=20.0)
        await asyncio.wait_for(asyncio.wait(waiting), 20)
        for posted in waiting:
            assert isinstance(posted.exception(), PublishRefused)
        with pytest.raises(PublishRefused, match="reply_topics="):
            await app.bus.publish(reply("new/1", b"r"), timeout=20.0)
        await app.bus.publish(reply("known/1", b"again"), timeout=20.0)
        await app.bus.drain()


async def test_replies_are_waited_for_while_nothing_else_is_accepted_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._publishing._REPLIES_AGAIN", 0.05)
    monkeypatch.setattr("spa_dat.transports.mqtt._publishing._ONLY_REPLIES_REFUSED_FOR", 0.1)
    full = Full()
    async with ScriptedBroker(full) as broker, client(broker, **QUICK) as app:
        posts = [app.bus.post(reply("full/1", b"r")), app.bus.post(message(b"x", "full/2"))]
        await eventually(lambda: app.stats["publishes.put_off"] > 20)
        assert not any(posted.done() for posted in posts)
        full.full = False
        await asyncio.wait_for(asyncio.gather(*posts), 20)


async def test_a_reply_that_was_set_aside_is_sent_on_the_next_connection() -> None:
    taken: list[bytes] = []

    async def first(peer: Peer) -> None:
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"), 0x97)
        peer.puback(await peer.expect("PUBLISH"))
        peer.reset()

    async with ScriptedBroker(first, Accepting(taken)) as broker, client(broker, **QUICK) as app:
        posts = [app.bus.post(reply("clients/1", b"r")), app.bus.post(message(b"x"))]
        await asyncio.wait_for(asyncio.gather(*posts), 20)
        assert taken == [b"r"]


async def test_a_reply_that_was_set_aside_may_be_given_up() -> None:
    async with ScriptedBroker(Full()) as broker, client(broker, **QUICK) as app:
        with pytest.raises(PublishNotSent, match=r"quota exceeded \(0x97\)"):
            await app.bus.publish(reply("full/1", b"r"), timeout=0.5)
        await asyncio.wait_for(app.bus.drain(), 20)


async def test_what_the_application_publishes_and_is_not_accepted_for_long_is_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._publishing._LONG", 0.2)
    full = Full()
    async with ScriptedBroker(full) as broker, client(broker, **QUICK) as app:
        post = app.bus.post(message(b"x", "full/1"))
        await eventually(lambda: "quota exceeded (0x97)" in (app.bus.trouble or ""))
        full.full = False
        await asyncio.wait_for(post, 20)
        await eventually(lambda: app.bus.trouble is None)


async def test_a_broker_that_is_alive_and_answers_no_publish_is_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._unanswered_publishes._LONG", 0.2)
    answers = asyncio.Event()
    taken: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        unanswered: list[ClientPacket] = []
        while True:
            packet = await peer.expect("PUBLISH")
            taken.append(payload_of(packet))
            unanswered.append(packet)
            if len(unanswered) == 2:
                await answers.wait()
            if answers.is_set():
                for each in unanswered:
                    peer.puback(each)
                unanswered = []

    async with ScriptedBroker(script) as broker, client(broker, **QUICK) as app:
        # One that nobody waits for any more has no answer either.
        with pytest.raises(PublishUnknown):
            await app.bus.publish(message(b"1"), timeout=0.1)
        post = app.bus.post(message(b"2"))
        await eventually(lambda: "has not answered any of 2 publishes" in (app.bus.trouble or ""))
        assert app.bus.connected
        assert app.stats["mqtt.lost"] == 0
        assert caplog.text.count("has not answered any of") == 1
        await eventually(lambda: app.stats["publishes.unanswered"] == 2)
        answers.set()
        await asyncio.wait_for(post, 20)
        assert app.bus.trouble is None
        assert taken == [b"1", b"2"]


class Forgetful:
    """Answers each publish at once, except some.

    Args:
        forgotten: their payloads.
    """

    def __init__(self, *forgotten: bytes) -> None:
        self.forgotten = forgotten
        self.unanswered: list[ClientPacket] = []
        self.peer: Peer

    async def __call__(self, peer: Peer) -> None:
        self.peer = peer
        await peer.ready()
        while True:
            packet = await peer.expect("PUBLISH")
            if payload_of(packet) in self.forgotten:
                self.unanswered.append(packet)
            else:
                peer.puback(packet)


async def test_a_broker_that_leaves_one_publish_unanswered_is_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._unanswered_publishes._LONG", 0.3)
    forgetful = Forgetful(b"3")
    async with ScriptedBroker(forgetful) as broker, client(broker, **QUICK) as app:
        posts = [app.bus.post(message(b"%d" % each, "a/b")) for each in range(6)]
        left = posts.pop(3)
        await asyncio.wait_for(asyncio.gather(*posts), 20)
        await eventually(lambda: "the publish to 'a/b' (1 bytes)" in (app.bus.trouble or ""))
        assert app.bus.connected
        assert caplog.text.count("the publish to 'a/b' (1 bytes)") == 1
        await eventually(lambda: app.stats["publishes.unanswered"] == 1)
        forgetful.peer.puback(forgetful.unanswered[0])
        await asyncio.wait_for(left, 20)
        assert app.bus.trouble is None
