"""Errors of the libraries below never reach the user as they are."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl

import aiomqtt
import aiomqtt.exceptions
import pytest
from paho.mqtt import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from spa_dat.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    NotAuthorised,
    TransportError,
)
from spa_dat.transports import Surroundings
from spa_dat.transports._contract import Identity
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from spa_dat.transports.mqtt.protocol._library_check import check_loop
from spa_dat.transports.mqtt.protocol._packets import MalformedPacket
from spa_dat.transports.mqtt.protocol._reason_codes import TRANSLATIONS, connect_problem, translate

_UPSTREAM = [
    value
    for _, value in inspect.getmembers(aiomqtt.exceptions, inspect.isclass)
    if issubclass(value, Exception) and value.__module__ == aiomqtt.exceptions.__name__
]


@pytest.mark.parametrize("upstream", _UPSTREAM, ids=lambda kind: kind.__name__)
def test_every_exception_of_the_client_library_is_in_the_table(upstream: type[Exception]) -> None:
    assert upstream in [kind for kind, _ in TRANSLATIONS]


def test_the_most_specific_translation_comes_first() -> None:
    kinds = [kind for kind, _ in TRANSLATIONS]
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind


@pytest.mark.parametrize(
    "cause",
    [
        aiomqtt.MqttError("gone"),
        aiomqtt.MqttCodeError(4, "not connected"),
        MQTTException("odd"),
        MalformedPacket("odd"),
        OSError("broken"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_what_is_raised_under_an_operation_becomes_a_transport_error(cause: Exception) -> None:
    error = translate(cause, "subscription to 'a'")
    assert isinstance(error, ConnectionLost)
    assert str(error).startswith("subscription to 'a': ")


def refused(code: int) -> aiomqtt.exceptions.MqttConnectError:
    return aiomqtt.exceptions.MqttConnectError(ReasonCode(PacketTypes.CONNACK, identifier=code))


@pytest.mark.parametrize(
    ("cause", "kind", "final"),
    [
        (refused(0x87), NotAuthorised, True),
        (refused(0x84), ConnectFailed, True),
        (refused(0x88), ConnectFailed, False),
        (aiomqtt.MqttError("gone"), ConnectFailed, False),
        (ConnectionRefusedError(111, "refused"), ConnectFailed, False),
        (socket.gaierror(-2, "Name or service not known"), ConnectFailed, False),
        (ssl.SSLCertVerificationError("bad certificate"), ConnectFailed, True),
        (ConnectionLost("gone"), ConnectionLost, False),
        (ConfigurationError("wrong"), ConfigurationError, True),
        (RuntimeError("unexpected"), ConnectFailed, False),
    ],
    ids=repr,
)
def test_a_failed_attempt_says_whether_trying_again_may_help(
    cause: Exception, kind: type[Exception], final: bool
) -> None:
    problem = connect_problem(cause, "mqtt://host:1883", "app.0", "bob")
    assert type(problem.error) is kind
    assert problem.final is final
    if isinstance(problem.error, TransportError) and problem.error is not cause:
        assert "mqtt://host:1883" in str(problem.error)


async def test_libraries_that_lack_an_inner_part_are_refused_with_their_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = MqttProvider(MqttConfig("localhost"))
    surroundings = Surroundings(Identity("app"))
    provider.open(surroundings)
    monkeypatch.delattr("aiomqtt.Client._client_connect")
    with pytest.raises(ConfigurationError, match=r"aiomqtt 2\..*_client_connect.*install"):
        provider.open(surroundings)


def test_an_event_loop_that_can_not_watch_sockets_is_refused() -> None:
    class Proactor(asyncio.SelectorEventLoop):
        add_reader = asyncio.AbstractEventLoop.add_reader

    for kind in (Proactor, asyncio.SelectorEventLoop):
        loop = kind()
        try:
            if kind is Proactor:
                with pytest.raises(ConfigurationError, match=r"Proactor.*SelectorEventLoop"):
                    check_loop(loop)
            else:
                check_loop(loop)
        finally:
            # Closing needs what the class leaves out.
            asyncio.SelectorEventLoop.close(loop)


def test_a_provider_shows_its_address_without_secrets() -> None:
    provider = MqttProvider(MqttConfig("host", username="bob", password="hush", tls=True))
    assert provider.address == "mqtts://host:8883"
    assert "hush" not in repr(provider) + repr(provider.config)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "$SYS/x", "a\0b"])
def test_a_provider_refuses_topics_that_a_broker_would(topic: str) -> None:
    with pytest.raises(ConfigurationError):
        MqttProvider(MqttConfig()).check_topic(topic)


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a+", "$share/g/a"])
def test_a_provider_refuses_filters_that_a_broker_would(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        MqttProvider(MqttConfig()).check_filter(pattern)
