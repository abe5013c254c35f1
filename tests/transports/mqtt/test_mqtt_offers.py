"""What a broker says about itself, and what it turns out not to offer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from spa_dat import DistributedApplication, MqttConfig, Socket
from spa_dat.errors import ConfigurationError, ConnectFailed
from spa_dat.testing import Mosquitto
from spa_dat.transports import Envelope
from support.mqtt import Recorder, client
from support.scripted import (
    Packet,
    Peer,
    ScriptedBroker,
    connack,
    publish,
    reason_string,
    server_reference,
    suback,
)
from support.waiting import eventually

StartBroker = Callable[..., Mosquitto]

NO_RETAIN = b"\x25\0"
NO_WILDCARDS = b"\x28\0"
NO_SHARING = b"\x2a\0"
QOS_0 = b"\x24\0"


class Serving:
    """Accepts with these properties, grants and confirms everything, and remembers packets."""

    def __init__(self, properties: bytes = b"") -> None:
        self.properties = properties
        self.packets: list[Packet] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.accept(self.properties)
        while True:
            packet = await peer.receive()
            self.packets.append(packet)
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))
            elif packet.kind == "UNSUBSCRIBE":
                peer.unsuback(packet)
            elif packet.kind == "PUBLISH":
                peer.puback(packet)
            elif packet.kind == "PINGREQ":
                peer.send(b"\xd0\0")

    def filters(self) -> list[bytes]:
        return [packet.body for packet in self.packets if packet.kind == "SUBSCRIBE"]


# Sessions.


async def test_a_session_kept_for_less_time_than_asked_for_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    serving = Serving(b"\x11\0\0\0\x05")
    cut = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.ready(serving.properties)
        await cut.wait()
        peer.reset()

    async with ScriptedBroker(serving, first, serving) as broker, client(broker) as app:
        await app.consume("a")
        cut.set()
        await eventually(lambda: broker.connections == 3)
        await eventually(lambda: app.stats["mqtt.connected"] == 3)
        said = [
            record.getMessage() for record in caplog.records if "for only 5 s" in record.message
        ]
        assert len(said) == 1
        assert "'app.0.actor'" in said[0]
        assert "604800 s" in said[0]
        assert app.stats["mqtt.session_shortened"] == 1


async def test_a_session_as_long_as_asked_for_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        ScriptedBroker(Serving(b"\x11\xff\xff\xff\xff")) as broker,
        client(broker) as app,
    ):
        await app.consume("a")
        assert app.stats["mqtt.session_shortened"] == 0


# What is not offered.


@pytest.mark.parametrize(
    ("properties", "share", "words"),
    [
        (NO_WILDCARDS, False, r"'a/\+'.*wildcard subscriptions not supported.*without \+ and #"),
        (
            NO_SHARING,
            True,
            r"'\$share/app\.actor/a/\+'.*shared subscriptions not supported.*deliver='all'",
        ),
    ],
)
async def test_a_filter_that_the_broker_can_not_serve_fails_the_start_and_is_never_sent(
    properties: bytes, share: bool, words: str
) -> None:
    serving = Serving(properties)
    async with ScriptedBroker(serving) as broker, client(broker, start_timeout=60) as app:
        with pytest.raises(ConnectFailed, match=words):
            await app.consume("a/+", share=share)
        # Not just its end: the reply inbox has a random name, which may end with an a.
        sent = b"$share/" if share else b"\0\x03a/+"
        assert not any(sent in body for body in serving.filters())
        assert broker.connections == 2, "at once"


@pytest.mark.parametrize(
    ("code", "share", "words"),
    [
        (
            0xA2,
            False,
            r"'a/\+'.*wildcard subscriptions not supported.*'not\\nhere'.*without \+ and #",
        ),
        (0x9E, True, r"'\$share/app.actor/a/\+'.*shared subscriptions.*deliver='all'"),
        (0x8F, False, r"'a/\+'.*topic filter invalid"),
    ],
)
async def test_a_goodbye_over_a_subscription_fails_the_start_at_once(
    code: int, share: bool, words: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("SUBSCRIBE")
        peer.goodbye(code, reason_string("not\nhere"))

    async with (
        ScriptedBroker(Serving(), script) as broker,
        client(broker, start_timeout=60) as app,
    ):
        with pytest.raises(ConnectFailed, match=words):
            await app.consume("a/+", share=share)
        assert broker.connections == 2


async def test_without_wildcards_all_but_requests_works(caplog: pytest.LogCaptureFixture) -> None:
    serving = Serving(NO_WILDCARDS)
    async with ScriptedBroker(serving) as broker:
        app = DistributedApplication(MqttConfig(broker.host, port=broker.port), name="plant")
        failed: list[BaseException] = []

        @app.application("plain")
        async def handle(payload: bytes) -> None: ...

        @app.producer()
        async def ask(socket: Socket) -> None:
            await socket.publish("out", 1)
            try:
                await socket.request("question", 1, reply=int, timeout=5)
            except ConfigurationError as error:
                failed.append(error)
            await asyncio.Event().wait()

        async with app:
            await eventually(lambda: failed)
            assert "requests are impossible" in str(failed[0])
            assert app.healthy
        assert "offers no wildcard subscriptions" in caplog.text
        assert not any(b"_spa" in body for body in serving.filters())


@pytest.mark.parametrize(
    ("properties", "words"),
    [(NO_RETAIN, "keeps no retained messages: dead letters"), (QOS_0, "give the option qos=0")],
)
async def test_what_will_be_missed_later_is_said_at_the_start(
    properties: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedBroker(Serving(properties)) as broker, client(broker):
        assert caplog.text.count(words) == 1


# Servers elsewhere.


async def test_a_server_that_has_moved_is_named_and_not_tried_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(connack(0x9D, server_reference("b.example:1883") + reason_string("moved")))
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match=r"'moved'.*'b\.example:1883'.*give the address"):
            async with client(broker, start_timeout=60):
                pass
        assert broker.connections == 1


async def test_the_reference_to_another_server_in_a_goodbye_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.ready()
        await started.wait()
        peer.goodbye(0x9C, server_reference("b.example"))

    async with ScriptedBroker(script, Serving()) as broker, client(broker):
        started.set()
        await eventually(lambda: broker.connections == 2)
        assert "it refers to the server 'b.example'" in caplog.text


# Older brokers.


async def test_a_broker_that_answers_in_an_older_version_is_named_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(b"\x20\x02\x00\x01")
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match="does not speak MQTT 5"):
            async with client(broker, start_timeout=60):
                pass
        assert broker.connections == 1


@pytest.mark.parametrize("code", [0, 5])
async def test_a_broker_that_closes_and_would_answer_an_older_version_is_named_soon(
    code: int,
) -> None:
    async def script(peer: Peer) -> None:
        packet = await peer.expect("CONNECT")
        if packet.body[6] == 4:
            peer.send(bytes((0x20, 2, 0, code)))
            await peer.wait_closed()
        else:
            peer.close()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match=r"answers MQTT 3\.1\.1.*not speak MQTT 5"):
            async with client(broker, start_timeout=60):
                pass
        assert broker.connections == 5, "twice each, and once with the shortest of MQTT 5"


async def test_a_broker_that_closes_whatever_comes_is_tried_until_the_time_is_over() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.close()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match=r"before it was accepted; tried for 0\.3 s"):
            async with client(broker, start_timeout=0.3):
                pass


async def test_a_broker_that_has_just_been_started_is_not_taken_for_an_old_one() -> None:
    async def older(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(b"\x20\x02\0\0")
        await peer.wait_closed()

    async def closing(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.close()

    async with (
        ScriptedBroker(closing, older, Serving()) as broker,
        client(broker, start_timeout=60) as app,
    ):
        assert app.bus.connected


# Filters that are added.


async def test_a_filter_over_which_the_broker_closes_is_given_up_and_the_others_stay() -> None:
    wanted: list[bytes] = []

    async def closing(peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                wanted.append(packet.body)
                if b"bad" in packet.body:
                    peer.close()
                    return
                peer.send(suback(packet.packet_id, 1))
                if len(wanted) > 2:
                    peer.send(publish(1, b"still comes", topic="a"))
            else:
                assert packet.kind != "UNSUBSCRIBE", "it would be closed over, too"

    async with ScriptedBroker(Serving(), closing) as broker, client(broker) as app:
        consumer, recorder = await app.consume("a", recorder=Recorder())
        with pytest.raises(ConnectFailed, match=r"ends the connection when.*'bad'") as caught:
            await asyncio.wait_for(consumer.add_filter("bad"), 60)
        assert caught.value.outage is False, "a handler would ask for it for ever"
        await recorder.get(1)
        assert sum(b"bad" in body for body in wanted) == 3


async def test_a_goodbye_over_a_filter_that_is_added_gives_it_up_at_once() -> None:
    ends = 0

    async def closing(peer: Peer) -> None:
        nonlocal ends
        await peer.accept()
        while True:
            packet = await peer.expect("SUBSCRIBE")
            if b"b/+" in packet.body:
                ends += 1
                peer.goodbye(0xA2)
                return
            peer.send(suback(packet.packet_id, 1))

    async with ScriptedBroker(Serving(), closing) as broker, client(broker) as app:
        consumer, _ = await app.consume("a")
        with pytest.raises(ConnectFailed, match=r"'b/\+'.*wildcard"):
            await asyncio.wait_for(consumer.add_filter("b/+"), 60)
        assert ends == 1


async def test_outages_while_a_filter_is_added_do_not_count_against_it() -> None:
    async def draining(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("SUBSCRIBE")
        peer.goodbye(0x8B)

    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.expect("SUBSCRIBE")
        peer.goodbye(0x8B)

    async with (
        ScriptedBroker(Serving(), first, *[draining] * 5, Serving()) as broker,
        client(broker) as app,
    ):
        consumer, _ = await app.consume("a")
        await asyncio.wait_for(consumer.add_filter("b"), 60)


async def test_an_end_of_a_subscription_that_is_refused_is_logged_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.unsuback(await peer.expect("UNSUBSCRIBE"), 0x87)
        await peer.wait_closed()

    async with ScriptedBroker(Serving(), script) as broker, client(broker) as app:
        consumer, _ = await app.consume("a")
        await asyncio.wait_for(consumer.remove_filter("a"), 60)
        assert "did not end the subscription to 'a': not authorised (0x87)" in caplog.text


@pytest.mark.mosquitto
async def test_mosquitto_takes_all_that_is_asked_for_at_the_start(
    own_mosquitto: StartBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(own_mosquitto()) as app:
        _, recorder = await app.consume("a/+")
        await app.bus.publish(Envelope(topic="a/b"), timeout=10)
        await recorder.get(1)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
