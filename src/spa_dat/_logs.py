"""The package's loggers: text from others is escaped, so it cannot forge lines of the log."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any

from ._texts import escaped, showable

__all__ = [
    "ACTOR",
    "ACTOR_LOG",
    "FIELD_PREFIX",
    "LEFT_OUT",
    "OWN",
    "ActorLog",
    "OwnLog",
    "actor_fields",
    "get_logger",
    "known_levels",
    "log_elsewhere_made",
    "log_error",
    "origin_of",
    "set_levels",
]

ACTOR_LOG = "spa_dat.actor"
"""The name of the logger that actors and the runtime share."""
OWN = "spa_dat_own"
"""The attribute that marks the runtime's own records in it."""

FIELD_PREFIX = "spa_dat_"
"""What the names of the attributes begin with that say what a record is about."""
ACTOR = f"{FIELD_PREFIX}actor"
"""The attribute with the name of the actor; those of the message are in `logged_fields`."""
LEFT_OUT = f"{FIELD_PREFIX}left_out"
"""The attribute that says how many lines were left out before this one."""
# With these a record reaches the loggers of the package, which replace them by the fields: a record
# factory may have set some already, and `extra=` must not name what there is.
_ORIGIN = "spa_dat_origin"
_ABOUT = "spa_dat_about"

_LONGEST = 10_000

_reporter = logging.Handler()


class OwnLog(logging.LoggerAdapter[logging.Logger]):
    """The runtime's own way into the log: nothing in it can end or deafen the code that logs.

    Handlers, filters, record factories and logger classes are the program's, and may raise. That is
    reported on standard error, as `logging` itself does where it can. If one calls ``sys.exit``,
    the event loop raises that, so that the program ends in good order.

    Args:
        logger: where the lines go.
        extra: as for `logging.LoggerAdapter`.
    """

    def __init__(self, logger: logging.Logger, extra: Mapping[str, object] | None = None) -> None:
        super().__init__(logger, extra)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        """See `logging.LoggerAdapter.process`; ``extra`` of a call is added to the log's."""
        return msg, _with_extra(self.extra, kwargs)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """See `logging.LoggerAdapter.isEnabledFor`."""
        try:
            return super().isEnabledFor(level)
        except Exception:  # noqa: BLE001 (`log` asks again, and reports it)
            return True

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a line.

        Args:
            level: as for `logging.Logger.log`.
            msg: as for `logging.Logger.log`.
            args: as for `logging.Logger.log`.
            kwargs: as for `logging.Logger.log`; ``about`` has the fields of the message that the
                line is about.
        """
        if about := kwargs.pop("about", None):
            kwargs["extra"] = {_ABOUT: about, **(kwargs.get("extra") or {})}
        # The record has to name the caller's line, not this one.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 (whatever the program's own code raises)
            text, _ = self.process(msg, {})
            # Outside of the guard: a mistake in the call must not be hidden.
            _failed(self.logger.name, str(text) % args if args else str(text), error)


class ActorLog(logging.LoggerAdapter[logging.Logger]):
    """The log of an actor's own code.

    Args:
        logger: where the lines go.
        address: ``application/instance/actor``.
    """

    def __init__(self, logger: logging.Logger, address: str) -> None:
        super().__init__(logger, origin_of(address))

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        """See `logging.LoggerAdapter.process`; ``extra`` of a call is added to the log's."""
        return msg, _with_extra(self.extra, kwargs)


def origin_of(address: str) -> dict[str, object]:
    """Return what to give as ``extra`` for records of this actor, whose code need not be running.

    Args:
        address: ``application/instance/actor``.
    """
    return {_ORIGIN: address}


def _with_extra(
    extra: Mapping[str, object] | None, kwargs: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    kwargs["extra"] = {**(kwargs.get("extra") or {}), **(extra or {})}
    return kwargs


@functools.lru_cache(1_024)
def actor_fields(address: str) -> Mapping[str, str]:
    """Return the attributes of a record that name its actor.

    Args:
        address: ``application/instance/actor``; what may follow, the number of a lane, is left out.
    """
    parts = address.split("/", 3)
    names = ("application", "instance", "actor")
    if len(parts) < len(names):
        return {ACTOR: address}
    return {f"{FIELD_PREFIX}{name}": part for name, part in zip(names, parts, strict=False)}


def get_logger(name: str) -> OwnLog:
    """Return the runtime's way to the logger of this name; each record is one line and a traceback.

    Topics, error texts, reasons and names come from whoever may publish. A line break in them would
    forge lines of the log, and control characters could change what a terminal shows.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_harmless)
    return OwnLog(logger)


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
        level: as in `logging`.
        text: the message.
        created: when, in seconds since 1970.
        traceback: its text.
        attributes: of the record, by name.
    """
    logger = logging.getLogger(name)
    try:
        if not logger.isEnabledFor(level):
            return
        record = logger.makeRecord(name, level, "", 0, "%s", (text,), None)
        _forget_fields(record)
        record.created = created
        record.msecs = (created - int(created)) * 1000
        record.exc_text = traceback
        for attribute, value in attributes.items():
            setattr(record, attribute, value)
        logger.handle(record)
    except BaseException as error:  # noqa: BLE001 (whatever the program's own code raises)
        _failed(name, text, error)


def log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that nobody has looked at; a handler for `loop.set_exception_handler`.

    Without it a log handler that raises ends the loop.
    """
    try:
        loop.default_exception_handler(context)
    except Exception as error:  # noqa: BLE001 (whatever the program's own code raises)
        _failed("asyncio", str(context.get("message")), error)


def _failed(name: str, text: str, error: BaseException) -> None:
    """Report on standard error what a program's own part of `logging` has raised over a line."""
    if isinstance(error, SystemExit | KeyboardInterrupt) and _ends_program(error):
        return
    with contextlib.suppress(Exception):
        record = logging.LogRecord(name, logging.ERROR, "", 0, escaped(text, _LONGEST), (), None)
        _reporter.handleError(record)


def _ends_program(error: BaseException) -> bool:
    """Raise this, outside of the code that was logging; return False where that is impossible."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        if threading.current_thread() is threading.main_thread():
            raise error from None
        return False
    loop.call_soon(_raise, error)
    return True


def _raise(error: BaseException) -> None:
    raise error


def _is_the_users(record: logging.LogRecord) -> bool:
    return record.name == ACTOR_LOG and not hasattr(record, OWN)


def _set_fields(record: logging.LogRecord) -> None:
    values = record.__dict__
    origin, about = values.pop(_ORIGIN, None), values.pop(_ABOUT, None)
    if origin is not None:
        fields = actor_fields(origin)
        if about is not None or not fields.items() <= values.items():
            # The running code may be that of another actor, at work on another message.
            _forget_fields(record)
        values.update(fields)
    if about is not None:
        values.update(about)


def _forget_fields(record: logging.LogRecord) -> None:
    for name in [name for name in record.__dict__ if name.startswith(FIELD_PREFIX)]:
        if name not in (OWN, LEFT_OUT):
            del record.__dict__[name]


def _harmless(record: logging.LogRecord) -> bool:
    _set_fields(record)
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
