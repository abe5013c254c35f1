"""Configurations, URLs, and what never shows: secrets."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import pickle
import re
import traceback
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from spa_dat.errors import ConfigurationError
from spa_dat.transports._credentials import Secret
from spa_dat.transports._effective_config import Config
from spa_dat.transports._factory import SocketProviderFactory, as_provider
from spa_dat.transports._url_options import check_numbers
from spa_dat.transports.memory import MemoryConfig, MemoryProvider
from spa_dat.transports.mqtt._config import MqttConfig

CANARY = "hunter2-canary"
config_from_url = SocketProviderFactory.config_from_url


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    """The text of the ConfigurationError that the call raises, with all that is chained to it."""
    with pytest.raises(ConfigurationError) as caught:
        call(*args, **kwargs)
    return "".join(traceback.format_exception_only(caught.value)) + str(
        caught.value.__cause__ or ""
    )


# --- secrets


def test_a_secret_never_shows() -> None:
    secret = Secret(CANARY)
    shown = (repr(secret), str(secret), f"{secret}", f"{secret!s:>20}", repr([secret]))
    assert not any(CANARY in text for text in shown)
    assert secret.reveal() == CANARY


def test_secrets_compare_by_what_they_hide() -> None:
    assert Secret("a") == Secret("a") == Secret(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert (bool(Secret("")), bool(Secret("x"))) == (False, True)


def test_a_configuration_can_be_copied_with_its_secret() -> None:
    config = MqttConfig("h", username="ann", password=CANARY)
    for copied in (copy.copy(config), copy.deepcopy(config)):
        assert copied == config
    assert CANARY not in repr(dataclasses.asdict(config))


def test_a_secret_can_not_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret(CANARY))


def test_a_config_with_a_secret_never_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    config = MqttConfig(password=CANARY, tls=True, tls_cert="c.pem", tls_key_password=CANARY)
    logging.getLogger("test").warning("%r %s %s", config, config, config.address)
    assert CANARY not in caplog.text
    assert config.secret is not None
    assert config.secret.reveal() == CANARY
    assert dataclasses.replace(config, keepalive=20).secret == Secret(CANARY)


# --- configurations


def test_defaults_are_the_safe_ones() -> None:
    config = MqttConfig()
    assert (config.host, config.effective_port, config.qos) == ("localhost", 1883, 1)
    assert config.address == "mqtt://localhost:1883"
    assert MqttConfig("broker", tls=True).address == "mqtts://broker:8883"
    assert MqttConfig("broker", tls=True, port=1).effective_port == 1
    assert MemoryConfig("x").address == "memory://x"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", 0),
        ("port", 65_536),
        ("port", "1883"),
        ("keepalive", 0),
        ("keepalive", 1.5),
        ("keepalive", True),
        ("keepalive", "15"),
        ("session_expiry", -1),
        ("session_expiry", 4_294_967_296),
        ("connect_timeout", 0),
        ("connect_timeout", float("nan")),
        ("start_timeout", float("inf")),
        ("start_timeout", None),
        ("window", 0),
        ("window", 65_536),
        ("inflight", 0),
        ("topic_aliases", -1),
        ("topic_aliases", 65_536),
        ("topic_aliases", True),
        ("outbox", 0),
        ("max_payload", 0),
        ("max_payload", 268_435_456),
        ("qos", -1),
        ("qos", 3),
        ("qos", True),
        ("backoff_min", 0),
        ("backoff_max", 0.05),
        ("tls", "yes"),
        ("tls_insecure_skip_verification", 1),
        ("username", ""),
        ("username", 7),
        ("password", 7),
        ("tls_ca", "ca.pem"),
        ("tls_cert", "cert.pem"),
        ("tls_insecure_skip_verification", True),
    ],
)
def test_mqtt_config_names_the_option_that_is_wrong(option: str, value: Any) -> None:
    assert option in refusal(lambda: MqttConfig(**{option: value}))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a b"},
        {"name": "x" * 65},
        {"name": None},
        {"window": 0},
        {"outbox": "many"},
        {"max_payload": -1},
        {"start_timeout": 0},
        {"qos": 2},
    ],
)
def test_memory_config_names_the_option_that_is_wrong(options: dict[str, Any]) -> None:
    assert next(iter(options)) in refusal(lambda: MemoryConfig(**options))


@pytest.mark.parametrize(
    "host", ["", " ", "a b", "a/b", "user@host", "h?x", "h#x", "h:1883", None, 5]
)
def test_mqtt_config_refuses_hosts_that_are_none(host: Any) -> None:
    assert "host" in refusal(MqttConfig, host)


def test_mqtt_config_says_why_qos_2_is_refused() -> None:
    assert "before the handler has run" in refusal(MqttConfig, qos=2)


def test_a_key_without_a_certificate_is_refused() -> None:
    assert "tls_cert" in refusal(MqttConfig, tls=True, tls_key="key.pem")


def test_passwords_come_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLANT_PASSWORD", CANARY)
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\r\nanother line\n")
    assert MqttConfig(password_env="PLANT_PASSWORD").secret == Secret(CANARY)
    assert MqttConfig(password_file=str(file)).secret == Secret(CANARY)
    from_url = config_from_url("mqtt://ann@h?password_env=PLANT_PASSWORD")
    assert from_url == MqttConfig("h", username="ann", password=CANARY)


def test_a_password_in_a_file_is_read_each_time_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    config = MqttConfig(password_file=str(file))
    same = MqttConfig(password_file=str(file))
    file.write_text("two\n")
    secret = dataclasses.replace(config, keepalive=3).secret
    assert secret is not None
    assert secret.reveal() == "two"
    assert config == same
    assert hash(config) == hash(same)
    assert str(secret) == repr(secret) == "***"
    file.unlink()
    with pytest.raises(ConfigurationError, match=re.escape(str(file))):
        secret.reveal()


def test_a_password_from_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    """As with `password_file=<(...)` of a shell; waiting for a writer would block the loop."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=("one\n",))
    writer.start()
    secret = MqttConfig(password_file=str(pipe)).secret
    writer.join()
    assert secret is not None
    assert secret.reveal() == "one"


def test_a_file_that_an_editor_has_marked_as_utf_8_has_the_same_password(tmp_path: Path) -> None:
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfone\r\n")
    assert MqttConfig(password_file=str(tmp_path / "marked")).secret == Secret("one")


def test_what_has_no_end_is_no_password() -> None:
    text = refusal(MqttConfig, password_file="/dev/zero")
    assert "'/dev/zero'" in text
    assert "65535" in text


def test_passwords_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert "'NOT_THERE'" in refusal(MqttConfig, password_env="NOT_THERE")
    assert "nothing-here" in refusal(MqttConfig, password_file=str(tmp_path / "nothing-here"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refusal(MqttConfig, password_file=str(tmp_path / "binary"))
    text = refusal(MqttConfig, password=CANARY, password_env="ANY")
    assert "password and password_env" in text
    assert CANARY not in text


def test_checks_accept_whole_numbers_as_numbers() -> None:
    config = MqttConfig(connect_timeout=3)
    check_numbers(config, {"connect_timeout": (1, 3)}, whole=False)


# --- URLs


@pytest.mark.parametrize(
    ("url", "config"),
    [
        ("memory://", MemoryConfig()),
        ("memory://plant", MemoryConfig("plant")),
        ("memory://Plant?window=7&start_timeout=1.5", MemoryConfig("Plant", 7, start_timeout=1.5)),
        ("memory://?name=x", MemoryConfig("x")),
        ("mqtt://h", MqttConfig("h")),
        ("MQTT://h/", MqttConfig("h")),
        ("mqtt://h:1234", MqttConfig("h", port=1234)),
        ("mqtts://h", MqttConfig("h", tls=True)),
        ("mqtt://h?tls=true", MqttConfig("h", tls=True)),
        ("mqtt://h?tls=0", MqttConfig("h")),
        ("mqtt://[::1]", MqttConfig("::1")),
        ("mqtt://[::1]:99", MqttConfig("::1", port=99)),
        ("mqtt://[fe80::1%25eth0]:99", MqttConfig("fe80::1%eth0", port=99)),
        ("mqtt://ann@h", MqttConfig("h", username="ann")),
        ("mqtt://ann:@h", MqttConfig("h", username="ann", password="")),
        ("mqtt://ann:a:b@h", MqttConfig("h", username="ann", password="a:b")),
        ("mqtt://a%40b:p%2Fw%3F%23%25+@h", MqttConfig("h", username="a@b", password="p/w?#%+")),
        ("mqtt://h?keepalive=5&backoff_max=2.5", MqttConfig("h", keepalive=5, backoff_max=2.5)),
        ("mqtts://h?tls_ca=/etc/ca.pem", MqttConfig("h", tls=True, tls_ca="/etc/ca.pem")),
    ],
)
def test_a_url_stands_for_a_configuration(url: str, config: Config) -> None:
    assert config_from_url(url) == config


@pytest.mark.parametrize(
    ("url", "texts"),
    [
        ("", ["memory://"]),
        ("localhost:1883", ["no scheme"]),
        ("://h", ["memory://"]),
        ("mqt://h", ["'mqt'", "did you mean 'mqtt'?"]),
        ("amqp://h", ["'amqp'", "memory, mqtt, mqtt+unix, mqtts, ws, wss"]),
        ("mqtt://", ["no host", "mqtt://localhost"]),
        ("mqtt://:1883", ["no host"]),
        ("mqtt://h:0", ["port '0'"]),
        ("mqtt://h:65536", ["port '65536'"]),
        ("mqtt://h:abc", ["port 'abc'", "1 to 65535"]),
        ("mqtt://h:", ["port ''"]),
        ("mqtt://h:-1", ["port '-1'"]),
        ("mqtt://ann:hunter2-canary", ["the port of mqtt://ann is longer", "'@' and the host"]),
        ("kafka://ann:hunter2-canary", ["the port of kafka://ann is longer"]),
        ("mqtt://::1", ["brackets"]),
        ("mqtt://[::1", ["IPv6"]),
        ("mqtt://[host]", ["IPv6"]),
        ("mqtt://[::1]x", ["IPv6", "mqtt://[::1]:1883"]),
        ("mqtt://a:b:c", ["more than one ':'", "mqtt://[::1]:1883", "one host"]),
        ("mqtts://a:b:c", ["mqtts://[::1]:8883"]),
        ("kafka://a:b:c", ["kafka://[::1]:9092", "separate hosts with ','"]),
        ("kafkas://[a]:1", ["IPv6", "kafkas://[::1]:9093"]),
        ("mqtt://a%00b@h", ["username='a\\x00b'", "leave out the character U+0000"]),
        ("mqtt://h/topic", ["not an option"]),
        ("mqtt://h#frag", ["%23"]),
        ("mqtt://h ost", ["%20"]),
        ("mqtt://h\n", ["control"]),
        ("mqtt://a%b@h", ["user name", "%25"]),
        ("mqtt://a%ff@h", ["user name", "UTF-8"]),
        ("mqtt://h?keepalive=abc", ["keepalive='abc'", "mqtt://h", "a whole number"]),
        ("mqtt://h?keepalive=0", ["keepalive=0", "1 to 65535"]),
        ("mqtt://h?keepalive=", ["keepalive=''", "a whole number"]),
        ("mqtt://h?connect_timeout=soon", ["connect_timeout='soon'", "a number"]),
        ("mqtt://h?tls=maybe", ["tls='maybe'", "true or false"]),
        ("mqtt://h?qos=2", ["qos=2", "crash"]),
        ("mqtt://h?keepalvie=3", ["'keepalvie'", "did you mean 'keepalive'"]),
        ("mqtt://h?window=1&window=2", ["'window'", "twice"]),
        ("mqtt://h?window", ["?name=value"]),
        ("mqtt://h?host=x", ["'host'", "in front of"]),
        ("mqtt://h?password=x", ["'password'", "in front of"]),
        ("mqtts://h?tls=false", ["'tls'", "twice"]),
        ("memory://a b", ["%20"]),
        ("memory://a%20b", ["name='a b'"]),
        ("memory://ann@x", ["neither a user nor a port"]),
        ("memory://x:1", ["neither a user nor a port"]),
        ("memory://x?name=y", ["'name'", "twice"]),
        ("memory://x?wndow=1", ["'wndow'", "did you mean 'window'"]),
    ],
)
def test_a_url_that_is_wrong_says_what_and_what_to_do(url: str, texts: list[str]) -> None:
    refused = refusal(config_from_url, url)
    assert [text for text in texts if text not in refused] == [], refused


@pytest.mark.parametrize(
    "url",
    [
        f"mqtt://ann:{CANARY}@h:abc",
        f"mqtt://ann:{CANARY}@",
        f"mqtt://ann:{CANARY}@h/topic",
        f"mqtt://ann:{CANARY}@h?keepalvie=3",
        f"mqtt://ann:{CANARY}@h?keepalive=abc",
        f"mqtt://ann:{CANARY}%zz@h",
        f"mqtt://ann:{CANARY}%ff@h",
        f"mqtt://ann:x#{CANARY}@h",
        f"mqtt://ann:x/{CANARY}@h",
        f"mqtt://ann:x?{CANARY}@h",
        f"mqtt://ann:x {CANARY}@h",
        f"mqtt://ann:{CANARY}@[::1",
        f"mqtt://ann:{CANARY}@a:b:c",
        f"mqtt://ann:{CANARY}@a\u2100b:x",
        f"mqtt://h?password={CANARY}",
        f"mqtt://h?pasword={CANARY}",
        f"mqtt://h?{CANARY}",
        f"mqtt://h?tls_key_password={CANARY}",
        f"mqtts://h?tls_key_password={CANARY}",
        f"mqqt://ann:{CANARY}@h",
        f"kafka://ann:{CANARY}@h",
        f"memory://ann:{CANARY}@h",
        f"ann:{CANARY}@h",
    ],
)
def test_a_wrong_url_never_shows_its_secret(url: str) -> None:
    assert CANARY not in refusal(config_from_url, url)


@given(
    username=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    password=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_login_survives_percent_encoding(username: str, password: str) -> None:
    login = f"{quote(username, safe='')}:{quote(password, safe='')}"
    config = config_from_url(f"mqtt://{login}@h:1")
    assert config == MqttConfig("h", port=1, username=username, password=password)


@given(st.text())
def test_any_text_is_a_url_or_a_configuration_error(text: str) -> None:
    for url in (text, f"mqtt://{text}", f"mqtt://h?{text}", f"memory://{text}"):
        try:
            assert isinstance(config_from_url(url), (MqttConfig, MemoryConfig))
        except ConfigurationError:
            pass


def test_every_option_of_a_configuration_can_be_given_in_a_url() -> None:
    values = {"qos": "0", "backoff_min": "5", "tls_cert": "c.pem", "tls_key": "k.pem"}
    values["websocket_path"] = "/ws"
    values["wire"] = "spa-dat"
    values["will"] = "{%22topic%22:%22a%22}"
    in_front = {"host", "port", "username", "password"}
    for entry in dataclasses.fields(MqttConfig):
        if entry.name in in_front or entry.name == "renewal":
            continue
        text = values.get(entry.name, "true" if isinstance(entry.default, bool) else "11")
        base = "mqtt" if entry.name in ("tls", "unix_socket") else "mqtts"
        needs = "&tls_cert=c.pem" if entry.name in ("tls_key", "tls_key_password") else ""
        config = config_from_url(f"{base}://h?{entry.name}={text}{needs}")
        assert getattr(config, entry.name) != entry.default, entry.name


# --- providers


def test_providers_are_made_from_configurations_and_urls() -> None:
    for provider in (
        SocketProviderFactory.from_config(MemoryConfig("x")),
        SocketProviderFactory.from_url("memory://x"),
        as_provider("memory://x"),
        as_provider(MemoryConfig("x")),
    ):
        assert isinstance(provider, MemoryProvider)
        assert provider.address == "memory://x"
        assert as_provider(provider) is provider


def test_mqtt_providers_show_an_address_without_secrets() -> None:
    provider = SocketProviderFactory.from_url(f"mqtt://ann:{CANARY}@h?keepalive=5")
    assert provider.address == "mqtt://h:1883"
    assert CANARY not in repr(vars(provider))
    assert SocketProviderFactory.url(MqttConfig("h", username="a", password="b")) == "mqtt://h:1883"


def test_a_configuration_is_no_url() -> None:
    assert "from_config" in refusal(SocketProviderFactory.from_url, MqttConfig("h"))


@pytest.mark.parametrize("value", [None, 5, {"host": "h"}, object()])
def test_what_is_neither_provider_nor_configuration_is_refused(value: Any) -> None:
    assert type(value).__name__ in refusal(as_provider, value)


def test_configurations_can_be_copied_and_compared() -> None:
    config = MqttConfig("h", password=CANARY)
    assert copy.copy(config) == config
    assert len({config, MqttConfig("h", password=Secret(CANARY))}) == 1
