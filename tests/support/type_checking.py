"""A strict type checker, run over what users would write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["check_types", "errors"]


def check_types(folder: Path, *texts: str) -> list[list[str]]:
    """Write programs to files and return what mypy says of each, without the names of the files.

    All of them at once, because it takes seconds to start.
    """
    files = [folder / f"program_{number}.py" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    # What mypy has found out of the package serves all tests of the run, in all its processes.
    run = folder.parents[1 if "PYTEST_XDIST_WORKER" in os.environ else 0]
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(run / "mypy-cache")]
    # In this process it would leave another limit of recursion and other thresholds of the garbage
    # collector behind.
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    said: list[list[str]] = [[] for _ in files]
    for line in ended.stdout.splitlines():
        for file, lines in zip(files, said, strict=True):
            _, found, rest = line.partition(f"{file.name}:")
            if found:
                lines.append(rest.replace(f"{file.stem}.", ""))
    return said


def errors(said: list[str]) -> list[int]:
    """Return the numbers of the lines with errors, each once."""
    return [*dict.fromkeys(int(line.split(":")[0]) for line in said if " error: " in line)]
