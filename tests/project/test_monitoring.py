"""The dashboard and alert rules of the example deployment name metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from spa_dat.runtime.metrics._catalogue import CATALOGUE, OWN, Metric, label_of
from spa_dat.runtime.metrics._measurements import FailureKind

pytestmark = pytest.mark.repository

FOLDER = Path(__file__).parent.parent.parent / "examples" / "deployment" / "monitoring"
# What Prometheus adds, and what its library knows of a process.
OF_PROMETHEUS = {"instance", "job"}
OF_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
WORDS = {
    *("and", "by", "on", "group_left"),
    *("deriv", "histogram_quantile", "increase", "label_values", "max", "min", "rate", "sum"),
}

BY_NAME = {
    metric.prometheus_name + suffix: metric
    for metric in CATALOGUE
    for suffix in SUFFIXES[metric.kind]
}


def labels_of(name: str, metric: Metric) -> set[str]:
    own = {label_of(attribute) for attribute in (*OWN, *metric.attributes)}
    return own | OF_PROMETHEUS | ({"le"} if name.endswith("_bucket") else set())


def dashboard() -> Any:
    return json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def texts(node: Any, *keys: str) -> Iterator[str]:
    """Return the texts at these keys, wherever they are."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys and isinstance(value, str):
                yield value
            yield from texts(value, *keys)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value, *keys)


def expressions() -> list[str]:
    board = dashboard()
    variables = [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    return [*texts(board["panels"], "expr"), *variables, *(rule["expr"] for rule in rules())]


def problems_of(expression: str) -> list[str]:
    """Return what an expression names that does not exist."""
    found: list[str] = []
    used: set[str] = set()
    labels: set[str] = set()
    for opening, closing in ("()", "{}", "[]"):
        if expression.count(opening) != expression.count(closing):
            found.append(f"{opening} without {closing}")
    left = expression
    for name, selectors in re.findall(r"(\w+)\{(.*?)\}", expression):
        used.add(name)
        for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"(.*?)"', selectors):
            if name in BY_NAME and label not in labels_of(name, BY_NAME[name]):
                found.append(f"{name} has no label {label}")
            if label == "spa_dat_outcome" and set(value.split("|")) - {*get_args(FailureKind)}:
                found.append(f"there is no outcome {value}")
        left = left.replace(f"{{{selectors}}}", "")
    left = re.sub(r"\[.*?\]", "", left)
    for group in re.findall(r"(?:by|on|group_left)\s*\((.*?)\)", left):
        labels.update(label.strip() for label in group.split(","))
    left = re.sub(r"(?:by|on|group_left)\s*\(.*?\)", "", left)
    if query := re.match(r"label_values\((\w+), (\w+)\)", left):
        labels.add(query[2])
        left = query[1]
    used.update(word for word in re.findall(r"[a-z_]\w*", left) if word not in WORDS)
    known = [labels_of(name, BY_NAME[name]) for name in used if name in BY_NAME]
    found += [f"there is no metric {name}" for name in used - BY_NAME.keys() - OF_PROCESS]
    found += [f"nothing here has label {label}" for label in labels - set().union(*known)]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_what_is_asked_for_exists(expression: str) -> None:
    assert problems_of(expression) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "spa_dat_mailbox",
        "rate(spa_dat_events[5m])",
        'spa_dat_outbox_messages{spa_dat_actor="a"}',
        'rate(spa_dat_messages_failed_total{spa_dat_outcome="lost"}[5m])',
        "sum by (topic) (spa_dat_mailbox_messages)",
        "sum by (le) (spa_dat_mailbox_messages)",
        "label_values(spa_dat_mailbox_messages, topic)",
        "sum(spa_dat_mailbox_messages",
    ],
)
def test_the_look_at_expressions_finds_what_is_wrong(wrong: str) -> None:
    assert problems_of(wrong)


def test_what_is_shown_of_labels_is_there() -> None:
    for target in [t for panel in dashboard()["panels"] for t in panel.get("targets", ())]:
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label in target["expr"], target
    for rule in rules():
        for label in re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())):
            kept = re.findall(r"by \((.*?)\)", rule["expr"])
            names = re.findall(r"[a-z_]\w*", rule["expr"])
            metrics = [BY_NAME[name] for name in names if name in BY_NAME]
            assert all(label in group for group in kept), rule["alert"]
            assert all(label in labels_of("", metric) for metric in metrics), rule["alert"]


def test_the_files_fit_together() -> None:
    board = dashboard()
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    names = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    asked = {
        name
        for text in texts(board, "expr", "query", "uid")
        for name in re.findall(r"\$\{?(\w+)", text)
    }
    assert asked == names
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    scrape = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    assert all((FOLDER / file).exists() for file in scrape["rule_files"])
