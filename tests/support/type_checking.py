"""A strict type checker, run over what users would write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["check_types"]


def check_types(text: str, path: Path) -> tuple[str, int]:
    """Write a program to a file and return what mypy says of it, and its exit status."""
    path.write_text(text)
    # What mypy has found out of the package serves all tests of the run, in all its processes.
    run = path.parents[2 if "PYTEST_XDIST_WORKER" in os.environ else 1]
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(run / "mypy-cache")]
    # In this process it would leave another limit of recursion and other thresholds of the garbage
    # collector behind.
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    return ended.stdout, ended.returncode
