"""The MQTT transport against a broker that answers as no real one does on demand."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from spa_dat.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    NoResponder,
    NotAuthorised,
    PublishRefused,
    PublishUnknown,
)
from spa_dat.transports import Envelope
from spa_dat.transports.mqtt import MqttConfig
from spa_dat.transports.mqtt._session_probe import SessionProbe
from spa_dat.transports.mqtt.protocol import _open_socket
from spa_dat.transports.mqtt.protocol._client import MqttClient
from support.mqtt import Recorder, client
from support.scripted import Packet, Peer, ScriptedBroker, connack, publish, suback
from support.waiting import eventually

Script = Callable[[Peer], Awaitable[None]]


async def serve(peer: Peer) -> None:
    """Accept, grant everything, confirm everything."""
    await peer.accept()
    await serve_on(peer)


async def serve_on(peer: Peer) -> None:
    while True:
        packet = await peer.receive()
        if packet.kind == "SUBSCRIBE":
            peer.send(suback(packet.packet_id, 1))
        elif packet.kind == "PUBLISH":
            peer.puback(packet)
        elif packet.kind == "PINGREQ":
            peer.send(b"\xd0\0")


def answering(code: int, properties: bytes = b"") -> Script:
    async def script(peer: Peer) -> None:
        await peer.ready(properties)
        while True:
            peer.puback(await peer.expect("PUBLISH"), code)

    return script


def refusing(code: int) -> Script:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(connack(code))
        await peer.wait_closed()

    return script


# Connecting.


@pytest.mark.parametrize("code", [0x86, 0x87, 0x8A, 0x8C])
async def test_a_refused_login_fails_at_once_and_names_the_user(code: int) -> None:
    async with ScriptedBroker(refusing(code)) as broker:
        with pytest.raises(NotAuthorised, match=r"user 'bob'.*username and password") as caught:
            async with client(broker, username="bob", password="hush", start_timeout=60):
                pass
        assert broker.connections == 1
        assert "hush" not in str(caught.value)


async def test_a_password_without_a_user_name_is_sent() -> None:
    """As for tokens, which say by themselves whose they are."""
    logins: list[Packet] = []

    async def script(peer: Peer) -> None:
        logins.append(await peer.accept())
        await serve_on(peer)

    async with ScriptedBroker(script) as broker, client(broker, password="hu\xe4sh" * 100):
        pass
    body, password = logins[0].body, ("hu\xe4sh" * 100).encode()
    assert body.startswith(b"\0\x04MQTT\x05")
    assert body[7] & 0xC0 == 0x40
    assert body.endswith(len(password).to_bytes(2, "big") + password)


async def test_a_login_that_can_not_succeed_is_not_tried_again() -> None:
    async with ScriptedBroker(refusing(0x85)) as broker:
        with pytest.raises(ConnectFailed, match=r"client identifier not valid \(0x85\)"):
            async with client(broker, start_timeout=60):
                pass
        assert broker.connections == 1


async def test_a_busy_broker_is_tried_again() -> None:
    async with (
        ScriptedBroker(refusing(0x89), refusing(0x88), serve) as broker,
        client(broker, start_timeout=30),
    ):
        assert broker.connections == 3


async def test_an_older_broker_is_named_as_such() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(b"\x20\x02\x00\x01")
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match="older version than MQTT 5"):
            async with client(broker, start_timeout=0.2):
                pass


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\0\0\x99"])
async def test_what_is_no_broker_ends_in_an_error_in_time(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(answer)
        peer.close()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match=f"127.0.0.1:{broker.port}.*tried for 0.2 s"):
            async with client(broker, start_timeout=0.2):
                pass


async def test_a_broker_that_never_answers_ends_in_an_error_in_time() -> None:
    async with ScriptedBroker(Peer.wait_closed) as broker:
        with pytest.raises(ConnectFailed, match="no answer in time"):
            async with client(broker, connect_timeout=0.1, start_timeout=0.2):
                pass


async def test_an_attempt_that_is_cancelled_leaves_nothing_open() -> None:
    async with (
        ScriptedBroker(Peer.wait_closed) as broker,
        client(broker, start=False, connect_timeout=60) as app,
    ):
        starting = asyncio.create_task(app.start())
        await eventually(lambda: broker.connections)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_closing_ends_a_start_that_still_waits() -> None:
    async with (
        ScriptedBroker(Peer.wait_closed) as broker,
        client(broker, start=False, connect_timeout=60) as app,
    ):
        starting = asyncio.create_task(app.start())
        await eventually(lambda: broker.connections)
        await app.bus.close()
        with pytest.raises(ConnectFailed, match="closed before"):
            await starting


async def test_a_durable_subscription_asks_for_a_lasting_session_with_a_window() -> None:
    connects: list[Packet] = []
    subscribes: list[Packet] = []

    async def consumer_script(peer: Peer) -> None:
        connects.append(await peer.accept())
        subscribes.append(await peer.subscribe())
        await peer.wait_closed()

    async with ScriptedBroker(serve, consumer_script) as broker, client(broker) as app:
        await app.consume("a/+", window=7)
        body = connects[0].body
        assert body.startswith(b"\0\4MQTT\5"), "protocol version 5"
        assert body[7] & 2 == 0, "no clean start"
        assert b"\x11" + (604_800).to_bytes(4, "big") in body, "session expiry"
        assert b"\x21\0\x07" in body, "receive maximum"
        assert body.endswith(b"\0\x0bapp.0.actor")
        assert subscribes[0].body.endswith(b"a/+" + bytes((1 | 1 << 4,))), "retain handling 1"


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_other_subscriptions_leave_nothing_behind(ephemeral: bool) -> None:
    connects: list[Packet] = []

    async def consumer_script(peer: Peer) -> None:
        connects.append(await peer.accept())
        await peer.subscribe()
        await peer.wait_closed()

    async with (
        ScriptedBroker(serve, consumer_script) as broker,
        client(broker, ephemeral=ephemeral) as app,
    ):
        await app.consume("a", durable=ephemeral)
        assert connects[0].body[7] & 2, "clean start"
        assert b"\x11" not in connects[0].body[10:16], "no session expiry"


# Subscribing.


async def test_a_refused_subscription_fails_the_start() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.subscribe(0x87)
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        with pytest.raises(NotAuthorised, match=r"'secret/#': not authorised \(0x87\)"):
            await app.consume("secret/#")


async def test_a_refused_reply_inbox_fails_the_start() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.subscribe(0x87)
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(NotAuthorised, match="_spa/reply/app/"):
            async with client(broker):
                pass


async def test_an_inbox_refused_at_a_reconnect_stops_requests_and_no_publishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._reply_inbox._RETRY_REFUSED", 0.05)
    cut, allowed = asyncio.Event(), asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.ready()
        await cut.wait()
        peer.reset()

    async def second(peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1 if allowed.is_set() else 0x87))
            elif packet.kind == "PUBLISH":
                peer.puback(packet)

    async with ScriptedBroker(first, second) as broker, client(broker) as app:
        cut.set()
        await eventually(lambda: app.stats["mqtt.connected"] == 2)
        await app.bus.publish(Envelope(topic="t"), timeout=10)
        with pytest.raises(
            NotAuthorised, match=r"requests are impossible.*not authorised \(0x87\)"
        ):
            app.bus.reply_address("c0ffee")
        assert app.stats["mqtt.subscribe_refused"] == 1
        allowed.set()

        def has_inbox() -> bool:
            try:
                return app.bus.reply_address("c0ffee").endswith("/c0ffee")
            except NotAuthorised:
                return False

        await eventually(has_inbox)


async def test_an_inbox_over_which_the_broker_closes_stops_requests_and_no_publishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._reply_inbox._RETRY_REFUSED", 0.05)
    asked = 0
    cut, allowed = asyncio.Event(), asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.ready()
        await cut.wait()
        peer.close()

    async def closing(peer: Peer) -> None:
        nonlocal asked
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                asked += 1
                if not allowed.is_set():
                    peer.close()
                    return
                peer.send(suback(packet.packet_id, 1))
            elif packet.kind == "PUBLISH":
                peer.puback(packet)

    async with ScriptedBroker(first, closing) as broker, client(broker) as app:
        cut.set()
        await app.bus.publish(Envelope(topic="t"), timeout=10)
        assert asked >= 3
        with pytest.raises(ConnectFailed, match=r"requests are impossible.*access rules"):
            app.bus.reply_address("c0ffee")
        await eventually(lambda: asked >= 5)
        await app.bus.publish(Envelope(topic="t"), timeout=10)
        allowed.set()

        def has_inbox() -> bool:
            try:
                return app.bus.reply_address("c0ffee").endswith("/c0ffee")
            except ConnectFailed:
                return False

        await eventually(has_inbox)


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ((1, 0x87), "'app.0': operators cannot have dead letters replayed: .*0x87"),
        ((1,), "'app.0': operators cannot have dead letters replayed: .*0x80"),
        ((0, 1), "'app.0': the broker grants only QoS 0 for '_spa/reply/app/.*': replies may be"),
    ],
)
async def test_what_the_inbox_lacks_is_said_once(
    codes: tuple[int, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.subscribe(*codes)
        peer.puback(await peer.expect("PUBLISH"))
        peer.close()

    async with ScriptedBroker(script) as broker, client(broker, start=False) as app:
        app.bus.take_commands(lambda command: None)
        await app.start()
        for _ in range(2):
            await app.bus.publish(Envelope(topic="t"), timeout=60)
        assert broker.connections == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [bool(re.match(said, line)) for line in warnings].count(True) == 1, warnings


async def test_a_subscription_answered_with_a_code_that_grants_nothing_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.subscribe(0x77)
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        with pytest.raises(ConnectFailed, match=r"'a'.*\(0x80\)"):
            await app.consume("a")


async def test_a_subscription_refused_at_a_reconnect_is_tried_again_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._consumer._RETRY_REFUSED", 0.05)
    started, granted = asyncio.Event(), asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.ready()
        await started.wait()
        peer.reset()

    async def second(peer: Peer) -> None:
        await peer.accept(session=True)
        await peer.subscribe(0x80)
        peer.send(publish(1, b"still comes"))
        await peer.expect("PUBACK")
        await peer.subscribe()
        granted.set()
        await peer.wait_closed()

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        _, recorder = await app.consume("a")
        started.set()
        await asyncio.wait_for(granted.wait(), 60)
        assert recorder.payloads == [b"still comes"]
        assert app.stats["mqtt.subscribe_refused"] == 1


async def answering_the_second_retry(peer: Peer) -> None:
    """Refuse a subscription, pass over the next try, and grant the one after that."""
    await peer.accept(session=True)
    await peer.subscribe(0x87)
    await peer.expect("SUBSCRIBE")
    await serve_on(peer)


async def ready_and_cut(peer: Peer) -> None:
    await peer.ready()
    await peer.expect("PINGREQ")
    peer.reset()


async def test_a_retry_that_is_not_answered_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._consumer._RETRY_REFUSED", 0.05)
    monkeypatch.setattr("spa_dat.transports.mqtt._consumer._SHORTEST_ANSWER", 0.1)
    async with (
        ScriptedBroker(serve, ready_and_cut, answering_the_second_retry) as broker,
        client(broker, keepalive=1) as app,
    ):
        consumer, _ = await app.consume("a")
        await eventually(lambda: app.stats["mqtt.subscribe_refused"] == 1)
        assert "not authorised" in (consumer.trouble or "")
        await eventually(lambda: consumer.trouble is None)
        assert app.stats["mqtt.lost"] == 1


async def test_a_retry_of_the_inbox_that_is_not_answered_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._reply_inbox._RETRY_REFUSED", 0.05)
    async with (
        ScriptedBroker(ready_and_cut, answering_the_second_retry) as broker,
        client(broker, keepalive=1, connect_timeout=0.5) as app,
    ):
        await eventually(lambda: app.stats["mqtt.subscribe_refused"] == 1)
        await eventually(lambda: app.bus.connected)
        assert "not authorised" in (app.bus.trouble or ""), "there are no requests without it"
        await eventually(lambda: app.bus.trouble is None)
        assert app.bus.reply_address("c0ffee").endswith("/c0ffee")
        assert app.stats["mqtt.lost"] == 1


async def test_a_filter_whose_subscription_is_given_up_is_not_wanted_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt._consumer._SHORTEST_ANSWER", 0.1)
    ended: list[bytes] = []
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.ready()
        for _ in range(2):
            await peer.expect("SUBSCRIBE")
            asked.set()
        await peer.subscribe()
        while True:
            packet = await peer.expect("UNSUBSCRIBE")
            ended.append(packet.body)
            peer.unsuback(packet)

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        consumer, _ = await app.consume("a")
        adding = asyncio.ensure_future(consumer.add_filter("gone"))
        await asyncio.wait_for(asked.wait(), 10)
        adding.cancel()
        await asyncio.wait((adding,))
        with pytest.raises(ConnectionLost, match="did not answer"):
            await consumer.add_filter("late")
        await consumer.add_filter("b")
        await eventually(lambda: b"gone" in b"".join(ended) and b"late" in b"".join(ended))


async def test_a_connection_lost_under_a_new_filter_brings_it_in_force_later() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.expect("SUBSCRIBE")
        peer.reset()

    wanted: list[bytes] = []

    async def second(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.expect("SUBSCRIBE")
        wanted.append(packet.body)
        peer.send(suback(packet.packet_id, 1, 1))
        await peer.wait_closed()

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        consumer, _ = await app.consume("a")
        await asyncio.wait_for(consumer.add_filter("b"), 60)
        assert b"\0\x01a" in wanted[0]
        assert b"\0\x01b" in wanted[0]


# Publishing.


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (0x87, NotAuthorised, r"'t'.*not authorised"),
        (0x99, PublishRefused, r"'t'.*payload format invalid \(0x99\)"),
        (0xC7, PublishRefused, r"unknown reason \(0xc7\)"),
    ],
)
async def test_a_refused_publish_raises(code: int, error: type[Exception], words: str) -> None:
    async with ScriptedBroker(answering(code)) as broker, client(broker) as app:
        with pytest.raises(error, match=words):
            await app.bus.publish(Envelope(topic="t"), timeout=5)


async def test_nobody_listening_ends_a_request_and_no_other_publish() -> None:
    async with ScriptedBroker(answering(0x10)) as broker, client(broker) as app:
        await app.bus.publish(Envelope(topic="t"), timeout=5)
        assert app.stats["publishes.unheard"] == 1
        await app.bus.park(Envelope(topic="t", id="1", response_topic="r"), timeout=5)
        await app.bus.publish(Envelope(topic="t", retain=True), timeout=5)
        # The broker keeps both.
        assert app.stats["publishes.unheard"] == 1
        with pytest.raises(NoResponder, match="'t'"):
            await app.bus.publish(Envelope(topic="t", response_topic="r"), timeout=5)


async def test_the_brokers_receive_maximum_bounds_what_is_in_flight() -> None:
    most: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.ready(b"\x21\0\x02")
        waiting: list[Packet] = []
        while sum(most) < 10:
            waiting.append(await peer.expect("PUBLISH"))
            try:
                async with asyncio.timeout(0.05):
                    waiting.append(await peer.expect("PUBLISH"))
                    waiting.append(await peer.expect("PUBLISH"))
            except TimeoutError:
                pass
            most.append(len(waiting))
            for packet in waiting:
                peer.puback(packet)
            waiting.clear()
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker) as app:
        posts = [app.bus.post(Envelope(topic="t")) for _ in range(10)]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        assert max(most) == 2


async def test_the_brokers_packet_size_is_kept_before_a_byte_is_written() -> None:
    async with ScriptedBroker(answering(0, b"\x27\0\0\0\xc8")) as broker, client(broker) as app:
        with pytest.raises(MessageTooLarge, match=r"200 are allowed"):
            await app.bus.publish(Envelope(topic="t", payload=b"x" * 201), timeout=5)
        with pytest.raises(MessageTooLarge, match=r"takes \d+ bytes.*allows 200"):
            await app.bus.publish(
                Envelope(topic="t", payload=b"x" * 100, headers={"h": "x" * 100}), timeout=5
            )
        await app.bus.publish(Envelope(topic="t", payload=b"x" * 150), timeout=5)


@pytest.mark.parametrize(
    ("properties", "fields", "words"),
    [
        (b"\x24\0", {}, "accepts no publishes with QoS 1"),
        (b"\x25\0", {"retain": True}, "retains no messages"),
    ],
)
async def test_what_the_broker_does_not_offer_is_refused_here(
    properties: bytes, fields: dict[str, bool], words: str
) -> None:
    async with ScriptedBroker(answering(0, properties)) as broker, client(broker) as app:
        with pytest.raises(PublishRefused, match=words):
            await app.bus.publish(
                Envelope(topic="t", retain=fields.get("retain", False)), timeout=5
            )


async def test_a_publish_cut_before_its_confirmation_is_written_again_first() -> None:
    written: list[Packet] = []

    async def first(peer: Peer) -> None:
        await peer.ready()
        await peer.expect("PUBLISH")
        await peer.expect("PUBLISH")
        peer.reset()

    async def second(peer: Peer) -> None:
        await peer.ready()
        while True:
            written.append(await peer.expect("PUBLISH"))
            peer.puback(written[-1])

    async with ScriptedBroker(first, second) as broker, client(broker) as app:
        posts = [app.bus.post(Envelope(topic="t", payload=b"%d" % n, id=f"id{n}")) for n in (1, 2)]
        await eventually(lambda: not app.bus.connected)
        posts.append(app.bus.post(Envelope(topic="t", payload=b"3", id="id3")))
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        assert [packet.body[-1:] for packet in written] == [b"1", b"2", b"3"]
        assert [b"id%d" % n in packet.body for n, packet in enumerate(written, 1)] == [True] * 3
        assert all(packet.flags & 8 == 0 for packet in written), "no duplicate in a new session"


async def test_a_publish_ends_with_its_timeout_when_the_broker_is_silent() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker) as app:
        with pytest.raises(PublishUnknown):
            await app.bus.publish(Envelope(topic="t"), timeout=0.1)


async def test_a_topic_that_would_end_the_connection_is_refused_before_it_is_queued() -> None:
    async with ScriptedBroker(serve) as broker, client(broker) as app:
        for topic in ("", "a/+", "#", "a\0b"):
            with pytest.raises(ConfigurationError):
                app.bus.post(Envelope(topic=topic))
        await app.bus.publish(Envelope(topic="t"), timeout=5)
        assert broker.connections == 1


async def test_qos_0_is_confirmed_once_it_is_with_the_operating_system() -> None:
    got: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        got.append(await peer.expect("PUBLISH"))
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker) as app:
        await app.bus.publish(Envelope(topic="t", qos=0), timeout=5)
        await eventually(lambda: got)
        assert got[0].flags == 0


# Receiving.


async def test_acknowledgements_go_out_in_order_of_arrival_and_only_when_settled() -> None:
    acknowledged: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(b"".join(publish(number) for number in (1, 2, 3)))
        while True:
            acknowledged.append((await peer.expect("PUBACK")).packet_id)

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        first, second, third = await recorder.get(3)
        third.start()
        third.settle()
        second.start()
        second.settle()
        await app.bus.publish(Envelope(topic="barrier"), timeout=5)
        assert acknowledged == []
        first.start()
        first.settle()
        await eventually(lambda: len(acknowledged) == 3)
        assert acknowledged == [1, 2, 3]


async def test_a_result_of_an_older_connection_acknowledges_nothing_on_the_next() -> None:
    acknowledged: list[int] = []

    async def first(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(1, b"old"))
        await asyncio.sleep(0.05)
        peer.reset()

    async def second(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(1, b"new"))
        while True:
            acknowledged.append((await peer.expect("PUBACK")).packet_id)

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        (old,) = await recorder.get(1)
        old.start()
        _, new = await recorder.get(2)
        old.settle()
        await app.bus.publish(Envelope(topic="barrier"), timeout=5)
        assert acknowledged == [], "the broker has given the packet id to another message"
        new.start()
        new.settle()
        await eventually(lambda: acknowledged == [1])
        assert recorder.events == ["hold", "last copies"]
        assert app.stats["mqtt.session_lost"] == 1


async def _cut_in_mid_message(peer: Peer) -> None:
    await peer.ready()
    peer.send(publish(1, b"last copy"))
    # In good order: a reset could overtake the message.
    peer.close()


async def _mute(peer: Peer) -> None:
    await peer.expect("CONNECT")
    peer.reset()


async def _remembering(peer: Peer) -> None:
    await peer.ready(session=True)
    await peer.wait_closed()


async def test_a_lost_session_is_remembered_until_what_is_held_is_handed_out() -> None:
    async def forgetful(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("SUBSCRIBE")
        peer.reset()

    async with (
        ScriptedBroker(serve, _cut_in_mid_message, forgetful, _remembering) as broker,
        client(broker) as app,
    ):
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        (delivery,) = await recorder.get(1)
        await eventually(lambda: recorder.events[-1:] not in ([], ["hold"]))
        assert recorder.events == ["hold", "hold", "last copies"]
        assert delivery.start()


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_a_session_that_was_not_asked_for_is_not_trusted(ephemeral: bool) -> None:
    """A broker that says so at each CONNECT sends nothing again that was received before."""
    async with (
        ScriptedBroker(serve, _cut_in_mid_message, _remembering) as broker,
        client(broker, ephemeral=ephemeral) as app,
    ):
        _, recorder = await app.consume("t", recorder=Recorder(settle=False), durable=ephemeral)
        (delivery,) = await recorder.get(1)
        await eventually(lambda: recorder.events[-1:] not in ([], ["hold"]))
        assert recorder.events == ["hold", "last copies"]
        assert delivery.start()


async def test_a_session_that_an_unanswered_connect_may_have_made_is_not_trusted() -> None:
    async with (
        ScriptedBroker(serve, _cut_in_mid_message, _mute, _remembering) as broker,
        client(broker) as app,
    ):
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        (delivery,) = await recorder.get(1)
        await eventually(lambda: len(recorder.events) == 2)
        assert recorder.events == ["hold", "last copies"]
        assert delivery.start()


async def test_messages_that_come_again_after_an_unanswered_connect_keep_their_order() -> None:
    """They wait here as the last copies, and are handled once each, where they are."""
    acknowledged: list[int] = []

    async def three_and_a_part(peer: Peer) -> None:
        await peer.ready()
        for number in (1, 2, 3):
            peer.send(publish(number, b"%d" % number))
        peer.send(publish(4, b"4")[:5])
        await arrived.wait()
        peer.reset()

    async def again(peer: Peer) -> None:
        await peer.accept(session=True)
        peer.send(publish(1, b"1", duplicate=True))
        peer.send(publish(2, b"2", duplicate=True))
        await peer.subscribe()
        subscribed.set()
        for number in (3, 4):
            acknowledged.append((await peer.expect("PUBACK")).packet_id)
            peer.send(publish(number, b"%d" % number, duplicate=number == 3))
        while True:
            acknowledged.append((await peer.expect("PUBACK")).packet_id)

    arrived, subscribed = asyncio.Event(), asyncio.Event()
    async with (
        ScriptedBroker(serve, three_and_a_part, _mute, again) as broker,
        client(broker) as app,
    ):
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        await recorder.get(3)
        arrived.set()
        await eventually(lambda: recorder.events == ["hold", "last copies"])
        await eventually(lambda: app.stats["messages.recognised"] == 2)
        # Until then it waits for no acknowledgement.
        await asyncio.wait_for(subscribed.wait(), 60.0)
        for delivery in recorder.deliveries:
            assert delivery.start()
            delivery.settle()
        fourth = (await recorder.get(4))[-1]
        assert fourth.start()
        fourth.settle()
        await eventually(lambda: acknowledged == [1, 2, 3, 4])
        assert recorder.payloads == [b"1", b"2", b"3", b"4"]


async def test_a_message_before_the_connection_is_accepted_counts_for_nothing() -> None:
    async def early(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(publish(7, b"early") + connack(0x88))
        await peer.wait_closed()

    async def regular(peer: Peer) -> None:
        await peer.ready(session=True)
        peer.send(publish(7, b"regular"))
        await peer.wait_closed()

    async with (
        ScriptedBroker(serve, ready_and_cut, early, regular) as broker,
        client(broker, keepalive=1) as app,
    ):
        _, recorder = await app.consume("t")
        await recorder.get(1)
        assert recorder.payloads == [b"regular"]


@pytest.mark.parametrize(
    "packet",
    [publish(7, topic="", properties=b"\x23\0\5"), publish(7, topic=""), publish(7, qos=3)],
)
async def test_a_message_that_can_not_be_understood_is_not_acknowledged(packet: bytes) -> None:
    acknowledged: list[Packet] = []

    async def first(peer: Peer) -> None:
        await peer.ready()
        peer.send(packet)
        while True:
            acknowledged.append(await peer.receive())

    async with ScriptedBroker(serve, first, serve) as broker, client(broker) as app:
        _, recorder = await app.consume("t")
        await eventually(lambda: broker.connections == 3)
        assert acknowledged == []
        assert recorder.deliveries == []


async def test_a_packet_that_is_too_large_for_what_it_is_is_not_waited_for() -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        # 200 MB as the answer to a subscription.
        peer.send(b"\x90" + b"\xff\xff\xff\x5f" + b"\0" * 10)
        await peer.wait_closed()

    async with ScriptedBroker(serve, first, serve) as broker, client(broker) as app:
        await app.consume("t")
        await eventually(lambda: broker.connections == 3)


async def test_an_address_of_a_kind_that_the_system_lacks_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithoutIpv6(socket.socket):
        def __init__(self, family: int = -1, *rest: int, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest, **named)

    async def found(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        families = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, (host, port))]
        return [(family, socket.SOCK_STREAM, 0, "", address) for family, address in families]

    async with ScriptedBroker(serve) as broker:
        monkeypatch.setattr(socket, "socket", WithoutIpv6)
        monkeypatch.setattr(_open_socket, "look_up", found)
        async with client(broker) as app:
            assert app.bus.connected


async def test_a_message_right_after_the_connack_is_not_lost() -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(connack(0, session=True) + publish(1, b"queued"))
        await peer.expect("PUBACK")
        await peer.subscribe()
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        _, recorder = await app.consume("t")
        await recorder.get(1)
        assert recorder.payloads == [b"queued"]


async def test_messages_with_qos_2_from_elsewhere_are_completed_after_the_handler() -> None:
    answers: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(9, qos=2))
        answers.append((await peer.expect("PUBREC")).kind)
        peer.send(b"\x62\x02\0\x09")
        answers.append((await peer.expect("PUBCOMP")).kind)
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        _, recorder = await app.consume("t", recorder=Recorder(settle=False))
        (delivery,) = await recorder.get(1)
        await app.bus.publish(Envelope(topic="barrier"), timeout=5)
        assert answers == []
        delivery.start()
        delivery.settle()
        await eventually(lambda: answers == ["PUBREC", "PUBCOMP"])


async def test_reserved_topics_caught_by_a_wildcard_are_acknowledged_and_not_delivered() -> None:
    acknowledged = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(1, topic="_spa/reply/x/y/z") + publish(2, b"mine"))
        await peer.expect("PUBACK")
        await peer.expect("PUBACK")
        acknowledged.set()
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        _, recorder = await app.consume("#")
        await asyncio.wait_for(acknowledged.wait(), 60)
        assert recorder.payloads == [b"mine"]
        assert app.stats["messages.reserved"] == 1


async def test_a_connection_that_ends_right_after_the_subscription_subscribes_again() -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.expect("SUBSCRIBE")
        # In one piece: the answer and what is no message.
        peer.send(suback(packet.packet_id, 1) + b"\x32\x04\0\x30ab")
        await peer.wait_closed()

    async def second(peer: Peer) -> None:
        await peer.ready()
        peer.send(publish(1, b"good"))
        await peer.expect("PUBACK")
        await peer.wait_closed()

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        _, recorder = await app.consume("t")
        await recorder.get(1)
        assert recorder.payloads == [b"good"]


async def test_a_broker_that_overruns_the_window_is_held_back_for_longer_than_the_keep_alive() -> (
    None
):
    count = 60
    acknowledged: list[int] = []
    pings = 0

    async def script(peer: Peer) -> None:
        nonlocal pings
        await peer.ready()
        await asyncio.sleep(0.02)
        peer.send(b"".join(publish(number, b"%d" % number) for number in range(1, count + 1)))
        while True:
            packet = await peer.receive()
            if packet.kind == "PINGREQ":
                pings += 1
                peer.send(b"\xd0\0")
            elif packet.kind == "PUBACK":
                acknowledged.append(packet.packet_id)

    async with ScriptedBroker(serve, script) as broker, client(broker, keepalive=1) as app:
        _, recorder = await app.consume("t", recorder=Recorder(settle=False), window=5)
        await recorder.get(10)
        await eventually(lambda: pings >= 6)
        assert len(recorder.deliveries) == 10, "reading has stopped at twice the window"
        assert app.stats["mqtt.paused"] == 1
        settled = 0
        while settled < count:
            delivery = (await recorder.get(settled + 1))[settled]
            delivery.start()
            delivery.settle()
            settled += 1
        await eventually(lambda: len(acknowledged) == count)
        assert acknowledged == list(range(1, count + 1))
        assert recorder.events == []


async def test_what_comes_before_the_answer_to_a_subscription_is_not_all_held() -> None:
    """A session may have far more than the window, and the answer stands behind it."""
    payloads = [b"%d" % number + b"x" * 1_000 for number in range(10)]
    said: list[str] = []

    async def first(peer: Peer) -> None:
        await peer.accept(session=True)
        packet = await peer.expect("SUBSCRIBE")
        for number, payload in enumerate(payloads, 1):
            peer.send(publish(number, payload))
        peer.send(suback(packet.packet_id, 1))
        while (packet := await peer.receive()).kind != "DISCONNECT":
            said.append(packet.kind)
        said.append("DISCONNECT")

    async def second(peer: Peer) -> None:
        await peer.accept(session=True)
        for number, payload in enumerate(payloads, 1):
            peer.send(publish(number, payload, duplicate=True))
        while True:
            said.append((await peer.receive()).kind)

    async with ScriptedBroker(serve, first, second) as broker, client(broker) as app:
        recorder = Recorder(settle=False)
        consumer, _ = await app.consume("t", recorder=recorder, window_bytes=2_000)
        await eventually(lambda: app.stats["mqtt.lost"] == 1)
        assert len(recorder.deliveries) == 4, "twice the window"
        assert said == ["DISCONNECT"], "the broker keeps the session, and what nobody has taken"
        handled: list[bytes] = []
        position = 0
        while len(handled) < len(payloads):
            await recorder.get(position + 1)
            delivery = recorder.deliveries[position]
            position += 1
            if delivery.start():
                handled.append(delivery.envelope.payload)
                delivery.settle()
        assert handled == payloads
        await eventually(lambda: len(said) == 1 + len(payloads))
        assert set(said[1:]) == {"PUBACK"}, "what is in force already is not asked for again"
        assert consumer.trouble is None
        assert app.stats["mqtt.overrun"] == 1


async def test_without_a_session_that_lasts_all_is_held_that_comes_before_the_answer() -> None:
    payloads = [b"%d" % number + b"x" * 1_000 for number in range(10)]

    async def first(peer: Peer) -> None:
        await peer.accept(b"\x11\0\0\0\0")
        packet = await peer.expect("SUBSCRIBE")
        for number, payload in enumerate(payloads, 1):
            peer.send(publish(number, payload))
        peer.send(suback(packet.packet_id, 1))
        await peer.wait_closed()

    async with ScriptedBroker(serve, first) as broker, client(broker) as app:
        recorder = Recorder(settle=False)
        await app.consume("t", recorder=recorder, window_bytes=2_000)
        await recorder.get(len(payloads))
        assert recorder.payloads == payloads
        assert app.stats["mqtt.overrun"] == app.stats["mqtt.lost"] == 0


async def test_a_new_filter_comes_in_force_although_reading_is_paused() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        peer.send(b"".join(publish(number) for number in range(1, 31)))
        await peer.subscribe()
        await peer.wait_closed()

    async with ScriptedBroker(serve, script) as broker, client(broker) as app:
        consumer, recorder = await app.consume("t", recorder=Recorder(settle=False), window=2)
        await eventually(lambda: app.stats["mqtt.paused"] == 1)
        await asyncio.wait_for(consumer.add_filter("u"), 60)
        assert len(recorder.deliveries) == 30


# Being disconnected.


async def test_a_silent_broker_is_noticed_within_two_keep_alives() -> None:
    async def silent(peer: Peer) -> None:
        await peer.ready()
        await asyncio.Event().wait()

    async with ScriptedBroker(silent, serve) as broker, client(broker, keepalive=1):
        began = asyncio.get_running_loop().time()
        await eventually(lambda: broker.connections == 2)
        assert asyncio.get_running_loop().time() - began < 3.0, "a bound of the design, not a speed"


async def test_a_broker_that_wants_to_hear_less_often_is_asked_as_often_all_the_same() -> None:
    pings: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.ready(b"\x13\xff\xff")
        pings.append(await peer.expect("PINGREQ"))
        peer.send(b"\xd0\0")
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker, keepalive=1):
        await eventually(lambda: pings)


async def test_the_keep_alive_that_the_broker_demands_is_kept() -> None:
    pings: list[Packet] = []

    async def script(peer: Peer) -> None:
        await peer.ready(b"\x13\0\x01")
        for _ in range(2):
            pings.append(await peer.expect("PINGREQ"))
            peer.send(b"\xd0\0")
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker, keepalive=600):
        await eventually(lambda: len(pings) == 2)


async def test_resets_however_many_are_not_taken_for_another_client() -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await asyncio.sleep(0.02)
        peer.reset()

    scripts: list[Script] = [script] * 9
    async with ScriptedBroker(*scripts, serve) as broker, client(broker) as app:
        await eventually(lambda: broker.connections == 10)
        await app.bus.publish(Envelope(topic="t"), timeout=10)
        assert app.fatal == []


@pytest.mark.parametrize("goodbye", [b"\xe0\x01\x8b", b"\xe0\x00", b"\xe0\x01\x33"])
async def test_any_goodbye_of_the_broker_leads_to_a_new_connection(goodbye: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.ready()
        await asyncio.sleep(0.02)
        peer.send(goodbye)
        await peer.wait_closed()

    async with ScriptedBroker(script, serve) as broker, client(broker) as app:
        await eventually(lambda: broker.connections == 2)
        await app.bus.publish(Envelope(topic="t"), timeout=10)
        assert app.stats["mqtt.lost"] == 1


@pytest.mark.parametrize(("answers", "waits"), [(False, [2.0, 0.2]), (True, [2.0, 2.0])])
async def test_a_broker_that_does_not_answer_one_goodbye_is_not_waited_for_at_each_further_one(
    answers: bool, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[float] = []

    async def disconnect(self: MqttClient, timeout: float, why: str = "") -> bool:
        timeouts.append(timeout)
        self.abort()
        return answers

    async with ScriptedBroker(serve, serve) as broker, client(broker) as app:
        await app.consume("t")
        monkeypatch.setattr(MqttClient, "disconnect", disconnect)
        await app.close()
        assert timeouts == waits


@pytest.mark.parametrize("answers", [False, True])
async def test_a_goodbye_tells_whether_the_broker_has_answered_it(answers: bool) -> None:
    frozen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await (serve_on(peer) if answers else frozen.wait())

    async with ScriptedBroker(script) as broker:
        config = MqttConfig(broker.host, port=broker.port)
        probe = MqttClient(config, "probe", SessionProbe(), Counter(), clean_start=True)
        await probe.connect()
        assert await probe.disconnect(30.0 if answers else 0.1) is answers
        frozen.set()
