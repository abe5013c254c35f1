"""Log records as JSON: one line each, whatever is in them."""

from __future__ import annotations

import itertools
import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from ._logs import FIELD_PREFIX, OWN
from ._texts import quoted, showable

__all__ = ["JsonFormatter", "extra_of", "json_line"]

_STANDARD = frozenset(
    {
        *logging.LogRecord("", 0, "", 0, "", (), None).__dict__,
        "asctime",
        "message",
        "taskName",
        OWN,
    }
)
# What a line has besides what is given as `extra=`.
_NAMES = ("time", "level", "logger", "message", "exception", "stack")
_CUT = "..."
# Of bytes, of which a character may take 12. Longer lines become several on their way: 64 KiB
# is what pipes take.
_LONGEST_LINE = 60_000
# Characters of one text: the first of these with which the line is short enough.
_LONGEST_TEXTS = (16_000, 2_000, 250)
_LONGEST_VALUE = 2_000
_LONGEST_KEY = 100
_MOST_VALUES = 200
_MOST_ITEMS = 50
_DEEPEST = 4
_MOST_BITS = 64


class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON in ASCII, of at most 60 kB.

    The line has ``time`` (UTC), ``level``, ``logger`` and ``message``; ``application``,
    ``instance``, ``actor``, ``topic``, ``message_id`` and ``attempt`` where they are known; what is
    given as ``extra=``; ``exception`` and ``stack`` as texts. Long texts are cut off, of tracebacks
    the beginning. Nothing in a record makes it raise: values that JSON does not have are written as
    texts.

    Nothing needs to be given; formats and styles are ignored.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break."""
        for longest in _LONGEST_TEXTS:
            try:
                line = json.dumps(_values_of(record, longest))
            except Exception as error:  # noqa: BLE001 (the line is to be written, whatever it is)
                return _without_values(record, error)
            if len(line) <= _LONGEST_LINE:
                return line
        return _without_values(record, ValueError("it is too long"))


def json_line(level: str, logger: str, message: str, **fields: object) -> str:
    """Return a line for what did not come from a record, without a line break.

    Args:
        level: its name.
        logger: the name of the logger.
        message: the text.
        fields: what else is to be in it.
    """
    values = {"time": _iso(time.time()), "level": level, "logger": logger, "message": message}
    return json.dumps({**fields, **values})


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the attributes that a record has besides the usual ones, as JSON can carry them.

    Only some of very many, and only the beginnings of long texts.
    """
    return _Plain(_LONGEST_VALUE).attributes(record)


def _values_of(record: logging.LogRecord, longest: int) -> dict[str, object]:
    values: dict[str, object] = {
        "time": _iso(record.created),
        "level": _cut(str(record.levelname), _LONGEST_KEY),
        "logger": _cut(str(record.name), min(longest, _LONGEST_VALUE)),
        "message": _cut(_message_of(record), longest),
    }
    others: dict[str, object] = {}
    for name, value in _Plain(min(longest, _LONGEST_VALUE)).attributes(record).items():
        # Of the runtime's own names none can be taken by others.
        if name.startswith(FIELD_PREFIX):
            values[name.removeprefix(FIELD_PREFIX)] = value
        else:
            others[name] = value
    if longest == _LONGEST_TEXTS[-1]:
        others = {}
    for name, value in others.items():
        values[f"extra.{name}" if name in values or name in _NAMES else name] = value
    if (traceback := _traceback_of(record)) is not None:
        values["exception"] = _cut(traceback, longest, its_end=True)
    if record.stack_info:
        values["stack"] = _cut(str(record.stack_info), longest, its_end=True)
    return values


def _iso(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")


def _message_of(record: logging.LogRecord) -> str:
    try:
        return str(record.getMessage())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (a mistake in the call, or the user's classes)
        return f"{quoted(record.msg, 2_000)} (its arguments do not fit: {quoted(error)})"


def _traceback_of(record: logging.LogRecord) -> str | None:
    if record.exc_text:
        return str(record.exc_text)
    if not isinstance(record.exc_info, tuple) or record.exc_info[1] is None:
        return None
    shown = showable(record.exc_info[1])
    try:
        return logging.Formatter().formatException((type(shown), shown, record.exc_info[2]))
    except Exception as error:  # noqa: BLE001 (the class may be anybody's)
        return f"{type(shown).__name__} (its traceback cannot be shown: {quoted(error)})"


def _without_values(record: logging.LogRecord, error: BaseException) -> str:
    message = f"a line of the log could not be written: {quoted(error)}: {quoted(record.msg)}"
    return json_line(quoted(record.levelno, 20), quoted(record.name), message)


def _cut(text: str, longest: int, *, its_end: bool = False) -> str:
    if len(text) <= longest:
        return text
    rest = longest - len(_CUT)
    return _CUT + text[-rest:] if its_end else text[:rest] + _CUT


class _Plain:
    """Makes values that JSON has out of any others.

    Args:
        longest: characters of a text.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._left = _MOST_VALUES

    def attributes(self, record: logging.LogRecord) -> dict[str, Any]:
        given = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        # First those that matter most, if there are too many.
        given = dict(sorted(given.items(), key=_is_not_ours))
        return self._mapping(given, 0)

    def _mapping(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, one in itertools.islice(value.items(), _MOST_ITEMS):
            if self._left <= 0:
                break
            self._left -= 1
            shown = _cut(str.__str__(name), _LONGEST_KEY) if isinstance(name, str) else None
            values[quoted(name, _LONGEST_KEY) if shown is None else shown] = self._value(
                one, depth + 1
            )
        return values

    def _items(self, value: Any, depth: int) -> list[Any]:
        values: list[Any] = []
        for one in itertools.islice(value, _MOST_ITEMS):
            if self._left <= 0:
                break
            self._left -= 1
            values.append(self._value(one, depth + 1))
        return values

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return _cut(value, self._longest)
        if kind is int and value.bit_length() < _MOST_BITS:
            return value
        if kind is float and value - value == 0:
            return value
        if depth <= _DEEPEST:
            if kind is dict:
                return self._mapping(value, depth)
            if kind in (list, tuple, set, frozenset):
                return self._items(value, depth)
        if kind in (bytes, bytearray):
            return quoted(bytes(value[: self._longest]), self._longest)
        return self._text(value)

    def _text(self, value: Any) -> str:
        try:
            text = str.__str__(str(value))
        except BaseException:  # noqa: BLE001 (the class may be anybody's)
            return quoted(value, self._longest)
        return _cut(text, self._longest)


def _is_not_ours(attribute: tuple[str, Any]) -> bool:
    return not attribute[0].startswith(FIELD_PREFIX)
