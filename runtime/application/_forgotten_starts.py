"""Applications that a script has registered actors with, but never started."""

from __future__ import annotations

import ast
import atexit
import os
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._application import DistributedApplication
    from ._runs import Runs

__all__ = ["tell_if_never_started"]

# What is called with an application to start it, or with a coroutine that does.
_STARTERS = ("run", "enter_context", "enter_async_context")
_runs: weakref.WeakKeyDictionary[DistributedApplication, Runs] = weakref.WeakKeyDictionary()


def tell_if_never_started(application: DistributedApplication, runs: Runs) -> None:
    """Tell whoever has forgotten to start an application, at the end of the program.

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
    """Return whether the script starts the application, and has ended before it got there."""
    path = vars(sys.modules["__main__"]).get("__file__")
    try:
        tree = ast.parse(Path(path or "").read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # it is not there any more, or is another one
    return any(_is_start(node, name) for node in ast.walk(tree))


def _is_start(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("run", "start") and _names(name, node.value)
    if isinstance(node, ast.With | ast.AsyncWith):
        return any(_names(name, item.context_expr) for item in node.items)
    if isinstance(node, ast.Call):
        called = node.func
        function = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        given = (*node.args, *(keyword.value for keyword in node.keywords))
        return function in _STARTERS and any(_names(name, value) for value in given)
    return False


def _names(name: str, tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))
