"""Logins that change in their document while an application runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Envelope, Identity, MqttConfig, Secret, SocketProviderFactory
from spa_dat.transports._broker_config import BrokerConfig
from spa_dat.transports.documents import DocumentRenewal, _renewal
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.kafka._reachability import reach
from support.mqtt import Client
from support.waiting import eventually

CANARY = "hunter2-canary"

StartBroker = Callable[..., Mosquitto]


class Document:
    """A document in a file, written anew at once, as those who change one do."""

    def __init__(self, folder: Path, url: str) -> None:
        self.path = folder / "plant.json"
        self.url = self.path.as_uri()
        self.bus = url

    def write(self, **options: Any) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"url": self.bus, **options}))
        new.replace(self.path)

    def config(self) -> BrokerConfig:
        config = SocketProviderFactory.config_from_url(self.url)
        assert isinstance(config, BrokerConfig)
        return config


def login(config: BrokerConfig) -> tuple[str | None, str | None]:
    secret = config.login.secret
    return config.login.username, None if secret is None else secret.reveal()


async def test_a_login_is_read_again_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = Document(tmp_path, "mqtts://h")
    document.write(username="ann", password="one", keepalive=5, tls_ca="a.pem")
    config = document.config()
    assert login(config) == ("ann", "one")
    document.write(username="bob", password=CANARY, keepalive=7, tls_ca="b.pem")
    assert login(config) == ("ann", "one")
    for _ in range(2):
        await config.current_login()
    assert login(config) == ("bob", CANARY)
    assert config.login.tls_ca == "b.pem"
    assert isinstance(config, MqttConfig)
    assert config.keepalive == 5
    (record,) = caplog.records
    assert "take effect only when the application is restarted: keepalive" in record.message
    assert record.message.count(document.url) == 1
    assert CANARY not in caplog.text


async def test_the_last_login_is_kept_while_the_document_can_not_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    document = Document(tmp_path, "mqtt://h")
    document.write(username="ann", password=CANARY)
    config = document.config()
    document.write(username="bob", password=CANARY)
    await config.current_login()
    wrong: list[tuple[Callable[[], object], str]] = [
        (document.path.unlink, "No such file"),
        (lambda: document.path.write_text("{"), "is not JSON"),
        (lambda: document.write(password=[CANARY]), "option password"),
        (lambda: document.path.write_text('{"url": "memory://"}'), "another kind of bus"),
    ]
    for change, said in wrong:
        change()
        caplog.clear()
        for _ in range(3):
            await config.current_login()
        assert login(config) == ("bob", CANARY)
        (record,) = caplog.records
        assert "the last login is kept" in record.message
        assert said in record.message
        assert CANARY not in record.message
    document.write(username="carl", password=CANARY)
    caplog.clear()
    await config.current_login()
    assert login(config) == ("carl", CANARY)
    assert ["can be read again" in record.message for record in caplog.records] == [True]


def login_for(url: str, user: str) -> dict[str, Any]:
    opened = {"allow_plain_password": True} if url.startswith("kafka://") else {}
    return {"username": user, "password": user, **opened}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("mqtt://h", "mqtt://other", "another host"),
        ("mqtt://h", "mqtt+unix:///run/h", "another host"),
        ("mqtt://h", "mqtts://h", "asks for TLS"),
        ("ws://h", "wss://h", "asks for TLS"),
        ("kafka://a,b", "kafka://c:9092", "another host"),
        ("kafka://a,b", "kafkas://a,b", "asks for TLS"),
        ("mqtts://h?tls_insecure_skip_verification=true", "mqtts://h", "a check of the broker's"),
    ],
)
async def test_a_login_that_is_for_another_connection_is_not_sent_over_this_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, after: str, said: str
) -> None:
    document = Document(tmp_path, before)
    document.write(**login_for(before, "ann"))
    config = document.config()
    document.bus = after
    document.write(**login_for(after, "bob"))
    for _ in range(2):
        await config.current_login()
    assert login(config) == ("ann", "ann")
    (record,) = caplog.records
    assert said in record.message
    assert "the last login is kept" in record.message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mqtts://h", "mqtt://h:1884"),
        ("mqtts://H", "wss://h/mqtt"),
        ("kafka://a,b", "kafka://b:9093,c"),
        ("kafka://[::1]:1", "kafka://[::1]:2"),
    ],
)
async def test_a_login_for_the_same_host_is_taken(tmp_path: Path, before: str, after: str) -> None:
    document = Document(tmp_path, before)
    document.write(**login_for(before, "ann"))
    config = document.config()
    document.bus = after
    document.write(**login_for(after, "bob"))
    await config.current_login()
    assert login(config) == ("bob", "bob")


async def test_environment_and_call_come_first_at_each_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPA_DAT_USERNAME", "eve")
    document = Document(tmp_path, "mqtt://h")
    document.write(username="ann", password="one")
    config = SocketProviderFactory.config_from_url(document.url, password="mine")
    assert isinstance(config, BrokerConfig)
    document.write(username="bob", password="two")
    await config.current_login()
    assert login(config) == ("eve", "mine")


async def test_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    """As with `<(sops --decrypt ...)` of a shell."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=('url = "mqtt://ann:one@h"',))
    writer.start()
    config = SocketProviderFactory.config_from_url(pipe.as_uri())
    writer.join()
    assert isinstance(config, BrokerConfig)
    await config.current_login()
    assert login(config) == ("ann", "one")


async def test_all_who_ask_at_a_time_share_one_reading() -> None:
    go, count = Event(), 0
    config = MqttConfig("h", username="bob")

    def load() -> MqttConfig:
        nonlocal count
        count += 1
        go.wait(30)
        return config

    renewal = DocumentRenewal("there", load, is_remote=False)
    renewal.first = MqttConfig("h")
    asking = [asyncio.create_task(renewal.renew(30)) for _ in range(1_000)]
    await asyncio.sleep(0)
    asking[0].cancel()
    go.set()
    await asyncio.wait(asking)
    assert count == 1
    assert renewal.latest is config
    await renewal.renew(30)
    assert count == 2


@pytest.mark.virtual
async def test_a_server_is_asked_once_a_second_at_most() -> None:
    count = 0

    def load() -> MqttConfig:
        nonlocal count
        count += 1
        return MqttConfig("h")

    renewal = DocumentRenewal("there", load, is_remote=True)
    renewal.first = MqttConfig("h")
    asked = []
    for _ in range(4):
        await renewal.renew(30)
        asked.append(count)
        await asyncio.sleep(_renewal._SHORTEST_BETWEEN_REQUESTS * 0.6)
    assert asked == [1, 1, 2, 2]


async def test_what_comes_late_is_there_for_the_next_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go = Event()
    config = MqttConfig("h", username="bob")

    def load() -> MqttConfig:
        go.wait(30)
        return config

    renewal = DocumentRenewal("there", load, is_remote=False)
    renewal.first = MqttConfig("h")
    await renewal.renew(0.01)
    assert "the last login is kept: it took longer than 0.01 s" in caplog.text
    assert renewal.latest is None
    # The others do not wait for it once more.
    await renewal.renew(30)
    assert "30 s" not in caplog.text
    go.set()
    await eventually(lambda: renewal.latest is config)


async def test_whatever_goes_wrong_in_reading_ends_no_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load() -> MqttConfig:
        raise SystemExit("odd")

    renewal = DocumentRenewal("there", load, is_remote=False)
    await renewal.renew(30)
    assert "the last login is kept: odd" in caplog.text


def test_a_secret_of_a_renewal_never_shows(tmp_path: Path) -> None:
    document = Document(tmp_path, f"mqtt://ann:{CANARY}@h")
    document.write()
    config = document.config()
    assert config == MqttConfig("h", username="ann", password=Secret(CANARY))
    assert hash(config) == hash(MqttConfig("h", username="ann", password=CANARY))
    assert CANARY not in repr(config)
    assert CANARY not in repr(vars(config.renewal))


@pytest.mark.mosquitto
async def test_an_application_on_mqtt_goes_on_with_a_login_that_was_rotated(
    own_mosquitto: StartBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_mosquitto(users={"ann": "first"})
    document = Document(tmp_path, f"mqtt://{broker.host}:{broker.port}")
    document.write(username="ann", password="first", backoff_min=0.01, backoff_max=0.2)
    config = document.config()
    assert isinstance(config, MqttConfig)
    app = Client(config, Identity("app"))
    try:
        await app.start()
        broker.reload(users={"bob": CANARY})
        await asyncio.to_thread(broker.restart)
        await eventually(lambda: f"the password is from {document.url}" in caplog.text)
        document.write(username="bob", password=CANARY)
        await app.bus.publish(Envelope(topic="a"), timeout=20)
        assert app.fatal == []
    finally:
        await app.close()
    assert CANARY not in caplog.text


@pytest.mark.kafka
async def test_each_attempt_on_kafka_has_the_login_of_its_time(tmp_path: Path) -> None:
    with Kafka(sasl_users={"ann": CANARY, "bob": "other"}) as broker:
        document = Document(tmp_path, f"kafka://{broker.host}:{broker.sasl_port}")
        document.write(username="ann", password="old", allow_plain_password=True)
        config = document.config()
        assert isinstance(config, KafkaConfig)
        with pytest.raises(Exception, match=r"(?i)authentication"):
            await reach(config, "app")
        for user, password in (("ann", CANARY), ("bob", "other")):
            document.write(username=user, password=password, allow_plain_password=True)
            await reach(config, "app")
            assert login(config) == (user, password)
