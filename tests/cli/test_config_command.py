"""``spa-dat config``: the effective options, and where each of them comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from spa_dat.cli._main import main

CANARY = "hunter2-canary"
DOCUMENT = f"""
[providers.plant]
url = "mqtts://ann:{CANARY}@h"
keepalive = 5
tls_cert = "c.pem"
tls_key_password = "{CANARY}"

[providers.office]
url = "kafka://k"
[providers.office.topics]
"fleet/{{truck}}" = {{ name = "positions", key = "truck" }}
"""

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("SPA_DAT_"):
            monkeypatch.delenv(variable)


@pytest.fixture
def url(tmp_path: Path) -> str:
    path = tmp_path / "plant.toml"
    path.write_text(DOCUMENT, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(("config", *arguments))
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        return code, out, err

    return run


def options(out: str) -> dict[str, tuple[Any, str]]:
    """What was printed as JSON: value and origin by option."""
    shown = json.loads(out)["options"]
    return {option: (entry["value"], entry["from"]) for option, entry in shown.items()}


def test_each_option_has_its_value_and_its_origin(
    said: Said, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPA_DAT_PLANT_WINDOW", "7")
    code, out, err = said(url, "--name", "plant", "--json")
    assert (code, err) == (0, "")
    origin = f"{url}#plant"
    found = options(out)
    assert json.loads(out)["provider"] == "plant"
    assert json.loads(out)["address"] == "mqtts://h:8883"
    assert found["host"] == ("h", origin)
    assert found["keepalive"] == (5, origin)
    assert found["password"] == ("***", origin)
    assert found["tls_key_password"] == ("***", origin)
    assert found["window"] == (7, "the environment variable SPA_DAT_PLANT_WINDOW")
    assert found["qos"] == (1, "default")
    assert found["port"] == (None, "default")
    assert "renewal" not in found


def test_the_same_is_shown_as_a_table(said: Said, url: str) -> None:
    code, out, _ = said(f"{url}#plant")
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert code == 0
    assert out.splitlines()[0] == "provider plant: mqtts://h:8883"
    assert ["keepalive", "5", f"{url}#plant"] in lines
    assert ["port", "-", "default"] in lines
    assert ["password", "***", f"{url}#plant"] in lines


def test_a_password_says_how_it_was_given(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", CANARY)
    _, out, _ = said("mqtt://ann@h?password_env=A_PASSWORD", "--json")
    assert options(out)["password"] == ("***", "password_env")
    assert options(out)["password_env"] == ("A_PASSWORD", "the URL mqtt://h")


def test_tables_are_shown_as_they_were_given(said: Said, url: str) -> None:
    _, out, _ = said(f"{url}#office", "--json")
    topics = {"fleet/{truck}": {"name": "positions", "key": "truck"}}
    assert options(out)["topics"] == (topics, f"{url}#office")
    _, out, _ = said(f"{url}#office")
    assert json.dumps(topics) in out


def test_a_last_will_is_shown_with_all_that_it_has(said: Said) -> None:
    code, out, _ = said('mqtt://h?will={"topic":"plant/status","payload":"gone"}', "--json")
    shown = options(out)["will"][0]
    assert (code, shown["topic"], shown["payload"], shown["birth"]) == (
        0,
        "plant/status",
        "gone",
        None,
    )
    code, out, _ = said('mqtt://h?will={"topic":"plant/status"}')
    assert code == 0
    assert '"topic": "plant/status"' in out


def test_the_url_may_be_in_the_environment(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_DAT_URL", "memory://there")
    assert said()[1].startswith("memory://there\n")
    monkeypatch.delenv("SPA_DAT_URL")
    code, _, err = said()
    assert code == 2
    assert "SPA_DAT_URL" in err


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        ("SPA_DAT_PLANT_KEEPALVIE", "did you mean SPA_DAT_PLANT_KEEPALIVE?"),
        ("SPA_DAT_QOS", "provider 'plant' has SPA_DAT_PLANT_QOS"),
        ("SPA_DAT_PARTITIONS", "provider 'plant' has SPA_DAT_PLANT_PARTITIONS"),
        ("SPA_DAT_KAFKA_VERSION", None),
        ("SPA_DAT_INSTANCE", None),
    ],
)
def test_variables_that_are_not_used_are_named(
    said: Said, url: str, monkeypatch: pytest.MonkeyPatch, variable: str, line: str | None
) -> None:
    monkeypatch.setenv(variable, CANARY)
    code, _, err = said(f"{url}#plant")
    assert code == 0
    assert err == ("" if line is None else f"spa-dat: {variable} is not used: {line}\n")


def test_variables_that_something_comes_before_are_named(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPA_DAT_QOS", "0")
    monkeypatch.setenv("SPA_DAT_PARTITIONS", "4")
    monkeypatch.setenv("SPA_DAT_WINDOW", "")
    _, _, err = said("mqtt://h?qos=1")
    of_another_kind, overruled = err.splitlines()
    assert of_another_kind.endswith("SPA_DAT_PARTITIONS is not used: MqttConfig has no such option")
    assert overruled.startswith("spa-dat: SPA_DAT_QOS is not used: something that takes precedence")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("amqp://h",), "scheme 'amqp'"),
        (("http://h/x",), "scheme 'http' is not allowed"),
        (("mqtt://h?qos=7",), "option qos=7"),
        ((f"mqtt://ann%01:{CANARY}@h",), "control character"),
        ((f"https://ann:{CANARY}@127.0.0.1:1/x?token={CANARY}",), "127.0.0.1:1/x cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    said: Said, arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = said(*arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_http_may_be_allowed(said: Said) -> None:
    code, _, err = said("http://127.0.0.1:1/x", "--allow-http")
    assert code == 2
    assert "http://127.0.0.1:1/x cannot be read" in err


def test_the_schema_is_printed(said: Said) -> None:
    code, out, _ = said("--schema")
    assert code == 0
    jsonschema.validate({"url": "mqtt://h"}, json.loads(out))
