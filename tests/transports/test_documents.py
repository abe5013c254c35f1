"""Configuration documents: where they are, their formats, who says what, and bad ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import dataclasses
import json
import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
import yaml
from hypothesis import given, strategies as st

from spa_dat.errors import ConfigurationError
from spa_dat.transports import KafkaConfig, KafkaTopic, MemoryConfig, MqttConfig, _effective_config
from spa_dat.transports._effective_config import Config, effective_config
from spa_dat.transports._factory import SocketProviderFactory, as_provider
from spa_dat.transports._url_options import option_types, repeated_name
from spa_dat.transports.documents._formats import parsed
from spa_dat.transports.documents._reading import LARGEST, MOST_REDIRECTS, Content

CANARY = "hunter2-canary"
SECONDS = 30.0

config_from_url = SocketProviderFactory.config_from_url


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("SPA_DAT_"):
            monkeypatch.delenv(variable)


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a document; returns its URL."""

    def write(text: str | bytes, name: str = "plant.toml") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path.as_uri()

    return write


def refusal(url: str, **options: Any) -> str:
    """The text of the error, which never has the secret of these tests."""
    with pytest.raises(ConfigurationError) as caught:
        SocketProviderFactory.from_url(url, **options)
    text = str(caught.value) + str(caught.value.__cause__ or "")
    assert CANARY not in text
    assert len(text) < 2_000
    return text


# --- formats


def test_the_smallest_document_is_a_url(write: Write) -> None:
    assert config_from_url(write('url = "mqtt://host"')) == MqttConfig("host")
    assert as_provider(write('url = "memory://x"')).address == "memory://x"


TABLE: Mapping[str, Any] = {
    "url": "kafkas://ann@a,b:1?partitions=4",
    "password": "secret",
    "commit_interval": 0.5,
    "window": 7,
    "allow_plain_password": True,
    "topics": {"fleet/{truck}": {"name": "positions", "key": "truck"}},
}
SAME = KafkaConfig(
    "a,b:1",
    tls=True,
    username="ann",
    password="secret",
    partitions=4,
    commit_interval=0.5,
    window=7,
    allow_plain_password=True,
    topics={"fleet/{truck}": KafkaTopic("positions", key="truck")},
)
TOML = """
url = "kafkas://ann@a,b:1?partitions=4"
password = "secret"
commit_interval = 0.5
window = 7
allow_plain_password = true
topics = {"fleet/{truck}" = {name = "positions", key = "truck"}}
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TOML, "plant.toml"),
        (TOML, "without-ending"),
        (json.dumps({"$schema": "x.json", **TABLE}), "plant.json"),
        (json.dumps(TABLE), "without-ending"),
        (yaml.safe_dump(dict(TABLE)), "plant.yaml"),
        (yaml.safe_dump(dict(TABLE)), "plant.YML"),
        ("\ufeff" + TOML, "plant.toml"),
    ],
)
def test_all_formats_say_the_same(write: Write, text: str, name: str) -> None:
    assert config_from_url(write(text, name)) == SAME


def test_yaml_may_have_anchors(write: Write) -> None:
    text = """
providers:
  inside: &common {url: "mqtt://a", keepalive: 5}
  outside: {<<: *common, url: "mqtt://b"}
"""
    assert config_from_url(write(text, "x.yaml"), name="outside") == MqttConfig("b", keepalive=5)


def test_the_example_is_a_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "x")
    (tmp_path / "password").write_text("x")
    monkeypatch.setenv("SPA_DAT_MACHINES_PASSWORD_FILE", str(tmp_path / "password"))
    url = (Path(__file__).parent.parent.parent / "examples" / "plant.toml").as_uri()
    machines = config_from_url(url, name="machines")
    office = config_from_url(url, name="office")
    assert machines.address == "mqtts://mosquitto.example.org:8883"
    assert isinstance(office, KafkaConfig)
    assert office.topics == {"fleet/{truck}/position": KafkaTopic("positions", key="truck")}


# --- several providers

SEVERAL = """
[providers.plant]
url = "mqtt://plant"
[providers.head-office]
url = "kafka://office"
partitions = 3
"""


def test_a_provider_is_chosen_by_its_name(write: Write) -> None:
    url = write(SEVERAL)
    office = KafkaConfig("office", partitions=3)
    assert config_from_url(url, name="plant") == MqttConfig("plant")
    assert config_from_url(url, name="head-office") == office
    assert config_from_url(f"{url}#head-office") == office
    assert config_from_url(f"{url}#plant", name="plant") == MqttConfig("plant")
    alone = write('[providers.plant]\nurl = "mqtt://plant"', "alone.toml")
    assert config_from_url(alone) == MqttConfig("plant")


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (SEVERAL, None, ["several", "head-office, plant", "name="]),
        (SEVERAL, "plnat", ["'plnat'", "did you mean 'plant'"]),
        (SEVERAL + "\n[providers.Head_Office]\nurl='x'", "plant", ["'head-office'", "same"]),
        (SEVERAL + "\n[providers.'a b']\nurl='x'", "plant", ["'a b'", "64 letters"]),
        (f"qos = 1\n{SEVERAL}", "plant", ["'qos'", "outside"]),
        ("providers = 5", None, ["[providers.NAME]"]),
        ("[providers]", None, ["[providers.NAME]"]),
        ("[providers]\nplant = 5", None, ["#plant", "not a table"]),
        ("[providers.plant]\nqos = 1", None, ["#plant", "no option 'url'"]),
        ('url = "mqtt://a"', "plant", ["'plant'", "[providers.plant]"]),
    ],
)
def test_a_provider_that_is_not_there_is_named(
    write: Write, text: str, name: str | None, said: list[str]
) -> None:
    refused = refusal(write(text), name=name)
    assert [part for part in said if part not in refused] == [], refused


@pytest.mark.parametrize("name", [5, "", "a b", "1st", "é", "x" * 65])
def test_a_name_that_no_provider_may_have_is_refused(write: Write, name: Any) -> None:
    for url in ("mqtt://h", write('[providers.a]\nurl = "mqtt://h"')):
        said = refusal(url, name=name)
        assert f"provider {name!r}: give a name of at most 64 letters" in said


def test_a_url_names_no_other_provider_than_the_call(write: Write) -> None:
    assert "'plant', but name='office'" in refusal(f"{write(SEVERAL)}#plant", name="office")


# --- who says what


def test_precedence_is_call_environment_document_default(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write('url = "mqtt://a"\nkeepalive = 3\nwindow = 3\ninflight = 3')
    for option in ("keepalive", "window"):
        monkeypatch.setenv(f"SPA_DAT_{option.upper()}", "2")
    found = effective_config(url, name=None, allow_http=False, options={"keepalive": 1})
    assert found.config == MqttConfig("a", keepalive=1, window=2, inflight=3)
    assert found.given["keepalive"].origin == "the call"
    assert found.given["window"].origin == "the environment variable SPA_DAT_WINDOW"
    assert found.given["inflight"].origin == found.given["host"].origin == url
    assert "qos" not in found.given


def test_the_url_of_a_bus_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_DAT_KEEPALIVE", "2")
    monkeypatch.setenv("SPA_DAT_WINDOW", "2")
    monkeypatch.setenv("SPA_DAT_HOST", "elsewhere")
    url = "mqtt://a?keepalive=3"
    assert config_from_url(url) == MqttConfig("a", keepalive=3, window=2)
    assert config_from_url(url, keepalive=4) == MqttConfig("a", keepalive=4, window=2)


def test_the_host_may_be_left_to_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write('url = "mqtts://"')
    assert "no host" in refusal(url)
    monkeypatch.setenv("SPA_DAT_HOST", "there")
    assert config_from_url(url) == MqttConfig("there", tls=True)


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_DAT_KEEPALIVE", "")
    assert config_from_url("mqtt://a") == MqttConfig("a")


def test_a_provider_with_a_name_has_variables_of_its_own(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the password for one broker would be shown to the others."""
    monkeypatch.setenv("SPA_DAT_PASSWORD", "plain")
    monkeypatch.setenv("SPA_DAT_HEAD_OFFICE_PARTITIONS", "9")
    monkeypatch.setenv("SPA_DAT_OUTSIDE_QOS", "0")
    url = write(SEVERAL)
    assert config_from_url(url, name="plant") == MqttConfig("plant")
    assert config_from_url(url, name="head-office") == KafkaConfig("office", partitions=9)
    assert config_from_url("mqtt://a", name="outside") == MqttConfig("a", qos=0)
    assert config_from_url("mqtt://a") == MqttConfig("a", password="plain")


@pytest.mark.parametrize("way", ["password", "password_env", "password_file"])
def test_one_way_to_give_a_password_replaces_those_that_come_after_it(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    (tmp_path / "file").write_text("first")
    monkeypatch.setenv("A_PASSWORD", "first")
    value = {"password": "first", "password_env": "A_PASSWORD"}.get(way, str(tmp_path / "file"))
    document = write('url = "mqtt://ann:second@a"')
    monkeypatch.setenv(f"SPA_DAT_{way.upper()}", value)
    for config in (config_from_url(document), config_from_url("mqtt://ann@a")):
        assert config.secret is not None  # type: ignore[union-attr]
        assert config.secret.reveal() == "first"  # type: ignore[union-attr]
    monkeypatch.setenv("SPA_DAT_PASSWORD", "third")
    assert config_from_url("mqtt://ann:second@a") == MqttConfig(
        "a", username="ann", password="second"
    )


def samples(kind: type[Config]) -> dict[str, tuple[str, object]]:
    """A value of each option that is not the default, as a text and as a document has it."""
    special: dict[str, tuple[str, object]] = {
        "host": ("h2", "h2"),
        "servers": ("h2:9092", "h2:9092"),
        "qos": ("0", 0),
        "backoff_min": ("5.5", 5.5),
        "heartbeat_interval": ("4.5", 4.5),
        "create_topics": ("all", "all"),
        "offset_reset": ("2026-11-27T09:00:00+01:00", "2026-11-27T09:00:00+01:00"),
        "wire": ("spa-dat", "spa-dat"),
        "sasl_mechanism": ("SCRAM-SHA-256", "SCRAM-SHA-256"),
        "compression": ("gzip", "gzip"),
        "topics": ('{"a": {"name": "b"}}', {"a": {"name": "b"}}),
        "password_env": ("A_PASSWORD", "A_PASSWORD"),
        "password_file": (os.devnull, os.devnull),
        "tls": ("true", True),
        "websocket_path": ("/ws", "/ws"),
        "will": ('{"topic": "a", "delay": 5}', {"topic": "a", "delay": 5}),
    }
    found = {}
    for option, kinds in option_types(kind).items():
        if option in special:
            found[option] = special[option]
        elif bool in kinds:
            found[option] = ("true", True)
        elif int in kinds:
            found[option] = ("11", 11)
        elif float in kinds:
            found[option] = ("11.5", 11.5)
        else:
            found[option] = ("text", "text")
    return found


ALL = [
    (kind, option)
    for kind in (MemoryConfig, MqttConfig, KafkaConfig)
    for option in option_types(kind)
]
SCHEMES: Mapping[type[Config], str] = {
    MemoryConfig: "memory",
    MqttConfig: "mqtt",
    KafkaConfig: "kafka",
}


def in_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {in_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def url_and_rest(kind: type[Config], option: str) -> tuple[str, dict[str, object]]:
    """A URL that leaves the option open, and what else has to be given with it."""
    if kind is MemoryConfig:
        return "memory://", {}
    scheme = SCHEMES[kind] + ("" if option in ("tls", "unix_socket") else "s")
    rest: dict[str, object] = {}
    if option in ("tls_key", "tls_key_password"):
        rest["tls_cert"] = "c.pem"
    if kind is KafkaConfig and option == "username":
        rest["password"] = "x"
    if kind is KafkaConfig and option.startswith("password"):
        rest["username"] = "x"
    if option == "sasl_mechanism":
        rest |= {"username": "x", "password": "x"}
    return f"{scheme}://" + ("" if option in ("host", "servers") else "h"), rest


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind, option in ALL if option != "password_function"]
)
def test_every_option_can_be_given_in_a_document_and_in_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch, kind: type[Config], option: str
) -> None:
    monkeypatch.setenv("A_PASSWORD", "from there")
    text, value = samples(kind)[option]
    url, rest = url_and_rest(kind, option)
    document = f"url = {json.dumps(url)}\n"
    from_document = effective_config(
        write(f"{document}{option} = {in_toml(value)}"), name=None, allow_http=False, options=rest
    )
    variable = f"SPA_DAT_{option.upper()}"
    monkeypatch.setenv(variable, text)
    from_environment = effective_config(write(document), name=None, allow_http=False, options=rest)
    assert from_environment.config == from_document.config
    assert from_environment.given[option].origin == f"the environment variable {variable}"
    password = option.startswith("password")
    kept = "password" if password else option
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    assert getattr(from_document.config, kept) != defaults[kept]


WRONG: Mapping[str, tuple[str, str | None]] = {
    # What may be a URL with a password in it is not shown.
    "host": ("a b", None),
    "servers": ("a b", None),
    "username": ("a\x01b", r"'a\x01b'"),
    "password": ("x" * 65_536 + CANARY, None),
    "password_env": ("NOT_THERE", "'NOT_THERE'"),
    "password_file": ("/not/there", "'/not/there'"),
    # Only in code.
    "password_function": ("perhaps", None),
    # Without TLS.
    "tls_ca": ("ca.pem", "'ca.pem'"),
    "tls_cert": ("c.pem", "'c.pem'"),
    "tls_key": ("k.pem", "'k.pem'"),
    "tls_key_password": (CANARY, None),
    "name": ("a b", "'a b'"),
    "prefix": ("a/b", "'a/b'"),
    "unix_socket": ("x" * 108, f"'{'x' * 108}'"),
    "topics": ("[1]", "[1]"),
    "will": ("status/a", "'status/a'"),
}
"""By option: a text that is wrong, and how an error shows it."""
REMEDY = re.compile(r"\b(give|set|write|check|leave)\b")


@pytest.mark.parametrize("source", ["URL", "document", "environment"])
@pytest.mark.parametrize(("kind", "option"), ALL)
def test_every_option_that_is_wrong_is_named_with_its_value_and_a_remedy(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Config],
    option: str,
    source: str,
) -> None:
    is_number = {int, float}.intersection(option_types(kind)[option])
    url, rest = url_and_rest(kind, option)
    if option.startswith("tls_"):
        url, rest = url.replace("s://", "://"), {}
    for text in ("many", "-1") if is_number else (WRONG.get(option, ("perhaps", ""))[0],):
        shown = text if text == "-1" else WRONG.get(option, ("", repr(text)))[1]
        if option == "tls_insecure_skip_verification":
            shown = "'perhaps'"
        if source == "URL":
            refused = refusal(in_url(url, option, text), **rest)
            origin = url.partition("://")[0]
        elif source == "document":
            value: object = int(text) if text == "-1" else [1] if text == "[1]" else text
            origin = write(f"url = {json.dumps(url)}\n{option} = {in_toml(value)}")
            refused = refusal(origin, **rest)
        else:
            origin = f"SPA_DAT_{option.upper()}"
            with monkeypatch.context() as patch:
                patch.setenv(origin, text)
                refused = refusal(url, **rest)
        assert re.search(rf"\b(option '?{option}\b|port ')", refused), refused
        assert shown is None or shown in refused, refused
        assert REMEDY.search(refused), refused
        assert source == "URL" or origin in refused, refused


def in_url(url: str, option: str, text: str) -> str:
    text = quote(text, safe="")
    if option in ("host", "servers"):
        return url + text
    if option == "port":
        return f"{url}:{text}"
    if option == "username":
        return url.replace("//", f"//{text}@")
    if option == "password":
        return url.replace("//", f"//:{text}@")
    return f"{url}?{option}={text}"


@pytest.mark.parametrize("source", ["document", "environment", "call"])
def test_an_option_that_is_not_known_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    document = 'url = "mqtt://h"\n'
    if source == "document":
        url = write(f"{document}keepalvie = 5")
        assert f"'keepalvie' of {url} is not known: did you mean 'keepalive'" in refusal(url)
    elif source == "call":
        assert "'keepalvie' of the call" in refusal(write(document), keepalvie=5)
    else:
        # Others may have variables that begin like ours.
        monkeypatch.setenv("SPA_DAT_KEEPALVIE", "5")
        assert config_from_url(write(document)) == MqttConfig("h")


# --- documents that are none


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("url = ", "x.toml", ["is not TOML", "end of document"]),
        (f"url = '{CANARY}' x", "x.toml", ["is not TOML", "line 1"]),
        ("url = 'a'\nurl = 'b'\n", "x.toml", ["is not TOML", "line 2"]),
        ("{", "x.json", ["is not JSON", "line 1, column 2"]),
        (f'{{"url": "{CANARY}" 5}}', "x.json", ["is not JSON", "column 26"]),
        ('{"url": 1, "url": 2}', "x.json", ["is not JSON", "'url'", "twice"]),
        ('{"qos": NaN}', "x.json", ["is not JSON", "NaN"]),
        ('{"qos": ' + "1" * 5_000 + "}", "x.json", ["is not JSON", "digits"]),
        ("[" * 100_000, "x.json", ["is not JSON", "deeply"]),
        ("a = " + "[" * 100_000, "x.toml", ["is not TOML", "deeply"]),
        ("a." * 100_000 + "a = 1", "x.toml", ["is not TOML", "1000 dots"]),
        ("[" * 100_000, "x.yaml", ["is not YAML", "deeply"]),
        (f"a: b: {CANARY}", "x.yaml", ["is not YAML", "line 1, column 5"]),
        (f"a: *{CANARY}", "x.yaml", ["is not YAML", "line 1"]),
        ("a: &x [*x]", "x.yaml", ["is not YAML", "alias"]),
        ("a: 1\na: 2", "x.yaml", ["is not YAML", "twice", "line 2"]),
        (f"a: !!python/object/apply:os.abort [{CANARY}]", "x.yaml", ["is not YAML", "line 1"]),
        ("a: \x01", "x.yaml", ["is not YAML"]),
        ("a: 9999-99-99", "x.yaml", ["is not YAML"]),
        ("a: 1\n---\na: 2", "x.yaml", ["is not YAML", "line 2"]),
        ("", "x.yaml", ["not a table"]),
        ("[1]", "x.json", ["not a table"]),
        ("5: x", "x.yaml", ["not a table", "name 5", "quotes"]),
        ("url: mqtt://h\non: x", "x.yaml", ["not a table", "name True", "quotes"]),
        ("", "x.toml", ["no option 'url'"]),
        ("url = 5", "x.toml", ["'url' that is not a string"]),
        (b"url = '\xff'", "x.toml", ["UTF-8", "byte 7"]),
        (b"x" * (LARGEST + 1), "x.toml", ["larger than 262144 bytes"]),
        ('url = "amqp://h"', "x.toml", ["option url", "scheme 'amqp'", "mqtts"]),
        ('url = "mqt://h"', "x.toml", ["option url", "did you mean 'mqtt'"]),
        ('url = "file:///etc/x"', "x.toml", ["option url", "scheme 'file'"]),
        ('url = "host"', "x.toml", ["option url", "no scheme"]),
        (f'url = "mqtt://a:{CANARY}@h:x"', "x.toml", ["option url", "port 'x'"]),
        (f'url = "kafka://a:{CANARY}@h"', "x.toml", ["not encrypted"]),
        ('url = "mqtt://h?qos=0"\nqos = 0', "x.toml", ["option qos", "twice"]),
        ('url = "mqtts://h"\ntls = false', "x.toml", ["option tls", "twice"]),
        (f'url = "mqtt://h"\npassword = "{CANARY}"\npassword_env = "A"', "x.toml", ["exclusive"]),
        (f'url = "mqtt://h"\npassword = ["{CANARY}"]', "x.toml", ["option password", "a list"]),
        (f'url = "mqtt://h"\nqos = "{"x" * 5_000}"', "x.toml", ["option qos='xxx", "..."]),
        ("url: mqtt://h\nqos: 2001-01-01", "x.yaml", ["option qos=", "2001"]),
    ],
)
def test_a_document_that_is_none_says_why(
    write: Write, text: str | bytes, name: str, said: list[str]
) -> None:
    url = write(text, name)
    refused = refusal(url)
    assert url in refused
    assert [part for part in said if part not in refused] == [], refused


def test_how_deep_yaml_may_be_nested_does_not_depend_on_the_program(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = 0
    compose = yaml.SafeLoader.compose_node

    def counting(*args: Any) -> Any:
        nonlocal composed
        composed += 1
        return compose(*args)

    monkeypatch.setattr(yaml.SafeLoader, "compose_node", counting)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        assert "deeply" in refusal(write("[" * 2_000, "x.yaml"))
    finally:
        sys.setrecursionlimit(limit)
    assert composed < 1_000


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_are_counted_before_they_are_written_out(write: Write, merge: bool) -> None:
    lines = ["l0: &l0 {a: 1}" if merge else "l0: &l0 [1, 2, 3]"]
    for level in range(1, 60):
        names = ", ".join([f"*l{level - 1}"] * 9)
        lines.append(f"l{level}: &l{level} " + (f"{{<<: [{names}]}}" if merge else f"[{names}]"))
    assert "more than 50000 values" in refusal(write("\n".join(lines), "x.yaml"))


class Name(str):
    """A text that counts how often any is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_name_that_stands_twice_is_found_without_comparing_all_with_all() -> None:
    many = [(Name(f"n{number}"), 0) for number in range(2_000)]
    assert repeated_name(many) is None
    assert repeated_name([*many, (Name("n1999"), 1), (Name("n0"), 1)]) == "n1999"
    assert Name.compared < 2 * len(many)


@pytest.mark.parametrize("text", ['{"topic": "a", "topic": "b"}', '{"topic": NaN', "[]"])
def test_a_table_in_a_variable_has_each_name_once(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SPA_DAT_WILL", text)
    said = refusal("mqtt://h")
    assert f"option will={text!r} of the environment variable SPA_DAT_WILL: give a table" in said
    assert "each name once" in said


def test_yaml_without_its_library_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "spa-dat[yaml]" in refusal(write("url: mqtt://h", "x.yaml"))


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["mqtt://h", "kafka://h", "memory://", "own", "gzip"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_OPTIONS = sorted({option for _, option in ALL} | {"url", "providers", "$schema"})


@given(
    options=st.dictionaries(st.sampled_from(_OPTIONS), _VALUES, max_size=4),
    url=st.sampled_from(["memory://", "mqtt://", "mqtts://h", "kafka://h", "kafkas://h?qos=0"]),
)
def test_any_document_is_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], url: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump({"url": url, **options}), encoding="utf-8")
    with contextlib.suppress(ConfigurationError):
        SocketProviderFactory.from_url(path.as_uri())


@given(st.binary(max_size=100), st.sampled_from(["toml", "json", "yaml"]))
def test_any_bytes_are_a_configuration_or_a_configuration_error(data: bytes, ending: str) -> None:
    with contextlib.suppress(ConfigurationError):
        parsed(Content(data, f"x.{ending}"), "there")


# --- files


def test_the_path_of_a_file_that_is_there_is_said_as_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a plant.toml").write_text('url = "mqtt://h"', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    url = (tmp_path / "a plant.toml").as_uri()
    for text in ("a plant.toml", str(tmp_path / "a plant.toml")):
        assert refusal(text).endswith(f"; write {url} for the file")
    assert "as_uri() of a path" in refusal(tmp_path)  # type: ignore[arg-type]
    for text in (CANARY, "x" * 10_000, "a\0b", f"ann:{CANARY}@h"):
        assert "for the file" not in refusal(text)


def test_a_configuration_from_a_document_can_be_copied_while_it_is_read_again(write: Write) -> None:
    config = config_from_url(write('url = "mqtt://ann:x@h"'))
    assert isinstance(config, MqttConfig)
    assert config.renewal is not None

    async def renew() -> None:
        await config.current_login()
        assert copy.deepcopy(config).renewal is config.renewal

    asyncio.run(renew())


def test_a_file_that_can_not_be_read_says_why(tmp_path: Path) -> None:
    assert "No such file" in refusal((tmp_path / "x.toml").as_uri())
    assert "directory" in refusal(tmp_path.as_uri())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file://plant.toml", "three slashes"),
        ("file://host/plant.toml", "three slashes"),
        ("file:///a?keepalive=5", "after '?'"),
        ("file:///", "not that of a file"),
        ("file:///a/", "not that of a file"),
        ("file:///a%00b", "not that of a file"),
        ("file:///a b", "%20"),
        ("file:///ä", "%20"),
        ("file:///a%zz", "%25"),
        (f"https://a:{CANARY}@", "no host"),
        (f"https://a:{CANARY}@h:x/", "port"),
        (f"https://a:{CANARY}@[h/", "host or port"),
        (f"https://a:{CANARY}@h℀.com/", "ASCII"),
    ],
)
def test_a_url_of_a_document_that_is_wrong_says_what(url: str, said: str) -> None:
    assert said in refusal(url)


def test_what_can_not_wait_is_read_within_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_effective_config, "_LONGEST_READING", 0.05)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "took longer than 0.05 s" in refusal(pipe.as_uri())
    # Lets its thread end.
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
    assert "larger than" in refusal("file:///dev/zero")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"http://a:{CANARY}@h/x y#z@?", "scheme 'http' is not allowed"),
        ("HTTP://", "scheme 'http' is not allowed"),
        (f"amqp://a:{CANARY}@h/x y#z@?", "scheme 'amqp' is not known"),
        (f"ftp://{CANARY} ", "scheme 'ftp' is not known: there are: file, https, "),
        ("htps://h", "did you mean 'https'"),
        ("tcp://h", "for MQTT write mqtt://"),
        ("ssl://h", "for MQTT write mqtts://"),
        (" mqtt://h", "blanks around it"),
        ("plant.toml", "file:///etc/plant.toml"),
        ("/etc/plant.toml", "file:///etc/plant.toml"),
    ],
)
def test_a_scheme_that_is_not_known_comes_before_anything_else(url: str, said: str) -> None:
    assert said in refusal(url)


# --- servers


@dataclass
class Site:
    """A web server that answers by path, and what it was asked."""

    url: str
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def serve(context: ssl.SSLContext | None) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.asked.append((self.path, dict(self.headers)))
            status, headers, body = site.answers.get(path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    site = Site(f"{scheme}://localhost:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return authority


@pytest.fixture
def https(authority: trustme.CA) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    yield from serve(context)


@pytest.fixture
def http() -> Iterator[Site]:
    yield from serve(None)


MINIMAL = b'url = "mqtt://h"'
_ACCEPTED = b"HTTP/1.1 200 OK\r\n"


def test_a_document_is_read_from_a_server(https: Site) -> None:
    https.answers["/x.toml"] = (200, {}, MINIMAL)
    https.answers["/several"] = (200, {"Content-Type": "application/yaml"}, b"url: mqtt://y")
    https.answers["/lies.toml"] = (200, {"Content-Type": "application/json"}, MINIMAL)
    assert config_from_url(f"{https.url}/x.toml?token={CANARY}") == MqttConfig("h")
    assert https.asked[-1][0] == f"/x.toml?token={CANARY}"
    assert config_from_url(f"{https.url}/several") == MqttConfig("y")
    assert config_from_url(f"{https.url}/lies.toml") == MqttConfig("h")


def test_http_is_read_only_when_it_is_allowed(http: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    http.answers["/x.toml"] = (200, {}, MINIMAL)
    url = f"{http.url}/x.toml"
    refusal(url)
    assert config_from_url(url, allow_http=True) == MqttConfig("h")
    monkeypatch.setenv("SPA_DAT_ALLOW_HTTP", "true")
    assert config_from_url(url) == MqttConfig("h")
    for not_a_flag in ("false", 1, None):
        assert "give True or False" in refusal(url, allow_http=not_a_flag)
    monkeypatch.setenv("SPA_DAT_ALLOW_HTTP", "perhaps")
    assert "SPA_DAT_ALLOW_HTTP='perhaps': give true or false" in refusal(url)


def test_user_and_password_of_the_url_go_to_its_server_alone(https: Site, http: Site) -> None:
    elsewhere = https.url.replace("localhost", "127.0.0.1")
    https.answers["/a.toml"] = (302, {"Location": "/b.toml"}, b"")
    https.answers["/b.toml"] = (200, {}, MINIMAL)
    https.answers["/c.toml"] = (302, {"Location": f"{elsewhere}/b.toml"}, b"")
    login = https.url.replace("//", f"//ann:{CANARY}%40@")
    assert config_from_url(f"{login}/a.toml") == MqttConfig("h")
    expected = base64.b64encode(f"ann:{CANARY}@".encode()).decode()
    headers = [headers.get("Authorization") for _, headers in https.asked]
    assert headers == [f"Basic {expected}"] * 2
    # The certificate is not for that name, so nothing is asked there.
    assert "certificate" in refusal(f"{login}/c.toml")
    assert len(https.asked) == 3
    http.answers["/d.toml"] = (
        302,
        {"Location": f"{http.url}/b.toml".replace("localhost", "127.0.0.1")},
        b"",
    )
    http.answers["/b.toml"] = (200, {}, MINIMAL)
    login = http.url.replace("//", "//ann:x@")
    assert config_from_url(f"{login}/d.toml", allow_http=True) == MqttConfig("h")
    assert ["Authorization" in headers for _, headers in http.asked] == [True, False]


def test_a_redirect_leads_to_no_other_scheme(https: Site, http: Site) -> None:
    http.answers["/x.toml"] = (200, {}, MINIMAL)
    https.answers["/x.toml"] = (200, {}, MINIMAL)
    for target, scheme in ((f"{http.url}/x.toml", "http"), ("file:///etc/passwd", "file")):
        https.answers["/away.toml"] = (302, {"Location": f"{target}?{CANARY}"}, b"")
        url = f"{https.url}/away.toml"
        assert f"redirects from https:// to {scheme}://" in refusal(url, allow_http=True)
    http.answers["/away.toml"] = (301, {"Location": f"{https.url}/x.toml"}, b"")
    away = f"{http.url}/away.toml"
    assert "redirects from http:// to https://" in refusal(away, allow_http=True)
    assert https.asked == [("/away.toml", headers) for _, headers in https.asked]
    assert [path for path, _ in http.asked] == ["/away.toml"]


def test_redirects_have_an_end(https: Site) -> None:
    https.answers["/circle.toml"] = (302, {"Location": "/circle.toml"}, b"")
    https.answers["/nowhere.toml"] = (302, {}, b"")
    assert f"more than {MOST_REDIRECTS} times" in refusal(f"{https.url}/circle.toml")
    assert len(https.asked) == MOST_REDIRECTS + 1
    refusal(f"{https.url}/nowhere.toml")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that the environment names; what it was asked for. It lets nobody in but ann."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            if self.headers.get("Proxy-Authorization") is None:
                self.send_error(407, CANARY)
                return
            host, _, port = self.path.partition(":")
            with socket.create_connection((host, int(port))) as beyond:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=pump, args=(beyond, self.connection))
                back.start()
                pump(self.connection, beyond)
                back.join()

        def log_message(self, *_: object) -> None:
            pass

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", f"http://localhost:{server.server_address[1]}")
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_proxy_of_the_environment_is_asked(
    https: Site, proxy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    https.answers["/x.toml"] = (200, {}, MINIMAL)
    url = f"{https.url}/x.toml"
    assert "the proxy that the environment names answers with status 407" in refusal(url)
    assert https.asked == []
    inside = os.environ["https_proxy"].replace("//", f"//ann:{CANARY}@")
    monkeypatch.setenv("https_proxy", inside)
    assert config_from_url(url) == MqttConfig("h")
    assert proxy == [https.url.removeprefix("https://")] * 2


def test_what_comes_with_a_redirect_is_not_read(https: Site) -> None:
    https.answers["/x.toml"] = (200, {}, MINIMAL)
    headers = {"Location": "/x.toml", "Content-Length": "1000000000000"}
    https.answers["/moved.toml"] = (302, headers, b"x")
    assert config_from_url(f"{https.url}/moved.toml") == MqttConfig("h")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {}, b""), "status 404"),
        ((401, {}, b""), "check the user"),
        ((500, {}, b""), "status 500"),
        ((204, {}, b""), "status 204"),
        ((200, {}, b"x" * (LARGEST + 1)), "larger than"),
        ((200, {"Content-Length": "10"}, b"x"), "the last 9 bytes are missing"),
        ((200, {"Location": "x" * 70_000}, b"x"), "is not the answer"),
    ],
)
def test_an_answer_that_is_no_document_says_why(
    https: Site, answer: tuple[int, dict[str, str], bytes], said: str
) -> None:
    https.answers["/x.toml"] = answer
    url = f"{https.url}/x.toml"
    refused = refusal(url.replace("//", f"//ann:{CANARY}@") + f"?token={CANARY}")
    assert said in refused
    assert url in refused


def test_a_file_of_authorities_that_is_not_there_is_named(
    https: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    said = refusal(f"{https.url}/x.toml")
    assert "SSL_CERT_FILE='/nowhere/ca.pem' names no file" in said


def test_a_server_that_nobody_vouches_for_is_refused(
    https: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    refused = refusal(f"{https.url}/x.toml")
    assert "cannot be trusted" in refused
    assert "SSL_CERT_FILE" in refused
    assert https.asked == []


def test_a_server_that_is_not_there_is_named(http: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "refused" in refusal(f"https://127.0.0.1:{port}/x.toml")
    assert "TLS failed" in refusal(http.url.replace("http", "https"))


@pytest.mark.parametrize("part", ["head", "body", "handshake"])
def test_a_server_that_is_slow_is_given_up(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Each byte comes in time, but the document does not; its thread ends, too."""
    monkeypatch.setattr(_effective_config, "_LONGEST_READING", 0.2)
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                # A record of TLS that is never complete.
                beginning = b"\x16\x03\x03\x40\x00" if part == "handshake" else _ACCEPTED
                connection.sendall(beginning + (b"\r\n" if part == "body" else b""))
                while not stop.wait(0.01):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        dripping = threading.Thread(target=drip)
        dripping.start()
        scheme = "https" if part == "handshake" else "http"
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x.toml"
        assert "took longer than 0.2 s" in refusal(url, allow_http=True)
        # On a busy machine the time may be over before there was a connection at all.
        socket.create_connection(server.getsockname()).close()
        # It notices that the connection is shut.
        dripping.join(SECONDS)
        assert not dripping.is_alive()
        stop.set()
    for thread in threading.enumerate():
        if thread.name == "spa_dat document":
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert threading.active_count() <= before
