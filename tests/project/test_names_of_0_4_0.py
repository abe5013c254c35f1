"""What programs of 0.4.0 import: an error says what it has become."""

from __future__ import annotations

import importlib

import pytest

import spa_dat

_IMPORTS = [
    ("from spa_dat.application.application import DistributedApplication", "from spa_dat import D"),
    ("from spa_dat.application.typedef import ProducerCallback", "from spa_dat import D"),
    ("from spa_dat import application", "from spa_dat import D"),
    ("import spa_dat.application", "from spa_dat import D"),
    ("from spa_dat.config import PayloadFormat, SocketConfig", "MqttConfig or KafkaConfig"),
    ("from spa_dat.provider import SocketProviderFactory", "from spa_dat import SocketProviderF"),
    ("from spa_dat.serialization import JsonSerializer", "serializers are gone"),
    ("from spa_dat.socket.kafka import KafkaConfig", "from spa_dat import KafkaConfig"),
    ("from spa_dat.socket.mqtt import MqttConfig", "Message, MessageBuilder, MqttConfig"),
    ("from spa_dat.socket.typedef import SpaMessage, SpaSocket", "Socket was SpaSocket"),
    ("from spa_dat import SpaMessage", "from spa_dat import Message"),
    ("from spa_dat import SpaSocket", "from spa_dat import Socket"),
    ("from spa_dat import SocketConfig", "MqttConfig or KafkaConfig"),
    ("from spa_dat import QualityOfService", "qos=0 or qos=1"),
    ("from spa_dat import KafkaSocketProvider", "from_config"),
]


@pytest.mark.parametrize(("code", "advice"), _IMPORTS, ids=[code for code, _ in _IMPORTS])
def test_what_0_4_0_had_is_an_error_that_says_the_new_name(code: str, advice: str) -> None:
    with pytest.raises(ImportError, match=r"of spa-dat 0\.4\.0: .*docs/migrating.md") as caught:
        exec(code, {})
    assert advice in str(caught.value)


def test_what_never_was_is_an_error_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'spa_dat\.applications'"):
        importlib.import_module("spa_dat.applications")
    assert not hasattr(spa_dat, "Sockets")
