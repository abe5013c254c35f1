"""Limits and times on the pages of the documentation are those of the code."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.repository

ROOT = Path(__file__).parent.parent.parent
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Figure(float):
    """A constant of the code, as pages show it: ``{0}``, ``{0:word}``, ``{0:KiB}``, ``{0:min}``."""

    def __format__(self, how: str) -> str:
        if how == "word":
            number = int(self)
            return {20: "twenty", 30: "thirty"}.get(number) or WORDS[number]
        value = self / {"": 1, "KiB": 1024, "MiB": 1024**2, "min": 60, "%": 0.01}[how]
        return f"{value:,.0f}" if value == int(value) else f"{value:g}"


FIGURES: list[tuple[str, str, list[str]]] = [
    ("tracing.md", "links to up to {0} spans", ["runtime/tracing _MOST_LINKS"]),
    ("tracing.md", "Texts have at most {0} characters", ["runtime/tracing LONGEST_TEXT"]),
    ("guide.md", "{0:word} seconds at most: for a file", ["runtime/application _FOR_MIDDLEWARE"]),
    ("design.md", "the loop a turn after {0} messages", ["actors/_actor_cell BURST"]),
    ("design.md", "the loop a turn after {0} messages", ["transports/kafka/_reply_inbox _BURST"]),
    (
        "errors.md",
        "cut off after {0} characters of a text, {1} of a class name, {2} of a code",
        [
            "runtime/messaging LONGEST_TEXT",
            "src/spa_dat/_texts _LONGEST_NAME",
            "runtime LONGEST_CODE",
        ],
    ),
    (
        "errors.md",
        "more than {0} parts or causes or more than {1} notes",
        ["src/spa_dat _MOST_SHOWN", "src/spa_dat _MOST_NOTES"],
    ),
    (
        "errors.md",
        "if that is the larger part and takes more than {0:KiB} KiB",
        ["runtime/dead_letters _SMALL"],
    ),
    ("errors.md", "then all but {0} characters of each text", ["runtime/dead_letters _SHORT"]),
    ("errors.md", "The last form fits into {0} bytes", ["transports/mqtt _LEAST_FOR_LETTERS"]),
    ("errors.md", "{0} levels, filters 198", ["transports/mqtt _MOST_LEVELS"]),
    (
        "errors.md",
        "{0} characters, the prefix included",
        ["transports/kafka/_topic_names _LONGEST"],
    ),
    ("errors.md", "`max_payload` plus {0:KiB} KiB", ["transports/kafka ROOM_FOR_HEADERS"]),
    ("errors.md", "correlation data of a request | {0} bytes", ["runtime _LONGEST_CORRELATION"]),
    ("mqtt.md", "has more than {0} characters", ["runtime _LONGEST_ADDRESS"]),
    ("mqtt.md", "correlation data of more than {0} bytes", ["runtime _LONGEST_CORRELATION"]),
    ("mqtt.md", "takes at most {0:KiB} KiB", ["transports/mqtt/_redelivery _SMALL"]),
    ("mqtt.md", "more than {0:KiB} KiB of headers", ["transports/mqtt LARGEST_HEAD"]),
    ("mqtt.md", "is retried every {0} seconds", ["transports/mqtt _RETRY_REFUSED"]),
    ("mqtt.md", "ends {0:word} connections in a row", ["transports/mqtt MOST_ENDS"]),
    ("mqtt.md", "ends the connection {0:word} times, is given up", ["transports/mqtt MOST_ENDS"]),
    (
        "mqtt.md",
        "a message of more than {0:KiB} KiB that has left",
        ["transports/mqtt/protocol/_keepalive LARGE"],
    ),
    (
        "mqtt.md",
        "one more second for each {0:KiB} KiB, at most {1:word} periods",
        ["transports/mqtt _SLOWEST", "transports/mqtt _MOST_INTERVALS"],
    ),
    ("mqtt.md", "twice as long, up to {0} times", ["transports/mqtt _MOST_PATIENCE"]),
    ("mqtt.md", "After {0} s `problems` says so", ["transports/mqtt _LONG"]),
    (
        "mqtt.md",
        "refused after {0} s; after {1} s if the broker accepts other publishes",
        ["transports/mqtt _REPLIES_REFUSED_FOR", "transports/mqtt _ONLY_REPLIES_REFUSED_FOR"],
    ),
    (
        "mqtt.md",
        "at least {0:word} second, at most {1:word}",
        ["transports _LEAST_QUIET", "transports _MOST_QUIET"],
    ),
    (
        "mqtt.md",
        "A message against which {0:word} ends count",
        ["transports/_suspect_publishes _ENDS"],
    ),
    (
        "mqtt.md",
        "repeated until {0:word} cross-checks have held",
        ["transports _CHECKS_OF_SLOW_ENDS"],
    ),
    (
        "mqtt.md",
        "had not held a connection for {0:word} seconds before ends after {1:word} takeovers",
        ["transports/mqtt SETTLED", "transports/mqtt _PATIENCE_OF_A_NEWCOMER"],
    ),
    ("mqtt.md", "reconnects at once and ends after {0:word}", ["transports/mqtt _PATIENCE"]),
    (
        "mqtt.md",
        "A connection that holds for {0:word} seconds ends the fight",
        ["transports/mqtt _LASTING"],
    ),
    (
        "kafka.md",
        "a publish after {0:word} seconds",
        ["transports/kafka/producing/_producer _UNKNOWN_AFTER"],
    ),
    (
        "kafka.md",
        "at least half a second and at most {0:word}",
        ["transports/kafka COMMIT_TIMEOUT"],
    ),
    (
        "kafka.md",
        "retried after {0} s, 2 s and so on up to once a minute",
        ["transports/kafka _FIRST_PAUSE"],
    ),
    ("kafka.md", "no leader for more than {0} s", ["transports/kafka _WITHOUT_LEADER"]),
    (
        "kafka.md",
        "the topic no longer exists, or is not visible, for more than {0} s",
        ["transports/kafka _ABSENT_AFTER"],
    ),
    (
        "kafka.md",
        "after {0} s a WARNING names topic, partition and offset",
        ["transports/kafka _IN_TRANSACTION"],
    ),
    (
        "kafka.md",
        "after {0} s a WARNING names topic, partition and reason",
        ["transports/kafka _REFUSED_FOR"],
    ),
    ("kafka.md", "A reply is given up after {0} s", ["transports/kafka _REPLIES_REFUSED_FOR"]),
    ("kafka.md", "can, {0:word} times in a row", ["transports/kafka _MOVED"]),
    (
        "kafka.md",
        "a running consumer is unhealthy after {0} s",
        ["transports/kafka _MOST_LOOKS_IN_VAIN"],
    ),
    ("kafka.md", "up to {0:%} % of `rebalance_timeout`", ["transports/kafka _SHARE_FOR_RUNNING"]),
    (
        "guide.md",
        "in any case at most {0:MiB} MiB of them, and {1:MiB} MiB for all requests together",
        ["runtime/messaging _MOST_BYTES", "runtime/messaging _MOST_BYTES_TOGETHER"],
    ),
    ("guide.md", "it keeps at most {0} replies", ["runtime/messaging MOST_REPLIES"]),
    (
        "guide.md",
        "longer than {0} seconds logs what it is waiting for, then and every {1} seconds",
        ["runtime/application _FIRST", "runtime/application _NEXT"],
    ),
    ("guide.md", "and {0} seconds after `stop_timeout`", ["runtime/application _LONGEST_REST"]),
    ("guide.md", "resources get {0:word} seconds", ["runtime/options LEAST_FOR_RESOURCES"]),
    (
        "guide.md",
        "functions of `asyncio.to_thread` {0:word}",
        ["runtime/application _REST_FOR_THREADS"],
    ),
    ("guide.md", "There can be 1 to {0} lanes", ["runtime/options _MOST_LANES"]),
    ("guide.md", "at least {0:word} times the number of lanes", ["runtime _WINDOW_OF_A_LANE"]),
    (
        "guide.md",
        "more than {0:KiB} KiB with more than {1} different numbers",
        ["runtime/payloads _SMALL", "runtime/payloads _MOST_ALIKE"],
    ),
    ("options.md", "still hang | {0} |", ["runtime/handling _MOST_HUNG"]),
    (
        "options.md",
        "the first {0} within {1} seconds are written in full",
        ["src/spa_dat _IN_FULL", "src/spa_dat/_limited_log _SECONDS"],
    ),
    (
        "guide.md",
        "during the whole of a `timeout=` of {0} seconds",
        ["transports/_outbox _SILENCE"],
    ),
    (
        "processes.md",
        "Payloads of {0:KiB} KiB and more go through shared memory",
        ["runtime/processes LARGE"],
    ),
    (
        "running.md",
        "within its `stop_timeout` and {0} seconds is killed",
        ["src/spa_dat/cli/_child_processes _REST"],
    ),
]


@functools.cache
def constants_of(file: Path) -> dict[str, object]:
    """Return the constants of a module that are written as literals, by name."""
    found: dict[str, object] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for name, part in zip(names, parts, strict=False):
                if isinstance(name, ast.Name) and isinstance(part, ast.Constant):
                    found[name.id] = part.value
    return found


def value_of(where: str) -> Figure:
    """Return the value of a constant, given as its folder or module and its name."""
    place, name = where.split()
    path = ROOT / place
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    values = {constants[name] for file in files if name in (constants := constants_of(file))}
    assert len(values) == 1, f"{where}: {values or 'is not there'}"
    (value,) = values
    assert isinstance(value, int | float)
    return Figure(value)


@pytest.mark.parametrize(
    ("page", "text", "constants"), FIGURES, ids=[text for _, text, _ in FIGURES]
)
def test_a_figure_is_the_one_of_the_code(page: str, text: str, constants: list[str]) -> None:
    words = re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert text.format(*map(value_of, constants)) in words
