"""The JSON Schema of documents says what reading them says."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from spa_dat.errors import ConfigurationError
from spa_dat.transports import KafkaConfig, MemoryConfig, MqttConfig, SocketProviderFactory
from spa_dat.transports._url_options import option_types
from spa_dat.transports.documents._schema import SCHEMA_FILE, document_schema, schema_text

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
URLS: Mapping[type[Any], str] = {
    KafkaConfig: "kafkas://h",
    MemoryConfig: "memory://",
    MqttConfig: "mqtts://h",
}
IN_CODE_ALONE = {"password_function"}
ALL = [
    (kind, option) for kind in URLS for option in option_types(kind) if option not in IN_CODE_ALONE
]


def accepts(document: object) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(document))


def is_read(document: object, folder: Path) -> bool:
    path = folder / "x.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        SocketProviderFactory.config_from_url(path.as_uri())
    except ConfigurationError:
        return False
    return True


def test_the_schema_that_is_shipped_is_that_of_the_options() -> None:
    remedy = "run python -m spa_dat.transports.documents._schema"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), remedy
    jsonschema.Draft202012Validator.check_schema(document_schema())


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_every_option_is_in_the_schema_with_what_it_means(kind: type[Any], option: str) -> None:
    entry = SCHEMA["$defs"][kind.__name__]["properties"][option]
    assert len(entry["description"]) > 10
    default = getattr(kind, option, None)
    if isinstance(default, (str, int, float)):
        assert entry["default"] == default


def values(kind: type[Any], option: str) -> list[object]:
    """Values that may be right or wrong: those at the limits, beside them, and of other types."""
    found: list[object] = [None, True, "text", "", 5, 5.5, -1, {}, [], [1], {"a": 1}]
    lowest, highest = kind.limits.get(option, (0, 0))
    found += [lowest, highest, highest + 1]
    choices = getattr(kind, "choices", {}).get(option, ())
    if option == "offset_reset":
        choices = ("earliest", "latest", "1h", "2026-11-27T10:00:00Z")
    return [*found, *choices, {"a": {"name": "b"}}, {"a": {"name": "b", "x": 1}}, {"a": {}}]


def wrong_for_another_reason(option: str, value: object, kind: type[Any]) -> bool:
    """Return whether the schema does not say it: a text of some form, or two options at once."""
    forms = {"host", "servers", "name", "prefix", "password_env", "password_file"}
    forms |= {"offset_reset", "websocket_path"}
    together = {"tls_key", "tls_key_password", "username", "password", "tls", "sasl_mechanism"}
    together.add("unix_socket")
    times = {"backoff_min", "backoff_max", "heartbeat_interval", "session_timeout"}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (
        (option in forms | together and isinstance(value, str))
        or (option in times and is_number)
        or (option.startswith("tls_") and value == "")
        or (kind is KafkaConfig and option == "tls")
        or option in ("password_env", "password_file")
    )


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_the_schema_refuses_what_reading_refuses(
    tmp_path: Path, kind: type[Any], option: str
) -> None:
    base: dict[str, object] = {"url": URLS[kind]}
    if option in ("host", "servers"):
        base["url"] = URLS[kind].removesuffix("h")
    if option == "tls":
        base["url"] = URLS[kind].replace("s:", ":")
    assert accepts(base)
    read = refused = 0
    for value in values(kind, option):
        document = {**base, option: value}
        if is_read(document, tmp_path):
            read += 1
            assert accepts(document), value
        elif not wrong_for_another_reason(option, value, kind):
            refused += 1
            assert not accepts(document), value
    assert read or option in ("password_env", "password_file")
    assert refused or wrong_for_another_reason(option, None, kind)


@pytest.mark.parametrize(
    ("document", "right"),
    [
        ({"url": "mqtt://h"}, True),
        ({"url": "wss://h/mqtt", "tls_ca": "ca.pem"}, True),
        ({"url": "mqtt+unix:///run/x.sock", "qos": 0}, True),
        ({"url": "unix:///run/x.sock"}, False),
        ({"$schema": "x", "url": "mqtt://h"}, True),
        ({"providers": {"a": {"url": "mqtt://h", "qos": 0}, "b-c": {"url": "memory://"}}}, True),
        ({"$schema": "x", "providers": {"a": {"url": "mqtt://h"}}}, True),
        ({}, False),
        ([], False),
        ({"url": 5}, False),
        ({"url": "amqp://h"}, False),
        ({"url": "h"}, False),
        ({"url": "mqtt://h", "partitions": 3}, False),
        ({"url": "mqtt://h", "keepalvie": 3}, False),
        ({"providers": {}}, False),
        ({"providers": []}, False),
        ({"providers": {"a": {}}}, False),
        ({"providers": {"a": {"url": "mqtt://h", "qos": 7}}}, False),
        ({"providers": {"a b": {"url": "mqtt://h"}}}, False),
        ({"providers": {"a": {"url": "mqtt://h"}}, "qos": 0}, False),
        ({"providers": {"a": {"url": "mqtt://h"}}, "url": "mqtt://h"}, False),
    ],
)
def test_schema_and_reading_agree_on_whole_documents(
    tmp_path: Path, document: Any, right: bool
) -> None:
    assert accepts(document) is right
    if not (right and len(document.get("providers", ())) > 1):
        assert is_read(document, tmp_path) is right


def test_the_example_is_as_the_schema_wants_it() -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "plant.toml"
    assert accepts(tomllib.loads(example.read_text(encoding="utf-8")))
