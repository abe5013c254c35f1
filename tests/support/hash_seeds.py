"""Running a program with a given order of sets: what it prints must not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["output_with_hash_seed"]

_TESTS = Path(__file__).parent.parent


def output_with_hash_seed(hash_seed: str, program: str, *arguments: str) -> bytes:
    """Return what a program prints, which may import the modules of `tests/harness`."""
    folders = [_TESTS / "harness", _TESTS, _TESTS.parent / "src", os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(str(folder) for folder in folders if folder)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
        capture_output=True,
        check=True,
    )
    return done.stdout
