"""The package's loggers: text from others is escaped, so it cannot forge lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

from ._texts import escaped, showable

__all__ = [
    "ACTOR_LOG",
    "OWN",
    "get_logger",
    "known_levels",
    "log_elsewhere_made",
    "set_levels",
]

ACTOR_LOG = "spa_dat.actor"
"""The name of the logger that actors and the runtime share."""
OWN = "spa_dat_own"
"""The attribute that marks the runtime's own records in it."""

_LONGEST = 10_000

_reporter = logging.Handler()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name; each record is one line besides its traceback.

    Topics, error texts, reasons and names come from whoever may publish. A line break in them would
    forge lines of the log, and control characters could change what a terminal shows. If a handler
    or filter of the program raises, that is reported on standard error, as `logging` itself does
    where it can: otherwise it would end the code that logs. If its record factory
    raises (`logging.setLogRecordFactory`), the ordinary one takes its place.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_harmless)
    logger.handle = partial(_handle, logger)  # type: ignore[method-assign]
    logger.makeRecord = partial(_make_record, logger)  # type: ignore[method-assign]
    return logger


def known_levels() -> dict[str, int]:
    """Return the level of each logger that has one of its own, by name; "" is the root."""
    levels = {"": logging.root.level}
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels


def set_levels(levels: Mapping[str, int]) -> None:
    """Give loggers of any program their levels; see `known_levels`."""
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)


def log_elsewhere_made(
    name: str,
    level: int,
    text: str,
    *,
    created: float,
    traceback: str | None,
    attributes: Mapping[str, object],
) -> None:
    """Log what another process has logged, with the logger of that name.

    Args:
        name: of the logger; any program's.
        level: as of `logging`.
        text: the message.
        created: when, in seconds since 1970.
        traceback: its text.
        attributes: of the record, by name.
    """
    logger = logging.getLogger(name)
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(name, level, "", 0, "%s", (text,), None)
    record.created = created
    record.msecs = (created - int(created)) * 1000
    record.exc_text = traceback
    for attribute, value in attributes.items():
        setattr(record, attribute, value)
    logger.handle(record)


def _handle(logger: logging.Logger, record: logging.LogRecord) -> None:
    try:
        logging.Logger.handle(logger, record)
    except Exception:
        if _is_the_users(record):
            raise
        record.getMessage()  # a mistake in the call must not be hidden
        _reporter.handleError(record)


def _make_record(
    logger: logging.Logger,
    name: str,
    level: int,
    file: str,
    line: int,
    message: object,
    args: Any,
    exc_info: Any,
    function: str | None = None,
    extra: Mapping[str, object] | None = None,
    stack: str | None = None,
) -> logging.LogRecord:
    location = (name, level, file, line)
    try:
        return logging.Logger.makeRecord(
            logger, *location, message, args, exc_info, function, extra, stack
        )
    except Exception:
        if name == ACTOR_LOG and OWN not in (extra or {}):
            raise
        record = logging.LogRecord(*location, message, args, exc_info, function, stack)
        vars(record).update(extra or {})
        _reporter.handleError(record)
        return record


def _is_the_users(record: logging.LogRecord) -> bool:
    return record.name == ACTOR_LOG and not hasattr(record, OWN)


def _harmless(record: logging.LogRecord) -> bool:
    if _is_the_users(record):
        return True
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 (a mistake in the call, which logging reports itself)
        return True
    shown = escaped(text, _LONGEST)
    if shown is not text:
        record.msg, record.args = shown, None
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_info = _shown(*record.exc_info)
    return True


def _shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> Any:
    stand_in = showable(error)
    return (kind if stand_in is error else type(stand_in)), stand_in, traceback
