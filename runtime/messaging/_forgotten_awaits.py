"""Forgotten awaits: a call without ``await`` has done nothing, and is an error of the handler."""

from __future__ import annotations

import dis
import sys
import warnings
from types import CoroutineType, FrameType
from typing import Any

from ..._logs import get_logger
from ...errors import ConfigurationError
from ..diagnostics._stacks import is_ours, place
from ._turn import current_turn

__all__ = ["report_forgotten_awaits"]

_ADVICE = {
    "DistributedApplication.start": (
        "; to run the program until it is stopped, as start() did in spa-dat 0.4.0, write app.run()"
    )
}

log = get_logger("spa_dat")


def _not_awaited(coroutine: CoroutineType[Any, Any, Any]) -> None:
    """Make a forgotten `await` an error of the attempt; Python's own warning names no handler.

    Python calls this when a coroutine is freed that has not begun, hence at no cost to those that
    have. Only for coroutines of this package that a statement of other code makes and drops, as in
    ``socket.publish("a", 1)``: of others it is unknown which attempt they belong to.
    """
    caller = sys._getframe(1)
    made = coroutine.cr_frame
    if made is None or not is_ours(made) or is_ours(caller) or not _is_dropped_by(caller):
        if coroutine.cr_origin is not None:
            _warn_not_awaited(coroutine)
        else:
            # Python's own function would name this line instead of the caller's.
            text = f"coroutine '{coroutine.__qualname__}' was never awaited"
            warnings.warn(text, RuntimeWarning, stacklevel=2, source=coroutine)
        return
    text = (
        f"{coroutine.__qualname__}(...) was called without `await`, so it has done nothing:"
        f" {place([caller])}{_ADVICE.get(coroutine.__qualname__, '')}"
    )
    turn = current_turn.get()
    if turn is None or not turn.active:
        log.error("%s", text)
    elif turn.failure is None:
        turn.failure = ConfigurationError(text)


def _is_dropped_by(frame: FrameType) -> bool:
    code = frame.f_code.co_code
    return 0 <= frame.f_lasti < len(code) and code[frame.f_lasti] == _POP_TOP


_POP_TOP = dis.opmap["POP_TOP"]
_warn_not_awaited: Any = getattr(warnings, "_warn_unawaited_coroutine", None)


def report_forgotten_awaits() -> None:
    """Have Python report coroutines that nobody has awaited to the handler that has dropped them.

    To be called once. Without the private function of Python that this replaces, Python warns of
    them in its own words.
    """
    if _warn_not_awaited is not None:
        warnings._warn_unawaited_coroutine = _not_awaited  # type: ignore[attr-defined]
