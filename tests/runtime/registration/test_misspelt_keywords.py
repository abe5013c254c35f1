"""Keywords of configurations and policies that are misspelt, and what they say instead."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import spa_dat
from spa_dat import DistributedApplication, MqttConfig
from spa_dat.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "given", "wrong", "meant"),
    [
        ("MqttConfig", {}, "keepalve", "keepalive"),
        ("MqttConfig", {}, "pasword", "password"),
        ("KafkaConfig", {}, "create_topic", "create_topics"),
        ("KafkaTopic", {"name": "t"}, "keys", "key"),
        ("MemoryConfig", {}, "outbox_byte", "outbox_bytes"),
        ("LastWill", {"topic": "t"}, "retained", "retain"),
        ("OutboxFile", {}, "max_message", "max_messages"),
        ("Durable", {}, "upgrades", "upgrade"),
        ("RetryPolicy", {}, "attempt", "attempts"),
        ("RestartPolicy", {}, "backof_max", "backoff_max"),
    ],
)
def test_the_keyword_that_is_meant_is_named(
    name: str, given: dict[str, Any], wrong: str, meant: str
) -> None:
    kind = getattr(spa_dat, name)
    text = rf"{name}\(\) got an unexpected keyword argument '{wrong}'; did you mean '{meant}'\?"
    with pytest.raises(TypeError, match=text):
        kind(**given, **{wrong: 1})


def test_if_none_is_near_all_are_named() -> None:
    with pytest.raises(
        TypeError, match="'colour'; there are: attempts, factor, first, hold, jitter"
    ):
        spa_dat.RetryPolicy(colour=1)  # type: ignore[call-arg]


def test_the_rest_of_a_configuration_is_as_it_was() -> None:
    config = MqttConfig("broker.example", keepalive=30)
    assert dataclasses.replace(config, keepalive=20) == MqttConfig("broker.example", keepalive=20)
    assert "keepalive" in inspect.signature(MqttConfig).parameters
    text = r"MqttConfig\(\) takes by position host, and not 3 values: options are given by name"
    with pytest.raises(TypeError, match=text):
        MqttConfig("broker.example", 1883, 30)  # type: ignore[call-arg, arg-type]


def test_an_environment_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="environment='prod': give an Environment"):
        DistributedApplication("memory://", environment="prod")  # type: ignore[arg-type]


def test_what_is_given_by_position_and_has_a_name_is_refused_with_it() -> None:
    with pytest.raises(ConfigurationError, match=r"got 'plant', too: .* as in name='plant'"):
        DistributedApplication("memory://", "plant")  # type: ignore[arg-type]
    app = DistributedApplication("memory://")
    with pytest.raises(ConfigurationError, match=r"got 'b' after its topics: .* as a list"):
        app.application("a", "b")  # type: ignore[call-overload]


def test_a_registration_without_topics_says_how_it_is_written() -> None:
    app = DistributedApplication("memory://")
    with pytest.raises(ConfigurationError, match=r"write @app\.application\('plant/temperature'\)"):
        app.application()  # type: ignore[call-overload]
