"""The package's loggers, whose records show what others wrote without doing what it says."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from ._texts import escaped, showable

__all__ = ["ACTOR_LOG", "OWN", "get_logger"]

ACTOR_LOG = "spa_dat.actor"
"""The logger that actors and the runtime share."""
OWN = "spa_dat_own"
"""Attribute of the records in it that are the runtime's."""

_LONGEST = 10_000


def get_logger(name: str) -> logging.Logger:
    """The logger of this name, each record of which is one line besides its traceback.

    Topics, texts of errors, reasons and names come from whoever may publish. A line break in them
    would forge lines of the log, and a control character what a terminal shows.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_harmless)
    return logger


def _harmless(record: logging.LogRecord) -> bool:
    if record.name == ACTOR_LOG and not hasattr(record, OWN):
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
