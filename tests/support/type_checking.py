"""A strict type checker, run over what users would write."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_types"]


def check_types(text: str, path: Path) -> tuple[str, int]:
    """Write a program to a file and return what mypy says of it, and its exit status."""
    from mypy import api

    path.write_text(text)
    # What mypy has found out of the package serves all tests of the run, in all its processes.
    run = path.parents[2 if "PYTEST_XDIST_WORKER" in os.environ else 1]
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(run / "mypy-cache")]
    out, errors, status = api.run([*arguments, str(path)])
    assert errors == ""
    return out, status
