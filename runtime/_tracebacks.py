"""Tracebacks that begin where the user's code does."""

from __future__ import annotations

from types import TracebackType

from ..errors import SpaDatError

__all__ = ["of_users_code"]

_OURS = f"{__name__.partition('.')[0]}."

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def of_users_code(error: BaseException) -> _ExcInfo | None:
    """``exc_info`` for the log, without the calls of this package that led to the user's code.

    What was raised by this package itself needs no traceback if its text says all; anything else is
    a mistake of ours, and keeps it.
    """
    traceback = error.__traceback__
    while traceback is not None and _is_ours(traceback):
        traceback = traceback.tb_next
    if traceback is None and not isinstance(error, SpaDatError | TimeoutError):
        traceback = error.__traceback__
    elif traceback is None and error.__cause__ is None:
        return None
    return type(error), error, traceback


def _is_ours(traceback: TracebackType) -> bool:
    return str(traceback.tb_frame.f_globals.get("__name__", "")).startswith(_OURS)
