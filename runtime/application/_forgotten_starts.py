"""Applications that a script has registered actors with, but never started."""

from __future__ import annotations

import atexit
import os
import re
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._application import DistributedApplication
    from ._runs import Runs

__all__ = ["tell_if_never_started"]

_runs: weakref.WeakKeyDictionary[DistributedApplication, Runs] = weakref.WeakKeyDictionary()


def tell_if_never_started(application: DistributedApplication, runs: Runs) -> None:
    """At the end of the program, tell whoever has forgotten to start an application.

    That concerns the global variables of a script: what is imported is started by somebody else,
    and what is typed in perhaps later.

    Args:
        application: it.
        runs: its runs.
    """
    script = vars(sys.modules["__main__"])
    maker = sys._getframe(2).f_globals  # of who has called the constructor, which calls this
    if "__file__" not in script or maker is not script:
        return
    if not _runs:
        atexit.register(_tell, os.getpid())
    _runs[application] = runs


def _tell(process: int) -> None:
    script = vars(sys.modules["__main__"])
    if os.getpid() != process or script.get("__name__") != "__main__":
        return  # a process of multiprocessing
    if sys.flags.interactive or hasattr(sys, "last_value"):
        return  # it was not over, or has ended with a traceback
    for name, value in list(script.items()):
        for application, runs in list(_runs.items()):
            if value is application and runs.specs and runs.last is None and not _starts(name):
                sys.stderr.write(
                    f"spa_dat: application {application.name!r} has actors, but was never started:"
                    f" to run it, end the program with {name}.run()\n"
                )


def _starts(name: str) -> bool:
    """Whether the script says how the application is started, and has ended before it got there."""
    path = vars(sys.modules["__main__"]).get("__file__")
    try:
        text = Path(path or "").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    call, rest = rf"\b{name}\s*\.\s*(run|start)\b", rf"\b(run|with)\b[^#\n]*\b{name}\b"
    return re.search(rf"^[^#\n]*({call}|{rest})", text, re.MULTILINE) is not None
