"""Log records as JSON: one line each, whatever is in them."""

from __future__ import annotations

import datetime
import json
import logging
import logging.config
import sys
from enum import IntEnum
from typing import Any

import pytest

from spa_dat import JsonFormatter


class Broken:
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__

    def __hash__(self) -> int:
        return 1


class Level(IntEnum):
    HIGH = 3


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def line(message: object = "hello", *args: object, **extra: object) -> str:
    logger = logging.getLogger("shop")
    record = logger.makeRecord("shop", logging.INFO, "", 0, message, args, None, extra=extra)
    return JsonFormatter().format(record)


def test_a_line_has_time_with_zone_level_logger_message_and_what_is_given() -> None:
    found = json.loads(line("order %d", 5, spa_dat_topic="a/b", spa_dat_own=True, sum=1.5, ok=None))
    time = datetime.datetime.fromisoformat(found.pop("time"))
    assert time.utcoffset() == datetime.timedelta(0)
    expected = {"level": "INFO", "logger": "shop", "message": "order 5", "topic": "a/b"}
    assert found == {**expected, "sum": 1.5, "ok": None}


def test_names_that_are_taken_are_kept_apart() -> None:
    found = json.loads(line(spa_dat_actor="work", actor="Connery", time="noon", exception="none"))
    assert (found["actor"], found["extra.actor"], found["extra.time"]) == (
        "work",
        "Connery",
        "noon",
    )
    assert found["extra.exception"] == "none"
    assert "exception" not in found


def test_texts_cannot_begin_another_line_or_control_a_terminal() -> None:
    hostile = 'a\r\n{"level": "x"}\x1b[2J\u2028\u202e\ud800\x9b\x00"'
    text = line(hostile, spa_dat_topic=hostile, **{hostile: hostile})
    assert text.isascii()
    assert text.isprintable()
    found = json.loads(text)
    assert found["message"] == found["topic"] == found[hostile] == hostile


_LONG_NAME = "y" * 10_000


@pytest.mark.parametrize(
    "value",
    [
        Broken(),
        {Broken(): Broken(), "x": {1: float("nan"), (2,): [Broken()]}},
        [float("inf"), -float("inf")],
        10**10_000,
        {object(), frozenset()},
        b"\xff" * 1_000_000,
        "x" * 10_000_000,
        ["\ud800" * 1_000] * 1_000_000,
        {str(number): {_LONG_NAME: number} for number in range(100_000)},
        json,
        Level.HIGH,
        BrokenError(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_extra_holds_the_line_is_json_and_short(value: object) -> None:
    text = line(value=value, other=7)
    assert len(text) < 65_536
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert found["message"] == "hello"


def test_what_refers_to_itself_ends() -> None:
    circle: dict[str, Any] = {}
    circle["again"] = [circle, circle, circle, circle] * 20
    assert len(line(circle=circle)) < 65_536


def test_mistakes_in_the_call_are_written_too() -> None:
    assert "%d of %d" in json.loads(line("%d of %d", "x"))["message"]
    assert "its arguments do not fit" in json.loads(line(Broken()))["message"]
    record = logging.LogRecord("shop", logging.INFO, "", 0, "hello", (), None)
    record.created = float("inf")
    assert "hello" in json.loads(JsonFormatter().format(record))["message"]


@pytest.mark.parametrize("error", [ValueError("x" * 10_000_000), BrokenError()])
def test_the_exception_is_a_text_with_an_end(error: Exception) -> None:
    try:
        raise error
    except Exception:
        record = logging.LogRecord("shop", 40, "", 0, "\u00fc" * 100_000, (), sys.exc_info())
        record.__dict__["value"] = "v" * 100_000
    text = JsonFormatter().format(record)
    assert len(text) < 65_536
    found = json.loads(text)
    assert type(error).__name__ in found["exception"]
    assert found["message"].startswith("\u00fc")
    assert found["message"].endswith("...")


def test_it_can_be_configured_with_a_dictionary() -> None:
    config = {"()": "spa_dat.JsonFormatter"}
    made = logging.config.DictConfigurator({"version": 1}).configure_formatter(config)
    assert isinstance(made, JsonFormatter)
    same = {"class": "spa_dat.JsonFormatter", "format": "%(message)s"}
    made = logging.config.DictConfigurator({"version": 1}).configure_formatter(same)
    assert isinstance(made, JsonFormatter)
