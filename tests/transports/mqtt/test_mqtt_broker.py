"""The MQTT transport on a real Mosquitto, with faults."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from spa_dat import DistributedApplication, LastWill, Message
from spa_dat.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    NotAuthorised,
    PublishUnknown,
    RemoteError,
)
from spa_dat.harness.brokers._broker_process import PortClaims
from spa_dat.harness.brokers._certificates import make_certificates
from spa_dat.testing import Mosquitto, Proxy
from spa_dat.transports import DeliveryState, Envelope
from support.mqtt import Client, Recorder, client
from support.waiting import eventually

pytestmark = pytest.mark.mosquitto

StartBroker = Callable[..., Mosquitto]


def numbered(topic: str, count: int) -> list[Envelope]:
    return [Envelope(topic=topic, payload=b"%d" % number) for number in range(count)]


async def publish_all(app: Client, envelopes: list[Envelope]) -> None:
    await asyncio.gather(*map(app.bus.post, envelopes))


# Not losing anything.


@pytest.mark.parametrize("stop", ["restart", "proxy"])
async def test_two_thousand_messages_survive_an_outage_in_the_middle(
    own_mosquitto: StartBroker, stop: str
) -> None:
    broker = own_mosquitto(durable=True)
    count = 2_000
    async with Proxy(broker.host, broker.port) as proxy, client(proxy) as app:
        recorder = Recorder(settle=False)
        await app.consume("a", recorder=recorder, window=50)
        done: set[bytes] = set()

        async def work() -> None:
            for position in itertools.count():
                if len(done) == count:
                    return
                delivery = (await recorder.get(position + 1, 30))[position]
                if delivery.start():
                    await asyncio.sleep(0)
                    delivery.settle()
                    done.add(delivery.envelope.payload)

        async def trouble() -> None:
            await eventually(lambda: len(done) > count // 4)
            if stop == "restart":
                await asyncio.to_thread(broker.restart)
            else:
                proxy.cut()

        await asyncio.wait_for(
            asyncio.gather(work(), trouble(), publish_all(app, numbered("a", count))), 100
        )
        assert done == {b"%d" % number for number in range(count)}
        assert "hold" in recorder.events


async def test_a_storm_of_publishes_with_disconnects_arrives_complete_and_in_order(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(durable=True)
    choice = random.Random(7)
    count = 3_000
    async with (
        client(broker, name="reader") as reader,
        Proxy(broker.host, broker.port) as proxy,
        client(proxy) as app,
    ):
        _, recorder = await reader.consume("a")
        publishing = asyncio.ensure_future(publish_all(app, numbered("a", count)))
        for _ in range(8):
            goal = len(recorder.deliveries) + choice.randrange(50, 300)
            await eventually(lambda goal=goal: len(recorder.deliveries) > goal)  # type: ignore[misc]
            proxy.cut()
        await asyncio.wait_for(publishing, 60)
        await eventually(lambda: len(set(recorder.payloads)) == count)
        first_seen = list(dict.fromkeys(map(int, recorder.payloads)))
        assert first_seen == list(range(count))


async def test_a_cut_between_publish_and_confirmation_leads_to_the_same_id_again(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with (
        client(broker, name="reader") as reader,
        Proxy(broker.host, broker.port) as proxy,
        client(proxy) as app,
    ):
        _, recorder = await reader.consume("a")

        def swallow(chunk: bytes) -> bytes:
            if chunk[0] & 0xF0 == 0x40:
                proxy.on_server_bytes = None
                proxy.cut()
            return chunk

        proxy.on_server_bytes = swallow
        await app.bus.publish(Envelope(topic="a", id="same"), timeout=10)
        await recorder.get(2)
        assert [delivery.envelope.id for delivery in recorder.deliveries] == ["same", "same"]


async def test_what_is_published_while_nobody_is_there_waits_for_its_subscription(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with client(broker) as app:
        await app.consume("a")
    async with client(broker, name="writer") as writer:
        await publish_all(writer, numbered("a", 5))
        async with client(broker) as app:
            _, recorder = await app.consume("a")
            await recorder.get(5)
            assert recorder.payloads == [b"%d" % number for number in range(5)]


async def test_an_acknowledgement_written_right_before_the_goodbye_arrives(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with client(broker, name="writer") as writer:
        for turn in range(5):
            async with client(broker) as app:
                consumer, recorder = await app.consume("a", recorder=Recorder(settle=False))
                await publish_all(writer, numbered("a", 50))
                await recorder.get(20)
                consumer.stop_intake()
                taken = list(recorder.deliveries)
                for delivery in taken:
                    delivery.start()
                    delivery.settle()
            async with client(broker) as app:
                _, recorder = await app.consume("a")
                await recorder.get(50 - len(taken))
                assert recorder.payloads == [b"%d" % n for n in range(len(taken), 50)], turn


async def test_packet_ids_used_again_after_a_lost_session_lose_no_message(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with client(broker) as app, client(broker, name="writer") as writer:
        _, recorder = await app.consume("a", recorder=Recorder(settle=False))
        await publish_all(writer, numbered("a", 3))
        old = await recorder.get(3)
        for delivery in old:
            delivery.start()
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: recorder.events == ["hold", "last copies"])
        await publish_all(writer, [Envelope(topic="a", payload=b"new %d" % n) for n in range(3)])
        new = (await recorder.get(6))[3:]
        assert [delivery.token for delivery in new] == [delivery.token for delivery in old]
        for delivery in old:
            delivery.settle()
    async with client(broker) as app:
        _, recorder = await app.consume("a")
        await recorder.get(3)
        assert recorder.payloads == [b"new 0", b"new 1", b"new 2"]


async def test_a_broker_that_overruns_the_receive_maximum_is_held_at_twice_the_window(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(durable=True)
    count = 500
    async with client(broker) as app, client(broker, name="writer") as writer:
        _consumer, recorder = await app.consume("a", window=5, recorder=Recorder(settle=False))
        await publish_all(writer, numbered("a", count))
        seen = 0
        while seen < count:
            delivery = (await recorder.get(seen + 1))[seen]
            unsettled = [
                d for d in recorder.deliveries[seen:] if d.state is not DeliveryState.SETTLED
            ]
            assert len(unsettled) <= 10
            delivery.start()
            delivery.settle()
            seen += 1
        assert recorder.payloads == [b"%d" % number for number in range(count)]


async def test_reading_may_pause_for_longer_than_the_keep_alive(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto(durable=True)
    async with client(broker, keepalive=1) as app, client(broker, name="writer") as writer:
        _, recorder = await app.consume("a", window=2, recorder=Recorder(settle=False))
        await publish_all(writer, numbered("a", 200))
        await recorder.get(2)
        before = broker.log.count("Received PINGREQ from app.0.actor")
        await eventually(
            lambda: broker.log.count("Received PINGREQ from app.0.actor") >= before + 8, 20
        )
        assert recorder.events == []
        for position in range(200):
            delivery = (await recorder.get(position + 1))[position]
            delivery.start()
            delivery.settle()
        assert recorder.events == []


# Losing the connection.


async def test_a_half_open_connection_is_noticed_within_two_keep_alives(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with (
        Proxy(broker.host, broker.port) as proxy,
        client(proxy, keepalive=2, connect_timeout=0.5) as app,
    ):
        _, recorder = await app.consume("a")
        loop = asyncio.get_running_loop()
        proxy.blackhole()
        began = loop.time()
        await eventually(lambda: not app.bus.connected and recorder.events == ["hold"])
        assert loop.time() - began < 2 * 2 + 0.5, "a bound of the design, not a speed"
        proxy.heal()
        await app.bus.publish(Envelope(topic="a"), timeout=20)
        await recorder.get(1)


async def test_a_publish_into_a_half_open_connection_ends_with_its_timeout(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with Proxy(broker.host, broker.port) as proxy, client(proxy) as app:
        proxy.blackhole()
        with pytest.raises(PublishUnknown, match=r"within 0\.2 s"):
            await app.bus.publish(Envelope(topic="a"), timeout=0.2)
        proxy.heal()


async def test_a_paused_broker_loses_no_publish(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto()
    async with client(broker, keepalive=1) as app:
        _, recorder = await app.consume("a")
        broker.pause()
        posts = [app.bus.post(envelope) for envelope in numbered("a", 10)]
        await eventually(lambda: not app.bus.connected)
        broker.resume()
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        await eventually(lambda: len(set(recorder.payloads)) == 10)


async def test_credentials_that_change_while_away_are_tried_again_without_a_hot_loop(
    own_mosquitto: StartBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_mosquitto(users={"bob": "hush"})
    async with client(broker, username="bob", password="hush", backoff_min=0.1) as app:
        broker.reload(users={"bob": "changed"})
        await asyncio.to_thread(broker.restart)
        with caplog.at_level(logging.WARNING):
            await eventually(lambda: app.stats["mqtt.connect_failed"] >= 3)
        assert "refused the login of user 'bob'" in caplog.text
        assert "refused the login of user 'bob'" in str(app.bus.trouble)
        assert "hush" not in caplog.text
        assert app.stats["mqtt.connect_failed"] <= 10
        assert app.fatal == []
        broker.reload(users={"bob": "hush"})
        await eventually(lambda: app.bus.trouble is None)


async def test_a_password_that_is_changed_in_its_file_is_used_at_the_next_connection(
    own_mosquitto: StartBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    file.write_text("old\n")
    broker = own_mosquitto(users={"bob": "old"})
    async with client(broker, username="bob", password_file=str(file)) as app:
        broker.reload(users={"bob": "new"})
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: f"the password is from the file {str(file)!r}" in caplog.text)
        file.unlink()
        await eventually(lambda: f"{str(file)!r} of MqttConfig cannot be read" in caplog.text)
        file.write_text("new\n")
        await app.bus.publish(Envelope(topic="a"), timeout=20)
        assert app.fatal == []
        assert "old" not in caplog.text.replace(str(file), "")


@pytest.mark.parametrize("username", ["bob", None])
async def test_a_function_is_asked_for_the_password_at_each_connection(
    own_mosquitto: StartBroker, username: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    # Without a user name Mosquitto does not look at the password.
    broker = own_mosquitto(users={"bob": "old-one"} if username else None)
    passwords = ["old-one"]

    async def function() -> str:
        passwords.append(passwords[0])
        return passwords[0]

    async with client(broker, username=username, password_function=function) as app:
        passwords[0] = "new-one"
        if username:
            broker.reload(users={"bob": "new-one"})
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: app.stats["mqtt.lost"])
        await app.bus.publish(Envelope(topic="a"), timeout=20)
    assert passwords[1] == "old-one"
    assert set(passwords[2:]) == {"new-one"}
    assert "-one" not in caplog.text


async def test_a_function_without_a_password_is_an_outage(
    own_mosquitto: StartBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_mosquitto(users={"bob": "right"})

    def function() -> str:
        if "no server of tokens" not in caplog.text:
            raise OSError("no server of tokens")
        return "right"

    caplog.set_level(logging.INFO)
    async with client(broker, username="bob", password_function=function) as app:
        await app.bus.publish(Envelope(topic="a"), timeout=20)
        assert app.stats["mqtt.connect_failed"] >= 1


async def test_a_function_that_fails_at_a_reconnect_is_named_as_the_trouble(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(users={"bob": "right"})
    answers = True

    def function() -> str:
        if not answers:
            raise OSError("no server of tokens")
        return "right"

    async with client(broker, username="bob", password_function=function) as app:
        answers = False
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: "no server of tokens" in str(app.bus.trouble))
        answers = True
        await eventually(lambda: app.bus.trouble is None)


async def test_certificates_that_are_changed_in_their_files_are_used_at_the_next_connection(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(tls=True, client_certificates=True)
    options = {
        "tls": True,
        "tls_ca": str(broker.ca_file),
        "tls_cert": str(broker.client_cert_file),
    }
    async with client(tls_address(broker), **options) as app:  # type: ignore[arg-type]
        make_certificates(broker.host, broker.folder)
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: app.stats["mqtt.lost"])
        await app.bus.publish(Envelope(topic="a"), timeout=20)


# Being refused.


async def test_a_wrong_password_fails_at_once(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto(users={"bob": "right"})
    with pytest.raises(NotAuthorised, match="user 'bob'"):
        async with client(broker, username="bob", password="wrong", start_timeout=60):
            pass
    with pytest.raises(NotAuthorised, match="a client without a user name"):
        async with client(broker, start_timeout=60):
            pass


async def test_access_rules_refuse_a_publish_and_nothing_else(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto(acl="topic write open/#\ntopic read #\n")
    async with client(broker) as app:
        with pytest.raises(NotAuthorised, match="'closed/x'"):
            await app.bus.publish(Envelope(topic="closed/x"), timeout=5)
        await app.bus.publish(Envelope(topic="open/x"), timeout=5)


async def test_nobody_at_the_address_fails_in_time_and_names_it(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto()
    broker.stop()
    with pytest.raises(ConnectFailed, match=rf"127\.0\.0\.1:{broker.port}: Connection refused"):
        async with client(broker, start_timeout=0.2):
            pass


async def test_an_unknown_host_fails_in_time_and_names_it() -> None:
    class Nowhere:
        host = "no-such-host.invalid"
        port = 1883

    with pytest.raises(ConnectFailed, match=r"no-such-host\.invalid:1883: unknown host"):
        async with client(Nowhere(), start_timeout=0.2):
            pass


async def test_a_broker_that_comes_late_is_waited_for(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto()
    broker.stop()
    async with client(broker, start=False, start_timeout=20) as app:
        starting = asyncio.create_task(app.start())
        await eventually(lambda: app.stats["mqtt.connect_failed"] >= 2)
        await asyncio.to_thread(broker.start)
        await asyncio.wait_for(starting, 60)


async def test_a_start_is_tried_until_its_time_is_up_however_long_the_pauses_are(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with Proxy(broker.host, broker.port) as proxy:
        await proxy.refuse()
        pauses: dict[str, Any] = {"backoff_min": 20, "backoff_max": 30}
        async with client(proxy, start=False, start_timeout=3, **pauses) as app:
            starting = asyncio.create_task(app.start())
            await eventually(lambda: app.stats["mqtt.connect_failed"] == 1)
            await proxy.allow()
            await asyncio.wait_for(starting, 60)


async def test_a_message_over_the_brokers_limit_is_refused_here(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto(extra=["max_packet_size 2000"])
    async with client(broker) as app:
        with pytest.raises(MessageTooLarge, match="2000"):
            await app.bus.publish(Envelope(topic="a", payload=b"x" * 2_500), timeout=5)
        with pytest.raises(MessageTooLarge, match="2000"):
            await app.bus.publish(
                Envelope(topic="a", payload=b"x" * 1_500, headers={"h": "x" * 600}), timeout=5
            )
        await app.bus.publish(Envelope(topic="a", payload=b"x" * 1_500), timeout=5)
        assert app.stats["mqtt.lost"] == 0


async def test_a_payload_over_the_limit_that_the_broker_only_tells_when_it_comes_is_refused(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(extra=["message_size_limit 1000"])
    async with client(broker) as app:
        with pytest.raises(MessageTooLarge, match=r"0x95.*message_size_limit"):
            await app.bus.publish(Envelope(topic="a", payload=b"x" * 1_001), timeout=5)
        await app.bus.publish(Envelope(topic="a", payload=b"x" * 1_000), timeout=5)
        assert app.stats["mqtt.lost"] == 0


@pytest.mark.parametrize("way", ["return", "reply"])
async def test_a_reply_that_the_broker_refuses_for_its_size_is_an_error_for_the_requester(
    own_mosquitto: StartBroker, way: str
) -> None:
    broker = own_mosquitto(extra=["message_size_limit 1000"])
    app = DistributedApplication(broker.url, name="large")

    @app.application("q", replies=True)
    async def handle(message: Message[bytes]) -> bytes:
        if way == "reply":
            await message.reply(b"x" * 1_001)
        return b"x" * 1_001

    async with app:
        with pytest.raises(RemoteError, match=r"MessageTooLarge.*0x95") as raised:
            await app.socket().request("q", b"", timeout=60)
        assert raised.value.code == "failed"


async def test_a_client_identifier_that_the_broker_forbids_is_in_the_error(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(users={"bob": "hush"}, extra=["clientid_prefixes line-"])
    async with client(broker, name="app", start=False, username="bob", password="hush") as app:
        with pytest.raises(NotAuthorised, match=r"client identifier 'app\.0'.*clientid_prefixes"):
            await app.start()
    async with client(broker, name="line-1", username="bob", password="hush"):
        pass


async def test_a_broker_that_admits_no_more_connections_is_named_as_such(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(extra=["max_connections 2"])
    async with client(broker, start_timeout=0.5) as app:

        async def connect_five() -> None:
            for number in range(5):
                await app.consume("a", name=f"actor{number}")

        with pytest.raises(ConnectFailed, match=r"while \d of this application.*max_connections"):
            await connect_five()
        assert app.bus.connected


async def test_a_login_that_is_too_long_for_the_broker_is_not_taken_for_an_older_version(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto(users={"bob": "hush"}, extra=["max_packet_size 1000"])
    async with client(
        broker, start=False, username="bob", password="x" * 2_000, start_timeout=1
    ) as app:
        with pytest.raises(
            ConnectFailed, match=r"exceed its limit for packets.*max_packet_size.*for 1 s$"
        ):
            await app.start()


@pytest.mark.parametrize("line", ["retain_available false", "max_qos 0"])
async def test_a_last_will_that_the_broker_does_not_accept_is_named(
    own_mosquitto: StartBroker, line: str
) -> None:
    will = LastWill("status/app", "gone", retain=True)
    async with client(own_mosquitto(extra=[line]), start=False, will=will) as app:
        with pytest.raises(ConnectFailed, match=r"not supported.*change the option will"):
            await app.start()


async def test_a_limit_that_shrank_while_away_fails_the_publish_and_spares_the_rest(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    small = own_mosquitto(extra=["max_packet_size 2000"])
    async with Proxy(broker.host, broker.port) as proxy, client(proxy) as app:
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not app.bus.connected)
        posts = [app.bus.post(Envelope(topic="a", payload=b"x" * size)) for size in (10, 5_000, 9)]
        proxy._target = (small.host, small.port)
        await proxy.allow()
        with pytest.raises(MessageTooLarge):
            await asyncio.wait_for(posts[1], 60)
        await asyncio.wait_for(asyncio.gather(posts[0], posts[2]), 60)


# TLS.


def tls_address(broker: Mosquitto, host: str = "127.0.0.1") -> object:
    class Address:
        port = broker.tls_port

    Address.host = host  # type: ignore[attr-defined]
    return Address


async def test_large_and_many_messages_pass_through_tls(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto(tls=True, client_certificates=True)
    options = {
        "tls": True,
        "tls_ca": str(broker.ca_file),
        "tls_cert": str(broker.client_cert_file),
    }
    async with client(tls_address(broker), **options) as app:  # type: ignore[arg-type]
        _, recorder = await app.consume("a")
        large = [Envelope(topic="a", payload=bytes([n]) * 300_000) for n in range(4)]
        await publish_all(app, [*large, *numbered("a", 500)])
        await recorder.get(504)
        assert recorder.payloads[:4] == [envelope.payload for envelope in large]
        assert recorder.payloads[4:] == [b"%d" % number for number in range(500)]


async def test_verification_is_skipped_only_on_request(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto(tls=True)
    async with client(tls_address(broker), tls=True, tls_insecure_skip_verification=True) as app:  # type: ignore[arg-type]
        await app.bus.publish(Envelope(topic="a"), timeout=5)


async def test_tls_files_that_can_not_be_read_are_named_at_once() -> None:
    class Anywhere:
        host = "127.0.0.1"
        port = 1

    with pytest.raises(ConfigurationError, match=r"'/no/such\.pem'.*No such file.*tls_ca"):
        async with client(Anywhere(), tls=True, tls_ca="/no/such.pem", start_timeout=60):
            pass


# Filters.


async def test_partly_overlapping_filters_give_one_copy_of_each_message(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with client(broker) as app:
        _, recorder = await app.consume("a/+", "+/b", "a/b/#")
        for payload in (b"same", b"same", b"other", b"same"):
            await app.bus.publish(Envelope(topic="a/b", payload=payload), timeout=5)
        await app.bus.publish(Envelope(topic="a/end"), timeout=5)
        await eventually(lambda: b"" in recorder.payloads)
        assert recorder.payloads == [b"same", b"same", b"other", b"same", b""]


async def test_a_filter_of_an_older_version_is_removed_once_it_shows(
    own_mosquitto: StartBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_mosquitto()
    async with client(broker) as app:
        await app.consume("old/+", "new/x")
    async with client(broker) as app:
        consumer, recorder = await app.consume("new/x", "other")
        await app.bus.publish(Envelope(topic="old/1"), timeout=5)
        await recorder.get(1)
        consumer.discard_stale("old/1")
        await eventually(lambda: "removed: 'old/+'" in caplog.text)
        await app.bus.publish(Envelope(topic="old/2"), timeout=5)
        await app.bus.publish(Envelope(topic="new/x"), timeout=5)
        await app.bus.publish(Envelope(topic="other"), timeout=5)
        got = await recorder.get(3)
        assert [delivery.envelope.topic for delivery in got] == ["old/1", "new/x", "other"]


@pytest.mark.parametrize("shared", [False, True])
async def test_the_filters_of_a_program_that_shared_its_messages_or_did_not_are_removed(
    own_mosquitto: StartBroker, shared: bool
) -> None:
    """As when ``deliver=`` of an actor is changed: otherwise each message comes once more."""
    broker = own_mosquitto()
    async with client(broker) as app:
        await app.consume("a/+", share=not shared)
    ended = broker.log.count("Received UNSUBSCRIBE")
    async with client(broker) as app:
        _, recorder = await app.consume("a/+", share=shared)
        await eventually(lambda: broker.log.count("Received UNSUBSCRIBE") > ended)
        await app.bus.publish(Envelope(topic="a/1", payload=b"once"), timeout=5)
        await app.bus.publish(Envelope(topic="a/2", payload=b"end"), timeout=5)
        await eventually(lambda: b"end" in recorder.payloads)
        assert recorder.payloads == [b"once", b"end"]


async def test_retained_messages_come_with_a_new_subscription_and_not_at_each_reconnect(
    own_mosquitto: StartBroker,
) -> None:
    broker = own_mosquitto()
    async with Proxy(broker.host, broker.port) as proxy, client(proxy) as app:
        await app.bus.publish(Envelope(topic="a", payload=b"kept", retain=True), timeout=5)
        _, recorder = await app.consume("a")
        await recorder.get(1)
        # Unless the broker has its acknowledgement, it comes again, as any message does.
        await eventually(lambda: "Received PUBACK from app.0.actor" in broker.log)
        for turn in range(3):
            proxy.cut()
            await eventually(lambda turn=turn: recorder.events.count("redelivered") > turn)  # type: ignore[misc]
        await app.bus.publish(Envelope(topic="a", payload=b"end"), timeout=10)
        await eventually(lambda: b"end" in recorder.payloads)
        assert recorder.payloads == [b"kept", b"end"]


async def test_nobody_takes_a_session_where_the_user_is_the_identifier(
    own_mosquitto: StartBroker, ports: PortClaims
) -> None:
    (others,) = ports.take(1)
    broker = own_mosquitto(
        durable=True,
        users={"plant": "x", "stranger": "s"},
        extra=(f"listener {others} 127.0.0.1", "use_username_as_clientid true"),
    )
    url = f"mqtt://plant:x@{broker.host}:{broker.port}"
    handled: list[int] = []
    app = DistributedApplication(url, name="plant")

    @app.application("order")
    async def order(number: int) -> None:
        handled.append(number)

    async with app:
        pass
    async with DistributedApplication(url, name="shop") as shop:
        await shop.socket().publish("order", 1)
    taker = aiomqtt.Client(
        broker.host,
        others,
        username="stranger",
        password="s",
        identifier="plant.0.order",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=True,
    )
    async with taker:
        pass
    async with app:
        await eventually(lambda: handled == [1])


async def test_who_cancels_the_tasks_of_a_connection_is_not_left_deaf_and_healthy(
    mosquitto: Mosquitto,
) -> None:
    app = DistributedApplication(mosquitto.url, name="plant")

    @app.application("n")
    async def handle(number: int) -> None:
        for task in asyncio.all_tasks():
            if task.get_name().startswith("mqtt "):
                task.cancel()

    async with app:
        app.socket().post("n", 1)
        with pytest.raises(ConnectionLost, match=r"'plant\.0.*' to .* was cancelled by other code"):
            await app.wait()
        assert not app.healthy
