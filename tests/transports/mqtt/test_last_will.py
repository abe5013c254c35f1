"""The last will and the birth message, on Mosquitto."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from spa_dat import LastWill, MqttConfig, SocketProviderFactory
from spa_dat._pytest import require
from spa_dat.errors import ConfigurationError, NotAuthorised
from spa_dat.testing import Mosquitto, Proxy
from spa_dat.transports import Envelope
from support.mqtt import Recorder, client
from support.waiting import eventually

pytestmark = pytest.mark.mosquitto

NUMBERS = itertools.count()


@pytest.fixture
def topic() -> str:
    return f"status/will-{next(NUMBERS)}"


def texts(recorder: Recorder) -> list[str]:
    return [payload.decode() for payload in recorder.payloads]


async def test_the_broker_publishes_it_when_the_connection_is_lost(
    mosquitto: Mosquitto, topic: str
) -> None:
    will = LastWill(topic, "gone", content_type="text/x-state")
    async with (
        client(mosquitto, name="reader") as reader,
        Proxy(mosquitto.host, mosquitto.port) as proxy,
        client(proxy, name="will-lost", will=will),
    ):
        _, recorder = await reader.consume(topic)
        await proxy.refuse()
        proxy.cut()
        (delivery,) = await recorder.get(1)
        assert delivery.envelope.payload == b"gone"
        assert delivery.envelope.content_type == "text/x-state"


@pytest.mark.parametrize(("on_stop", "expected"), [(True, ["gone", "end"]), (False, ["end"])])
@pytest.mark.parametrize("delay", [0, 600])
async def test_it_is_also_published_at_a_stop_unless_that_is_not_wanted(
    mosquitto: Mosquitto, topic: str, *, on_stop: bool, expected: list[str], delay: int
) -> None:
    will = LastWill(topic, "gone", on_stop=on_stop, delay=delay)
    async with client(mosquitto, name="reader") as reader:
        _, recorder = await reader.consume(topic)
        async with client(mosquitto, name="will-stop", will=will):
            pass
        if on_stop:
            await recorder.get(1)
        await reader.bus.publish(Envelope(topic=topic, payload=b"end"), timeout=10)
        await eventually(lambda: "end" in texts(recorder))
        assert texts(recorder) == expected


async def test_the_birth_message_comes_with_each_connection_and_is_retained(
    mosquitto: Mosquitto, topic: str
) -> None:
    will = LastWill(topic, "gone", birth="there", retain=True)
    async with (
        client(mosquitto, name="reader") as reader,
        Proxy(mosquitto.host, mosquitto.port) as proxy,
        client(proxy, name="will-birth", will=will),
    ):
        _, recorder = await reader.consume(topic)
        await recorder.get(1)
        proxy.cut()
        await recorder.get(3)
        assert texts(recorder) == ["there", "gone", "there"]
        _, late = await reader.consume(topic, name="late")
        (delivery,) = await late.get(1)
        assert (delivery.envelope.payload, delivery.envelope.retain) == (b"there", True)


async def test_an_outage_that_is_shorter_than_the_delay_is_not_told(
    mosquitto: Mosquitto, topic: str
) -> None:
    will = LastWill(topic, "gone", birth="there", delay=600, on_stop=False)
    async with client(mosquitto, name="reader") as reader:
        _, recorder = await reader.consume(topic)
        async with (
            Proxy(mosquitto.host, mosquitto.port) as proxy,
            client(proxy, name="will-delay", will=will),
        ):
            for count in (1, 2, 3):
                await recorder.get(count)
                proxy.cut()
            await recorder.get(4)
        await reader.bus.publish(Envelope(topic=topic, payload=b"end"), timeout=10)
        await eventually(lambda: "end" in texts(recorder))
        assert texts(recorder) == ["there"] * 4 + ["end"]


async def test_after_the_delay_it_is_told(mosquitto: Mosquitto, topic: str) -> None:
    will = LastWill(topic, "gone", birth="there", delay=1)
    async with (
        client(mosquitto, name="reader") as reader,
        Proxy(mosquitto.host, mosquitto.port) as proxy,
        client(proxy, name="will-late", will=will),
    ):
        _, recorder = await reader.consume(topic)
        await proxy.refuse()
        proxy.cut()
        await recorder.get(1)
        assert texts(recorder) == ["gone"]


async def test_requests_work_across_an_outage_with_a_session(
    mosquitto: Mosquitto, topic: str
) -> None:
    will = LastWill(topic, "gone", birth="there", delay=600)
    async with (
        client(mosquitto, name="reader") as reader,
        Proxy(mosquitto.host, mosquitto.port) as proxy,
        client(proxy, name="will-replies", will=will) as app,
    ):
        _, recorder = await reader.consume(topic)
        address = app.bus.reply_address("one")
        proxy.cut()
        await recorder.get(1)
        await eventually(lambda: app.bus.connected)
        await reader.bus.publish(Envelope(topic=address, payload=b"reply"), timeout=10)
        await eventually(lambda: len(app.replies) > 0)
        assert [correlation for correlation, _ in app.replies] == ["one"]
        assert app.fatal == []


async def test_a_birth_message_that_is_not_allowed_ends_the_start() -> None:
    require(Mosquitto)
    with Mosquitto(users={"ann": "secret"}, acl="user ann\ntopic read #\n") as broker:
        options: dict[str, Any] = {"username": "ann", "password": "secret"}
        with pytest.raises(NotAuthorised, match="publish to 'status/x'"):
            async with client(broker, will=LastWill("status/x", birth="there"), **options):
                pass


# The option.


def test_it_can_be_given_as_a_table_or_in_a_url() -> None:
    table: Any = {"topic": "status/a", "payload": "gone", "retain": True, "delay": 5}
    expected = LastWill("status/a", "gone", retain=True, delay=5)
    assert MqttConfig("h", will=table).will == expected
    url = 'mqtt://h?will={"topic":"status/a","payload":"gone","retain":true,"delay":5}'
    provider: Any = SocketProviderFactory.from_url(url.replace('"', "%22"))
    assert provider.config.will == expected
    assert MqttConfig("h").will is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topic": "a/+"}, ["'a/+'", "'+'"]),
        ({"topic": ""}, ["topic is empty"]),
        ({"topic": "_spa/x"}, ["'_spa/x'", "belongs to the runtime"]),
        ({"topic": 3}, ["topic=3", "give a str"]),
        ({"topic": "a", "payload": b"x"}, ["payload=b'x'", "give a str"]),
        ({"topic": "a", "payload": "x" * 65_536}, ["payload is 65536 bytes", "at most 65535"]),
        ({"topic": "a", "payload": "\ud800"}, ["payload", "UTF-8"]),
        ({"topic": "a", "birth": 1}, ["birth=1", "give a str"]),
        ({"topic": "a", "qos": 2}, ["qos=2", "give 0 or 1"]),
        ({"topic": "a", "qos": True}, ["qos=True", "give 0 or 1"]),
        ({"topic": "a", "retain": 1}, ["retain=1", "give True or False"]),
        ({"topic": "a", "on_stop": None}, ["on_stop=None", "give True or False"]),
        ({"topic": "a", "delay": 1.5}, ["delay=1.5", "whole number of seconds"]),
        ({"topic": "a", "delay": -1}, ["delay=-1", "whole number of seconds"]),
        ({"topic": "a", "content_type": None}, ["content_type=None", "give a str"]),
        ({"topic": "a", "content_type": "a\0"}, ["content_type", "'a\\x00'", "leave it out"]),
        ({"topic": "a/" * 200 + "a"}, ["topic", "201 levels"]),
        ({"topik": "a"}, ["'topik' is not known", "did you mean 'topic'"]),
        ({"payload": "a"}, ["needs a topic"]),
    ],
)
def test_a_wrong_option_is_named(options: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MqttConfig("h", will=options)
    text = str(caught.value)
    assert text.startswith("option will of MqttConfig")
    assert [word for word in words if word not in text] == []


def test_something_else_is_refused() -> None:
    wrong: Any = "status/a"
    with pytest.raises(ConfigurationError, match="'status/a': give a LastWill"):
        MqttConfig("h", will=wrong)
