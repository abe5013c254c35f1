"""Options of the Kafka transport, and URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spa_dat.errors import ConfigurationError
from spa_dat.transports import KafkaConfig, KafkaTopic, SocketProviderFactory
from spa_dat.transports.kafka import KafkaProvider


def config(url: str) -> KafkaConfig:
    made = SocketProviderFactory.config_from_url(url)
    assert isinstance(made, KafkaConfig)
    return made


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://h", "h:9092"),
        ("kafka://h:1", "h:1"),
        ("kafka://h1,h2:2,h3", "h1:9092,h2:2,h3:9092"),
        ("kafka://h,h:9092", "h:9092"),
        ("kafka://[::1]:9,h", "[::1]:9,h:9092"),
        ("kafka://[::1]", "[::1]:9092"),
        ("KAFKA://h/", "h:9092"),
    ],
)
def test_a_url_names_the_servers(url: str, servers: str) -> None:
    assert config(url).servers == servers
    assert config(url) == KafkaConfig(servers)


def test_options_of_a_url_have_their_types() -> None:
    made = config(
        "kafkas://ann:p%40ss@h?create_topics=all&partitions=4&replication=2&commit_interval=0.5"
        "&prefix=test-&compression=gzip&sasl_mechanism=SCRAM-SHA-256&outbox=5"
    )
    assert made == KafkaConfig(
        "h",
        username="ann",
        password="p@ss",
        tls=True,
        create_topics="all",
        partitions=4,
        replication=2,
        commit_interval=0.5,
        prefix="test-",
        compression="gzip",
        sasl_mechanism="SCRAM-SHA-256",
        outbox=5,
    )
    assert made.address == "kafkas://h:9092?prefix=test-"
    assert "p@ss" not in repr(made)
    assert made.secret is not None
    assert made.secret.reveal() == "p@ss"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("kafka://", "no host"),
        ("kafka://a:b", "port"),
        ("kafka://a:1:2", "':'"),
        ("kafka://a:0", "port"),
        ("kafka://a,", "servers"),
        ("kafka://,a", "servers"),
        ("kafka://a b", "space"),
        ("kafka://h?create_topic=all", "create_topics"),
        ("kafka://h?partitions=many", "whole number"),
        ("kafka://h?partitions=0", "partitions"),
        ("kafka://h?create_topics=some", "create_topics"),
        ("kafka://h?username=a", "in front of"),
        ("kafka://h/topic", "topics are not part"),
        ("kafka://u:p@h", "not encrypted"),
        ("kafka://u@h", "password"),
        ("kafka://u:secret@h1,u:secret@h2", "more than one '@': .*%40"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        SocketProviderFactory.from_url(url)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"servers": "u:secret@h"}, "servers"),
        ({"servers": 5}, "servers"),
        ({"password": "x"}, "username"),
        ({"username": "x"}, "password"),
        ({"username": "x", "password": "y"}, "allow_plain_password"),
        ({"tls_ca": "f"}, "tls=True"),
        ({"tls": True, "tls_key": "f"}, "tls_cert"),
        ({"session_timeout": 1.0}, "heartbeat_interval"),
        ({"backoff_min": 5.0, "backoff_max": 1.0}, "backoff_max"),
        ({"prefix": "a/b"}, "prefix"),
        ({"prefix": "x" * 101}, "prefix"),
        ({"replication": 0}, "replication"),
        ({"partitions": 1.5}, "partitions"),
        ({"qos": 2}, "qos"),
        ({"compression": "brotli"}, "compression"),
        ({"offset_reset": "none"}, "offset_reset"),
        ({"offset_reset": None}, "offset_reset"),
        ({"offset_reset": 3600}, "offset_reset"),
        ({"offset_reset": ""}, "offset_reset"),
        ({"offset_reset": "-1h"}, "offset_reset"),
        ({"offset_reset": "1.5h"}, "how far to go back"),
        ({"offset_reset": "1w"}, "how far to go back"),
        ({"offset_reset": "\u0661h"}, "how far to go back"),
        ({"offset_reset": "9" * 100_000 + "h"}, "how far to go back"),
        ({"offset_reset": "2026-11-27"}, "time with its zone"),
        ({"offset_reset": "2026-11-27T25:00:00Z"}, "time with its zone"),
        ({"offset_reset": "2026-11-27T09:00:00"}, "needs its zone"),
        ({"offset_reset": "1969-12-31T23:59:59Z"}, "older than 1970"),
        ({"offset_reset": "0001-01-01T00:00:00+01:00"}, "older than 1970"),
        ({"max_payload": 0}, "max_payload"),
        ({"start_timeout": float("nan")}, "start_timeout"),
        ({"tls": "yes"}, "tls"),
        ({"topics": ["a"]}, "topics"),
        ({"topics": {"a": "b"}}, "KafkaTopic"),
        ({"topics": {"a/+": KafkaTopic("x")}}, "name the levels"),
        ({"topics": {"a/#": KafkaTopic("x")}}, "name the levels"),
        ({"topics": {"_spa/x": KafkaTopic("x")}}, "_spa/"),
        ({"topics": {"a/{b}": KafkaTopic("x", key="c")}}, "not one of its captures"),
        ({"topics": {"a": KafkaTopic("x"), "b": KafkaTopic("x")}}, "already bound"),
    ],
    ids=repr,
)
def test_wrong_options_say_what_is_wrong(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        KafkaConfig(**options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "größe", "x" * 250, ".", "..", "_spa.x", "_spa", 5])
def test_a_topic_that_no_broker_takes_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="KafkaTopic"):
        KafkaTopic(name)


def test_a_password_can_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("from file\nmore")
    monkeypatch.setenv("A_SECRET", "from environment")
    for option, text in (("file", "from file"), ("env", "from environment")):
        source = str(file) if option == "file" else "A_SECRET"
        made = KafkaConfig(username="ann", tls=True, **{f"password_{option}": source})  # type: ignore[arg-type]
        assert made.secret is not None
        assert made.secret.reveal() == text
        assert text not in repr(made)


def test_equal_buses_have_equal_addresses() -> None:
    plain = KafkaProvider(KafkaConfig("h"))
    assert plain.address == KafkaProvider(KafkaConfig("h:9092", outbox=3)).address
    assert plain.address != KafkaProvider(KafkaConfig("h", prefix="test-")).address
    assert plain.address == "kafka://h:9092"
    assert repr(plain) == "KafkaProvider('kafka://h:9092')"


def test_a_provider_checks_topics_and_filters() -> None:
    provider = KafkaProvider(KafkaConfig())
    provider.check_topic("plant/boiler")
    provider.check_filter("plant/+/#")
    with pytest.raises(ConfigurationError, match="Kafka cannot carry"):
        provider.check_topic("plant/größe")
    with pytest.raises(ConfigurationError, match="Kafka cannot carry"):
        provider.check_filter("größe/#")


def test_a_provider_takes_its_defaults_from_the_configuration() -> None:
    provider = KafkaProvider(KafkaConfig(window=7, qos=0))
    assert (provider.default_window, provider.default_qos) == (7, 0)
    assert provider.default_deliver == "share"
