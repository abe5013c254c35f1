"""The tables of the documentation have what the code has, with its defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest

from conformance.kafka_harness import KafkaHarness
from conformance.memory_harness import MemoryHarness
from conformance.mqtt_harness import MqttHarness
from spa_dat import (
    Context,
    DistributedApplication,
    KafkaConfig,
    MemoryConfig,
    Message,
    MqttConfig,
    RetryPolicy,
    errors,
)
from spa_dat.cli._commands import commands
from spa_dat.errors import RemoteError
from spa_dat.runtime import PublishOptions
from spa_dat.runtime.metrics._catalogue import ATTRIBUTES, CATALOGUE, OWN
from spa_dat.runtime.metrics._measurements import FailureKind
from spa_dat.runtime.options._actor_options import ActorOptions
from spa_dat.testing.conformance import TransportHarness

pytestmark = pytest.mark.repository

ROOT = Path(__file__).parent.parent.parent
OPTIONS = "| option | meaning | default |"
# What only the package itself gives, what only producers have, and what is not given by name.
UNLISTED = {"renewal", "every", "default_socket_provider"}


def rows_below(page: str, heading: str, number: int = 0) -> list[list[str]]:
    """Return the cells of a table.

    Args:
        page: its file.
        heading: its first line.
        number: which of several such tables on the page.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    table = text.split(f"\n{heading}\n")[number + 1].partition("\n\n")[0]
    return [row.strip("| ").split(" | ") for row in table.splitlines()[1:]]


def defaults_of(function: Callable[..., object]) -> dict[str, object]:
    """Return the options that a function or class takes by name, with their defaults."""
    found: dict[str, object] = {}
    factories = {
        option.name: option.default_factory
        for option in (dataclasses.fields(function) if dataclasses.is_dataclass(function) else ())
        if option.default_factory is not dataclasses.MISSING
    }
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty and name not in UNLISTED:
            found[name] = factories[name]() if name in factories else parameter.default
    return found


def options_shown(page: str, heading: str, number: int) -> dict[str, str]:
    """Return the options in a table, with the defaults that it shows; see `rows_below`."""
    shown: dict[str, str] = {}
    for row in rows_below(page, heading, number):
        names = re.findall(r"\w+", row[0])
        values = row[-1].split(", ")
        several = len(values) == len(names)
        for index, name in enumerate(names):
            shown[name] = values[index] if several else row[-1]
    return shown


def is_shown_by(text: str, default: object) -> bool:
    """Return whether the text shows a default. What stands for None is said in words."""
    match default:
        case None | "":
            return True
        case bool():
            return text.startswith("yes" if default else "no")
        case int() | float():
            return text.split()[0] in (str(default), f"{default:g}")
        case str():
            return text == f"`{default}`"
        case _:
            return bool(text)


@pytest.mark.parametrize(
    ("page", "heading", "number", "takes"),
    [
        ("mqtt.md", OPTIONS, 0, MqttConfig),
        ("kafka.md", OPTIONS, 0, KafkaConfig),
        ("options.md", OPTIONS, 0, DistributedApplication),
        ("options.md", OPTIONS, 1, ActorOptions),
        ("options.md", OPTIONS, 2, MemoryConfig),
        ("guide.md", "| `RetryPolicy` | meaning | default |", 0, RetryPolicy),
    ],
    ids=["MQTT", "Kafka", "an application", "an actor", "memory", "retries"],
)
def test_tables_of_options_have_all_of_them_with_their_defaults(
    page: str, heading: str, number: int, takes: Callable[..., object]
) -> None:
    shown = options_shown(page, heading, number)
    defaults = defaults_of(takes)
    assert [name for name in defaults if name not in shown] == []
    wrong = {
        name: (shown[name], default)
        for name, default in defaults.items()
        if not is_shown_by(shown[name], default)
    }
    assert wrong == {}


def test_the_table_of_counters_has_all_that_the_runtime_counts() -> None:
    counted: set[str] = set()
    for package in ("actors", "runtime", "transports"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            counted.update(re.findall(r"stats\[\s*\"([a-z_.]+)\"\s*\] \+=", text))
    rows = rows_below("options.md", "| counter | what is counted |")
    shown = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(shown) == sorted(counted)


def test_the_table_of_metrics_has_all_of_them_as_they_are() -> None:
    heading = "| metric | kind | unit | at Prometheus | attributes | what it says |"
    shown = [[cell.strip() for cell in row] for row in rows_below("metrics.md", heading)]
    metrics = [
        [
            f"`{metric.name}`",
            metric.kind,
            f"`{metric.unit}`" if metric.unit else "",
            f"`{metric.prometheus_name}{'_total' if metric.kind == 'counter' else ''}`",
            ", ".join(f"`{name}`" for name in metric.attributes),
            metric.text,
        ]
        for metric in CATALOGUE
    ]
    assert shown == metrics
    attributes = [row[0].strip("`") for row in rows_below("metrics.md", "| attribute | value |")]
    assert sorted([*OWN, *attributes]) == sorted(ATTRIBUTES)
    outcomes = rows_below("metrics.md", "| outcome | what became of the message |")
    assert [row[0].strip("`") for row in outcomes] == list(get_args(FailureKind))


@pytest.mark.parametrize("cls", [Message, Context])
def test_the_guide_names_what_a_handler_gets(cls: type) -> None:
    page = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    text = page.partition(f"\nA `{cls.__name__}` has ")[2].partition("\n\n")[0]
    attributes = [name for name in dir(cls) if not name.startswith("_") and name != "of"]
    assert [name for name in attributes if not re.search(rf"`{name}\b", text)] == []


def test_the_page_on_errors_has_all_of_them_below_the_ones_they_derive_from() -> None:
    shown: dict[str, str] = {}
    parent = ""
    for row in rows_below("errors.md", "| error | meaning | what to do |"):
        bold, name = re.findall(r"^(\*\*)?`(\w+)`", row[0])[0]
        parent = name if bold else parent
        shown[name] = "SpaDatError" if bold else parent
    classes = {name: getattr(errors, name) for name in errors.__all__ if name != "SpaDatError"}
    assert shown == {name: kind.__mro__[1].__name__ for name, kind in classes.items()}


def test_the_codes_of_remote_errors_are_those_that_the_class_names() -> None:
    shown = [row[0].strip("`") for row in rows_below("errors.md", "| code | meaning |")]
    named = re.findall(r"``([a-z-]+)``", inspect.getdoc(RemoteError) or "")
    assert sorted(shown) == sorted(named)


@pytest.mark.parametrize(
    ("column", "harness"), [(1, MemoryHarness), (2, MqttHarness), (3, KafkaHarness)]
)
def test_the_ways_in_which_transports_differ_are_those_of_their_harnesses(
    column: int, harness: type[TransportHarness]
) -> None:
    rows = rows_below("transports.md", "| attribute | memory | MQTT | Kafka | otherwise |")
    shown = {re.findall(r"`(\w+)`", row[0])[0]: row[column].strip("`") for row in rows}
    # What every test has.
    attributes = inspect.get_annotations(TransportHarness).keys() - {"deadline"}
    assert shown.keys() == attributes

    def told(value: object) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, Mapping):
            return ", ".join(f"{name}={option}" for name, option in value.items()) or "none"
        return f"{value:g}"

    assert shown == {name: told(getattr(harness, name)) for name in attributes}


def test_the_way_of_a_message_has_the_defaults() -> None:
    page = (ROOT / "docs" / "way-of-a-message.md").read_text(encoding="utf-8")
    mqtt, kafka = defaults_of(MqttConfig), defaults_of(KafkaConfig)
    on_mqtt, on_kafka = page.partition("\n## On MQTT\n")[2].split("\n## On Kafka\n")
    assert mqtt["session_expiry"] == 7 * 24 * 3600
    assert "`session_expiry` (a week)" in on_mqtt
    assert f"`window` ({mqtt['window']:,})" in on_mqtt
    for name, unit in {
        "window": "",
        "commit_interval": " s",
        "commit_records": "",
        "session_timeout": " s",
    }.items():
        assert f"`{name}` ({kafka[name]:,.0f}{unit})" in on_kafka, name


def test_what_a_publish_may_be_given_is_in_the_guide() -> None:
    rows = rows_below("guide.md", "| option of `publish` and `post` | meaning |")
    shown = [row[0].strip("`") for row in rows]
    assert sorted(shown) == sorted([*PublishOptions.__annotations__, "timeout"])


def test_the_options_of_the_command_are_on_its_page() -> None:
    shown = [row[0].strip("`").split()[0] for row in rows_below("running.md", "| option | |")]
    options = [name for option in commands.commands["run"].params for name in option.opts]
    assert shown == [name for name in options if name.startswith("--")]
